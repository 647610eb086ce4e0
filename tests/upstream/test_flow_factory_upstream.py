"""Flow-Factory itself: its own loader, processor and GRPO trainer with our rewards, on a CPU, one and two processes."""

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

CONFIG = """
launcher: accelerate
num_processes: {processes}
mixed_precision: bf16
data: {{dataset_dir: {data}, dataloader_num_workers: 0, force_reprocess: true, cache_dir: {cache}, sampler_type: auto,
        preprocessing_batch_size: 2}}
model: {{model_type: wan2_t2v, model_name_or_path: {model}, finetune_type: lora, lora_rank: 4, lora_alpha: 8,
        target_modules: default, target_components: transformer}}
log: {{run_name: run, project: test, logging_backend: upstream.jsonl_logger.JsonlLogger, save_dir: {save}, save_freq: 0}}
train:
  {{trainer_type: grpo, max_epochs: 2, resolution: [{px}, {px}], num_frames: {frames}, num_inference_steps: {steps}, guidance_scale: {guidance}, group_size: 4,
   unique_sample_num_per_epoch: 2, per_device_batch_size: 1, gradient_step_per_epoch: 1, offload_samples_to_cpu: true,
   latent_storage_dtype: bf16, enable_gradient_checkpointing: false, global_std: false, advantage_aggregation: sum,
   learning_rate: 1.0e-4, clip_range: 1.0e-3, kl_beta: 0.001, ref_param_device: cpu, ema_decay: 0, ema_device: cpu, seed: 42}}
scheduler: {{dynamics_type: Flow-SDE, noise_level: 0.3, num_sde_steps: 1, sde_steps: [1, 2]}}
eval: {{resolution: [{px}, {px}], num_frames: {frames}, per_device_batch_size: 1, num_inference_steps: {steps}, guidance_scale: {guidance}, eval_freq: 0}}
rewards:
  - {{name: cac, reward_model: cac_align.plugins.flow_factory.CaCReward, weight: 0.5, batch_size: {batch}, device: cpu,
     async_reward: {asynchronous}, num_workers: 4, reward: "{reward}", ledger: {ledger}, fps: {fps}, on_missing: {on_missing},
     group_size: 4}}
  - {{name: unified, reward_model: cac_align.plugins.flow_factory.UnifiedVideoReward, weight: 0.5, batch_size: {batch}, device: cpu,
     async_reward: {asynchronous}, num_workers: 4, reward: "{reward}", ledger: {ledger}, fps: {fps}, on_missing: {on_missing},
     group_size: 4}}
"""


@pytest.mark.parametrize("processes, asynchronous, remote", [(1, "false", False), (2, "true", True)])
def test_its_grpo_trains_two_epochs_with_our_rewards(tmp_path, processes, asynchronous, remote):
    home = checkout("FLOW_FACTORY_DIR", "X-GenGroup/Flow-Factory", "src/flow_factory/train.py")
    need("datasets", "imageio", "ftfy")
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.txt").write_text("\n".join(PROMPTS) + "\n")
    ledger = tmp_path / "ledger.jsonl"
    values = {"processes": processes, "data": data, "cache": tmp_path / "cache", "model": small_wan(tmp_path / "wan")}
    values |= {"px": PX, "frames": FRAMES, "fps": FPS, "steps": STEPS, "guidance": GUIDANCE, "on_missing": ON_MISSING}
    values |= {"save": tmp_path / "saves", "batch": 1 if remote else 8, "asynchronous": asynchronous, "ledger": ledger}
    launch = [PYTHON, "-m", "flow_factory.train", "config.yaml"]
    if processes > 1:
        launch = [
            PYTHON,
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={processes}",
            "--master-port=29617",
            *launch[1:],
        ]
    with serving(load_reward(REWARD)) as (url, _):
        text = CONFIG.format(**values, reward=url if remote else REWARD)
        (tmp_path / "config.yaml").write_text(text)
        output = run(launch, tmp_path, [home / "src"], LOG_FILE=str(tmp_path / "log.jsonl"))
    assert "Training completed successfully" in output
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    facts = [row["extra"] for row in rows if row["kind"] == "extra" and "unscored" not in row["extra"]]  # of samples
    samples = 2 * 2 * 4  # epochs × prompts × group size
    for name in ("cac", "unified"):
        assert sum(fact["host"] == f"flow-factory/{name}" for fact in facts) == samples
    judged = [row for row in rows if row["kind"] in ("score", "missing") and row["reward"] == "cac"]
    assert len(judged) == samples and all(row["judgement"]["turns"] for row in judged)
    scored = [row for row in judged if row["kind"] == "score"]
    assert len(scored) == samples or (ON_MISSING == "neutral" and len(scored) > samples // 2)
    assert all(row["judgement"]["status"] in ("normal", "abnormal") for row in scored)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    ratios = [value for row in log for key, value in row.items() if key.startswith("train/ratio")]
    assert len([row for row in log if "train/ratio_mean" in row]) == 2  # one optimiser step per epoch
    assert ratios[0] == pytest.approx(
        1, abs=1e-4
    )  # the recomputed log-probability equals the rollout's before the first update
    assert all(row["train/grad_norm"] > 0 for row in log if "train/grad_norm" in row)  # the rewards tell samples apart
    means = {
        key: [row[key] for row in log if key in row]
        for key in {key for row in log for key in row}
        if "reward_cac" in key
    }
    assert means and all(0 <= value <= 1 for key, values in means.items() if "mean" in key for value in values)
