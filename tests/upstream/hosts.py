"""Running real hosts: their checkouts, an interpreter that has their dependencies, and a tiny random Wan for them to train.

FLOW_FACTORY_DIR, FLOW_GRPO_DIR, UNIRL_DIR name checkouts; UPSTREAM_PYTHON an interpreter with the hosts' own dependencies beside
ours (default: this one). Nothing of theirs is copied here.
"""

import os
import signal
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


def run(arguments: list[str], cwd: Path, path: list[Path], timeout_s: float = 1700, **environment: str) -> str:
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
    with open(cwd / "output.txt", "w") as output:
        # A group of its own: if this test is stopped, the host's workers must not live on.
        host = subprocess.Popen(arguments, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            code = host.wait(timeout_s)
        finally:
            if host.poll() is None:
                os.killpg(host.pid, signal.SIGTERM)  # torchrun passes it on to its workers, which are in sessions of their own
                try:
                    host.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(host.pid, signal.SIGKILL)
    text = (cwd / "output.txt").read_text()
    assert code == 0, f"{' '.join(arguments)} ended with {code}:\n{text[-6000:]}"
    return text


def tiny_wan(folder: Path) -> Path:
    """An untrained Wan pipeline of a few hundred thousand weights: the real classes, 8 × 8 × 4 strides."""
    from cac_align.miniature.wan import MiniWan, build_pipeline

    vae = {"vae_dim": 4, "vae_mult": (1, 1, 1), "vae_residual": False}
    shape = MiniWan(**vae, text_dim=32, text_layers=1, text_heads=2, prompt_tokens=512, dim=32, heads=2, layers=1, ffn_dim=64)
    words = sorted({word for prompt in PROMPTS for word in prompt.split()})
    build_pipeline(shape, words, seed=0).save_pretrained(folder)
    return folder
