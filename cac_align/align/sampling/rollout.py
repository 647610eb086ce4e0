"""Sampling videos for training: each stochastic step is kept with the mean from which it was drawn.

prompts, seeds → embeddings, first noise → guided v → ODE or SDE step, or the checkpoint's own
→ latents → VAE → Video

Guidance is part of the policy: the same guided v = v_empty + g·(v_prompt − v_empty), from one
forward pass over both halves, samples the videos and enters the loss. All random numbers of a
sample come from its own seed, so they do not depend on its batch or process. A micro-batch stays
together from sampling to loss: another batch size rounds differently, and the probability ratio of
unchanged weights must be exactly 1.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cac_align.align.sampling.sde import Schedule, ode_step, read_schedule, transition
from cac_align.core.video import Video
from cac_align.generation.wan import Setting, Wan


class Stopwatch:
    """Seconds by name.

    It does not wait for a GPU: pending work counts for the name that waits for it next.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


@dataclass(frozen=True, eq=False)
class Flow:
    """A Wan that can be sampled and trained. model: the pipeline's DiT as accelerate has wrapped
    it.
    """

    pipeline: Any
    model: nn.Module
    setting: Setting
    schedule: Schedule
    device: torch.device
    timer: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def of(cls, wan: Wan, model: nn.Module, device: torch.device) -> Flow:
        schedule = read_schedule(wan.pipeline.scheduler, wan.setting.num_inference_steps, device)
        return cls(wan.pipeline, model, wan.setting, schedule, device)


@dataclass(frozen=True)
class SdeStep:
    """One stochastic step of a micro-batch, on the CPU: from x to x_next, drawn with this mean and
    std.
    """

    index: int
    x: Float[Tensor, "B C t h w"]
    x_next: Float[Tensor, "B C t h w"]
    mean: Float[Tensor, "B C t h w"]
    std: float
    dt: float


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """One micro-batch of sampled videos. A video is None where latents or pixels are not finite."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    embeds: Float[Tensor, "B2 L D"]
    steps: tuple[SdeStep, ...]
    latents: Float[Tensor, "B C t h w"]
    videos: tuple[Video | None, ...]


def sample_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such as the run's seed, the step and the sample."""
    high, low = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


@torch.no_grad()
def embed_prompts(flow: Flow, prompts: Sequence[str]) -> Float[Tensor, "B2 L D"]:
    """Embeddings of the prompts, followed by those of the negative prompt where there is guidance."""
    setting = flow.setting
    guided = setting.guidance_scale > 1
    positive, negative = flow.pipeline.encode_prompt(
        prompt=list(prompts),
        negative_prompt=[setting.negative_prompt] * len(prompts) if guided else None,
        do_classifier_free_guidance=guided,
        max_sequence_length=setting.max_sequence_length,
        device=flow.device,
    )
    return torch.cat([positive, negative]) if guided else positive


def guided_velocity(
    flow: Flow, x: Float[Tensor, "B C t h w"], index: int | Int[Tensor, " B"], embeds: Float[Tensor, "B2 L D"]
) -> Float[Tensor, "B C t h w"]:
    """The guided velocity at step ``index`` of the schedule, one for all or one per video, in
    float32.
    """
    halves = len(embeds) // len(x)
    timestep = flow.schedule.timesteps[index]
    with flow.timer("model"):
        v = flow.model(
            hidden_states=torch.cat([x] * halves).to(embeds.dtype),
            timestep=timestep.repeat(halves) if timestep.ndim else timestep.expand(len(embeds)),
            encoder_hidden_states=embeds,
            return_dict=False,
        )[0].float()
    if halves == 1:
        return v
    prompted, empty = v.chunk(2)
    return empty + flow.setting.guidance_scale * (prompted - empty)


@torch.no_grad()
def sample_batch(
    flow: Flow,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sde_steps: Sequence[int] = (),
    *,
    dynamics: str = "flow",
    noise_level: float = 0.0,
    decode: bool = True,
    noise_seeds: Sequence[int] | None = None,
    own_sampler: bool = False,
) -> RolloutBatch:
    """Sample one micro-batch. The steps ``sde_steps`` are stochastic and kept; the others follow
    the ODE.

    seeds: one per video, of all its noise. dynamics, noise_level: see ``sde``. decode: False leaves
    the videos out. noise_seeds: one per video, of the first noise only; videos with the same one
    start from the same noise. own_sampler: the checkpoint's scheduler takes the steps instead of
    Euler. UniPC uses the steps before each step, so none of them can be stochastic.

    Raises ``ValueError`` for stochastic steps with the checkpoint's own sampler.
    """
    if own_sampler and sde_steps:
        raise ValueError(
            f"the checkpoint's own sampler has no stochastic steps, received {list(sde_steps)}; use sampler euler"
        )
    embeds = embed_prompts(flow, prompts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = latent_shape(flow)
    first_generators = (
        generators if noise_seeds is None else [torch.Generator().manual_seed(seed) for seed in noise_seeds]
    )
    x = _noise(shape, first_generators, flow.device)
    sigmas = flow.schedule.sigmas
    own = _own_sampler(flow) if own_sampler else None
    kept = []
    for index in range(len(flow.schedule)):
        v = guided_velocity(flow, x, index, embeds)
        if own is not None:
            x = own.step(v, own.timesteps[index], x, return_dict=False)[0]
            continue
        if index not in sde_steps:
            x = ode_step(x, v, sigmas, index)
            continue
        drawn = transition(dynamics, x, v, sigmas, index, noise_level)
        after = drawn.mean + drawn.std * _noise(shape, generators, flow.device)
        kept.append(SdeStep(index, x.cpu(), after.cpu(), drawn.mean.cpu(), drawn.std, drawn.dt))
        x = after
    videos = decode_latents(flow, x, prompts, seeds) if decode else (None,) * len(x)
    return RolloutBatch(tuple(prompts), tuple(seeds), embeds, tuple(kept), x.cpu(), videos)


def _own_sampler(flow: Flow) -> Any:
    """A copy of the checkpoint's scheduler at its first step: it remembers the steps that it has
    taken.
    """
    own = copy.deepcopy(flow.pipeline.scheduler)
    own.set_timesteps(len(flow.schedule), device=flow.device)
    return own


def latent_shape(flow: Flow) -> tuple[int, int, int, int]:
    """(C, t, h, w) of one video's latents."""
    setting, pipeline = flow.setting, flow.pipeline
    return (
        int(pipeline.transformer.config.in_channels),
        (setting.num_frames - 1) // pipeline.vae_scale_factor_temporal + 1,
        setting.height // pipeline.vae_scale_factor_spatial,
        setting.width // pipeline.vae_scale_factor_spatial,
    )


def _noise(
    shape: tuple[int, ...], generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "B C t h w"]:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)


@torch.no_grad()
def decode_latents(
    flow: Flow, latents: Float[Tensor, "B C t h w"], prompts: Sequence[str], seeds: Sequence[int]
) -> tuple[Video | None, ...]:
    """The videos, as ``WanPipeline`` decodes them; None where latents or pixels are not finite."""
    vae = flow.pipeline.vae
    mean, std = (
        torch.tensor(v, device=flow.device).view(1, -1, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    with flow.timer("vae"):
        decoded = vae.decode((latents.to(flow.device) * std + mean).to(vae.dtype), return_dict=False)[0]
        pixels = flow.pipeline.video_processor.postprocess_video(decoded, output_type="np")
    videos: list[Video | None] = []
    for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        if torch.isfinite(latents[number]).all() and np.isfinite(pixels[number]).all():
            videos.append(
                Video.open(pixels[number], fps=flow.setting.fps, layout="THWC", name=f"{prompt} (seed {seed})")
            )
        else:
            videos.append(None)
    return tuple(videos)


def sample_with_lora(
    model: str | Path,
    lora: str | Path | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch: int = 8,
    **settings: Any,
) -> list[Video]:
    """One video per prompt and seed with a trained LoRA (None: without), by the checkpoint's own
    sampler, as ``WanPipeline`` makes them.

    settings: go to ``Wan.load`` (device, dtype, num_inference_steps, …). Raises ``ValueError`` as
    ``Wan.load`` does.
    """
    wan = Wan.load(model, lora=lora, **settings)
    videos: list[Video] = []
    for start in range(0, len(prompts), batch):
        videos += wan.batch(prompts[start : start + batch], seeds[start : start + batch])
    return videos
