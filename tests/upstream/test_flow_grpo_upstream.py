"""flow_grpo itself: its unmodified Wan script through our launcher, scoring by our service, on a CPU."""

import hashlib
import json

import pytest

from cac_align.rewards.build import load_reward
from tests.support.hosting import serving
from tests.upstream.hosts import (
    FPS,
    FRAMES,
    GUIDANCE,
    ON_MISSING,
    PROMPTS,
    PX,
    PYTHON,
    REWARD,
    STEPS,
    checkout,
    need,
    run,
    small_wan,
)

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]

# The script takes the reference model from transformer.module: it only runs wrapped in DDP, which one process under torchrun gives.
LAUNCH = [PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=1", "--master-port=29618"]

CONFIG = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("upstream_base", {base!r})
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)


def get_config():
    config = base.get_config()
    config.pretrained.model = {model!r}
    config.dataset = {data!r}
    config.prompt_fn = "general_ocr"
    config.mixed_precision = "no"
    config.height, config.width, config.frames = {px}, {px}, {frames}
    config.sample.guidance_scale = config.sample.eval_guidance_scale = {guidance}
    config.sample.num_steps = config.sample.eval_num_steps = {steps}
    config.sample.train_batch_size = config.sample.num_image_per_prompt = 4
    config.sample.num_batches_per_epoch, config.sample.sample_time_per_prompt = 2, 1
    config.sample.test_batch_size, config.sample.kl_reward, config.sample.global_std = 2, 0, False
    config.train.batch_size, config.train.gradient_accumulation_steps, config.train.timestep_fraction = 4, 1, 0.99
    config.train.beta, config.train.clip_range, config.train.ema = 0.004, 1e-3, True
    config.train.sft, config.train.sft_batch_size = 0.0, 1
    config.diffusion_loss = True
    config.num_epochs, config.save_freq, config.eval_freq = 4, 100, 3  # the script samples nothing in its epochs 0 and 1
    config.save_dir = config.logdir = {save!r}
    config.reward_fn = {{"cac": 0.5, "unifiedreward_video": 0.5}}
    return config
"""


def test_the_unmodified_wan_script_trains_two_epochs(tmp_path):
    home = checkout("FLOW_GRPO_DIR", "yifan123/flow_grpo (with scripts/train_wan2_1.py)", "scripts/train_wan2_1.py")
    need("absl", "ml_collections", "wandb", "imageio")
    script = home / "scripts" / "train_wan2_1.py"
    before = hashlib.sha256(script.read_bytes()).hexdigest()
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.txt").write_text("\n".join(PROMPTS) + "\n")
    names = {"base": str(home / "config" / "base.py"), "model": str(small_wan(tmp_path / "wan")), "data": str(data)}
    (tmp_path / "config.py").write_text(
        CONFIG.format(**names, px=PX, frames=FRAMES, steps=STEPS, guidance=GUIDANCE, save=str(tmp_path / "save"))
    )
    ledger = tmp_path / "ledger.jsonl"
    with serving(load_reward(REWARD)) as (url, _):
        ours = [
            "-m",
            "cac_align.plugins.flow_grpo",
            "--reward",
            url,
            "--ledger",
            str(ledger),
            "--fps",
            str(FPS),
            "--on-missing",
            ON_MISSING,
            "--group-size",
            "4",
        ]
        run([*LAUNCH, *ours, str(script), "--config", "config.py"], tmp_path, [home])
    assert hashlib.sha256(script.read_bytes()).hexdigest() == before
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    facts = [row["extra"]["host"] for row in rows if row["kind"] == "extra" and "unscored" not in row["extra"]]
    trained, evaluated = 2 * 2 * 4, len(PROMPTS)  # epochs × batches × batch size; every test prompt once, in epoch 3
    assert facts.count("flow_grpo/cac") == facts.count("flow_grpo/unifiedreward_video") == trained + evaluated
    judged = [row for row in rows if row["kind"] in ("score", "missing") and row["reward"] == "cac"]
    scored = sum(row["kind"] == "score" for row in judged)
    assert scored == len(judged) or (ON_MISSING == "neutral" and scored > len(judged) // 2)
    assert len(judged) == trained + evaluated and all(row["judgement"]["turns"] for row in judged)
