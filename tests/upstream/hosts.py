"""Running real hosts: their checkouts, an interpreter that has their dependencies, and a tiny random Wan for them to train.

FLOW_FACTORY_DIR, FLOW_GRPO_DIR, WORLD_R1_DIR, UNIRL_DIR name checkouts; UPSTREAM_PYTHON an interpreter with the hosts' own dependencies beside
ours (default: this one), UPSTREAM_REWARD the reward they train with (default: scripted judges), UPSTREAM_MODEL=miniature the shipped
small Wan as what they train (default: a random one). Nothing of theirs is copied here.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cac_align.core.weights import shipped
from cac_align.miniature.demo import playground_prompts

REPOSITORY = Path(__file__).parents[2]
PYTHON = os.environ.get("UPSTREAM_PYTHON", sys.executable)
REWARD = os.environ.get(
    "UPSTREAM_REWARD", "tests.support.hosting:telling"
)  # a recipe file or module:Name, e.g. recipes/reward/miniature.yaml
MINIATURE = os.environ.get("UPSTREAM_MODEL") == "miniature"
PROMPTS = (
    playground_prompts(4)
    if MINIATURE
    else ("a red ball rolls right", "a blue square falls", "a green ball jumps", "a red square turns")
)

ON_MISSING = "neutral" if MINIATURE else "raise"
"""What a clip without a verdict costs: the trained judges have one now and then, the scripted ones never."""
SIZES = {"size_px": 64} if MINIATURE else {"size_px": 32, "num_frames": 9, "fps": 8, "steps": 4, "guidance": 2.0}
SIZES = {**SIZES, "on_missing": ON_MISSING}
"""Of a ``HostRun``: the miniature's own, or smaller ones for the scripted judges."""


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
            pytest.skip(
                f"{PYTHON} has no module {module}; set UPSTREAM_PYTHON to an interpreter with the host's dependencies"
            )


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
                os.killpg(
                    host.pid, signal.SIGTERM
                )  # torchrun passes it on to its workers, which are in sessions of their own
                try:
                    host.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(host.pid, signal.SIGKILL)
    text = (cwd / "output.txt").read_text()
    assert code == 0, f"{' '.join(arguments)} ended with {code}:\n{text[-6000:]}"
    return text


def small_wan(folder: Path) -> Path:
    """The pipeline that the host trains: the shipped one, or a random one written into ``folder``."""
    return Path(shipped("wan")) if MINIATURE else random_wan(folder)


def random_wan(folder: Path) -> Path:
    """An untrained Wan pipeline of about a hundred thousand weights: the real classes, strides 8 in space and 4 in time."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = sorted({word for prompt in PROMPTS for word in prompt.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *(("▁" + word, -1.0) for word in words)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    text = UMT5Config(
        vocab_size=len(pieces), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, tie_word_embeddings=False
    )
    vae = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "attn_scales": [], "patch_size": 2}
    dit = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 16,
        "out_channels": 16,
    }
    WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(text),
        vae=AutoencoderKLWan(**vae, temperal_downsample=[True, True], in_channels=12, out_channels=12),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=WanTransformer3DModel(**dit, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=1),
    ).save_pretrained(folder)
    return folder
