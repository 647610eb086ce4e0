"""Whole runs of Flow-Factory and flow_grpo on a CPU: the files and the command that each needs, around our adapters.

``write_flow_factory`` and ``write_flow_grpo`` write prompts and a config into a folder and return the host's command. The tests,
the demonstration (``host_demo.py``) and measurements start their runs from here.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

MASTER_PORT = 29617


@dataclass(frozen=True)
class HostRun:
    """A small run: what is trained, on how many processes, and the options of our adapters."""

    model: str
    prompts: tuple[str, ...]
    reward: str
    ledger: str = "ledger.jsonl"
    processes: int = 1
    epochs: int = 2
    group_size: int = 4
    size_px: int = 64
    num_frames: int = 17
    fps: int = 16
    steps: int = 10
    guidance: float = 1.5
    on_missing: str = "neutral"
    asynchronous: bool = False
    batch_size: int = 8
    eval_every: int = 0
    mixed_precision: str = "bf16"
    logging_backend: str = "upstream.jsonl_logger.JsonlLogger"
    # Of Flow-Factory: one groupwise reward in place of the two pointwise ones, and how groups lie on the ranks.
    groupwise: bool = False
    sampler: str = "auto"


FLOW_FACTORY = """launcher: accelerate
num_processes: {processes}
mixed_precision: '{mixed_precision}'
data: {{dataset_dir: data, dataloader_num_workers: 0, force_reprocess: true, cache_dir: cache, sampler_type: {sampler},
        preprocessing_batch_size: 2}}
model: {{model_type: wan2_t2v, model_name_or_path: {model}, finetune_type: lora, lora_rank: 4, lora_alpha: 8,
        target_modules: default, target_components: transformer}}
log: {{run_name: run, project: test, logging_backend: {logging_backend}, save_dir: saves, save_freq: 0}}
train:
  trainer_type: grpo
  max_epochs: {epochs}
  resolution: [{size_px}, {size_px}]
  num_frames: {num_frames}
  num_inference_steps: {steps}
  guidance_scale: {guidance}
  group_size: {group_size}
  unique_sample_num_per_epoch: 2
  per_device_batch_size: 1
  gradient_step_per_epoch: 1
  offload_samples_to_cpu: true
  latent_storage_dtype: bf16                   # its fp16 cannot be stacked on a CPU
  enable_gradient_checkpointing: false
  global_std: false
  advantage_aggregation: sum
  learning_rate: 1.0e-4
  clip_range: 1.0e-3
  kl_beta: 0.001
  ref_param_device: cpu
  ema_decay: 0
  ema_device: cpu
  seed: 42
scheduler: {{dynamics_type: Flow-SDE, noise_level: 0.3, num_sde_steps: 1, sde_steps: [1, 2]}}
eval: {{resolution: [{size_px}, {size_px}], num_frames: {num_frames}, per_device_batch_size: 1, num_inference_steps: {steps},
        guidance_scale: {guidance}, eval_freq: {eval_every}}}
rewards:
"""

FLOW_FACTORY_POINTWISE = """  - {{name: cac, reward_model: cac_align.plugins.flow_factory.CaCReward, weight: 0.5, {options}}}
  - {{name: unified, reward_model: cac_align.plugins.flow_factory.UnifiedVideoReward, weight: 0.5, {options}}}
"""

FLOW_FACTORY_GROUPWISE = """  - {{name: pairs, reward_model: cac_align.plugins.flow_factory.GroupReward, {options}}}
"""

FLOW_FACTORY_OPTIONS = (
    'batch_size: {batch_size}, device: cpu, async_reward: {asynchronous}, num_workers: 4,\n     reward: "{reward}", '
    "ledger: {ledger}, fps: {fps}, on_missing: {on_missing}, group_size: {group_size}"
)

FLOW_GRPO = """import importlib.util

spec = importlib.util.spec_from_file_location("upstream_base", {base!r})
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)


def get_config():
    config = base.get_config()
    config.pretrained.model = {model!r}
    config.dataset, config.prompt_fn = "data", "general_ocr"
    config.mixed_precision = "no"
    config.height, config.width, config.frames = {size_px}, {size_px}, {num_frames}
    config.sample.guidance_scale = config.sample.eval_guidance_scale = {guidance}
    config.sample.num_steps = config.sample.eval_num_steps = {steps}
    config.sample.train_batch_size = {group_size} // {processes}
    config.sample.num_image_per_prompt = {group_size}
    config.sample.num_batches_per_epoch, config.sample.sample_time_per_prompt = 2, 1
    config.sample.test_batch_size, config.sample.kl_reward, config.sample.global_std = 2, 0, False
    config.train.batch_size, config.train.gradient_accumulation_steps = {group_size} // {processes}, 1
    config.train.timestep_fraction = 0.99
    config.train.beta, config.train.clip_range, config.train.ema = 0.004, 1e-3, True
    config.train.sft, config.train.sft_batch_size = 0.0, 1
    config.diffusion_loss = True
    config.num_epochs = {epochs} + 2  # the script samples nothing in its epochs 0 and 1
    config.save_freq, config.eval_freq = 100, {eval_every} or 1000
    config.save_dir = config.logdir = "save"
    config.reward_fn = {{"cac": 0.5, "unifiedreward_video": 0.5}}
    return config
"""


def write_flow_factory(folder: Path, run: HostRun, python: str = sys.executable) -> list[str]:
    """Write ``config.yaml`` and the prompts; the command that runs Flow-Factory in that folder."""
    _write_prompts(folder, run.prompts)
    values = {**vars(run), "asynchronous": str(run.asynchronous).lower()}
    options = FLOW_FACTORY_OPTIONS.format(**values)
    rewards = FLOW_FACTORY_GROUPWISE if run.groupwise else FLOW_FACTORY_POINTWISE
    (folder / "config.yaml").write_text((FLOW_FACTORY + rewards).format(**values, options=options))
    return [*launched_by_torch(python, run.processes), "-m", "flow_factory.train", "config.yaml"]


def write_flow_grpo(folder: Path, run: HostRun, home: Path, python: str = sys.executable) -> list[str]:
    """Write ``config.py`` and the prompts; the command that runs flow_grpo's Wan script in that folder."""
    _write_prompts(folder, run.prompts)
    text = FLOW_GRPO.format(base=str(home / "config" / "base.py"), **vars(run))
    (folder / "config.py").write_text(text)
    options = ["--reward", run.reward, "--ledger", run.ledger, "--fps", str(run.fps), "--on-missing", run.on_missing]
    options += ["--group-size", str(run.group_size)]
    script = [str(home / "scripts" / "train_wan2_1.py"), "--config", "config.py"]
    # The script takes the reference model from transformer.module: it only runs wrapped in DDP, also with one process.
    launch = launched_by_torch(python, run.processes, always=True)
    return [*launch, "-m", "cac_align.plugins.flow_grpo", *options, *script]


def launched_by_torch(python: str, processes: int, *, always: bool = False) -> list[str]:
    """The beginning of a command for this many ranks; plain Python for one, unless ``always``."""
    if processes == 1 and not always:
        return [python]
    distributed = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={MASTER_PORT}"]
    return [python, *distributed]


def _write_prompts(folder: Path, prompts: tuple[str, ...]) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (folder / "data" / f"{split}.txt").write_text("\n".join(prompts) + "\n")
