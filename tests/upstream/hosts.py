"""Running real hosts: their checkouts, an interpreter that has their dependencies, and a tiny random Wan for them to train.

FLOW_FACTORY_DIR, FLOW_GRPO_DIR, UNIRL_DIR name checkouts; UPSTREAM_PYTHON an interpreter with the hosts' own dependencies beside
ours (default: this one). Nothing of theirs is copied here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = os.environ.get("UPSTREAM_PYTHON", sys.executable)
PROMPTS = ("a red ball rolls right", "a blue square falls", "a green ball jumps", "a red square turns")


def checkout(variable: str, repository: str, marker: str) -> Path:
    """The checkout that an environment variable names. Skips the test with the reason where there is none."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set; point it to a checkout of github.com/{repository}")
    if not (Path(folder) / marker).exists():
        pytest.fail(f"{variable}={folder} holds no {marker}; expected a checkout of github.com/{repository}")
    return Path(folder)


def need(*modules: str) -> None:
    """Skip unless the hosts' interpreter can import these."""
    for module in modules:
        if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
            pytest.skip(f"{PYTHON} has no module {module}; set UPSTREAM_PYTHON to an interpreter with the host's dependencies")


def run(arguments: list[str], cwd: Path, path: list[Path], timeout_s: float = 900, **environment: str) -> str:
    """Run a host to its end; its output. Fails the test with the last lines when it does not succeed."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    env["PYTHONPATH"] = os.pathsep.join(map(str, [*path, REPOSITORY, REPOSITORY / "tests"]))
    done = subprocess.run(
        arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False
    )
    (cwd / "output.txt").write_text(done.stdout)
    assert done.returncode == 0, f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


def tiny_wan(folder: Path) -> Path:
    """An untrained Wan pipeline of a few hundred thousand weights: the real classes, 8 × 8 × 4 strides."""
    from cac_align.miniature.wan import MiniWan, build_pipeline

    shape = MiniWan(vae_dim=4, text_dim=32, text_layers=1, text_heads=2, prompt_tokens=512, dim=32, heads=2, layers=1, ffn_dim=64)
    words = sorted({word for prompt in PROMPTS for word in prompt.split()})
    build_pipeline(shape, words, seed=0).save_pretrained(folder)
    return folder
