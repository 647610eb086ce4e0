"""Train the small Wan's text encoder and DiT by flow matching.

clips of the world → the VAE's latents, encoded once (fp16 shards) → x_σ = (1 − σ) x0 + σ ε, v = ε − x0, MSE of v →
WanPipeline folder. It stops and resumes anywhere (``optimise``); ``research.build`` runs it.

Sources: flow matching with logit-normal times, Esser et al. 2024 (arXiv 2403.03206) Sec. 3.1; the shift as in Wan
(arXiv 2503.20314).
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from cac_align.miniature.models.wan import MiniWan, build_pipeline, save_pipeline
from research.training.optimise import Optimisation, Schedule, step_generator
from research.training.train_vae import to_signal, training_clip


@dataclass(frozen=True)
class WanRecipe:
    """Job ``wan``. ``world``: "playground" or "studio". ``vae`` is the folder the first job wrote;
    ``clips`` are encoded once and kept in the folder ``latents``.

    start: a pipeline folder whose text encoder and DiT to go on from (empty: from random weights).
    first_weight: how much more the first latent frame counts; it is one of many, holds a single
    frame where the others hold several, and would be learnt last. anomalous: share of training
    clips with an anomaly. empty_prompts: share trained without a prompt, for guidance. time_mean,
    time_std: logit-normal density of σ before the shift. The rest is how finished weights are
    sampled by default. evaluate_every: steps between evaluations of ``evaluate_clips`` generated
    clips by the oracle (0: only at the end).
    """

    job: str = "wan"
    world: str = "playground"
    out: str = "runs/miniature/wan"
    vae: str = "runs/miniature/vae/final"
    latents: str = "runs/miniature/latents"
    start: str = ""
    seed: int = 0
    first_clip: int = 0
    clips: int = 4000
    anomalous: float = 0.4
    empty_prompts: float = 0.1
    first_weight: float = 1.0
    time_mean: float = 0.0
    time_std: float = 1.0
    num_inference_steps: int = 10
    guidance_scale: float = 2.0
    evaluate_every: int = 500
    evaluate_clips: int = 48
    model: MiniWan = field(default_factory=MiniWan)
    schedule: Schedule = field(default_factory=Schedule)


@torch.no_grad()
def encode_clips(vae: nn.Module, recipe: WanRecipe, shard: int = 250) -> tuple[Float[Tensor, "N C t h w"], list[str]]:
    """Normalised latents (fp16) and prompts of all training clips; shards already in the folder are
    not encoded again.
    """
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    folder = Path(recipe.latents)
    folder.mkdir(parents=True, exist_ok=True)
    latents, prompts = [], []
    for first in range(0, recipe.clips, shard):
        file = folder / f"{first:06d}.npz"
        if not file.is_file():
            clips = [
                training_clip(recipe.first_clip + n, recipe.anomalous, recipe.world)
                for n in range(first, min(first + shard, recipe.clips))
            ]
            made = [
                vae.encode(to_signal(np.stack([c[0] for c in clips[n : n + 8]]))).latent_dist.mode()
                for n in range(0, len(clips), 8)
            ]
            packed = ((torch.cat(made) - mean) / std).half().numpy()
            with file.with_suffix(".tmp").open("wb") as opened:
                np.savez(opened, latents=packed, prompts=np.array([c[1] for c in clips]))
            os.replace(file.with_suffix(".tmp"), file)
            print(f"encoded {first + len(clips)} of {recipe.clips} clips", file=sys.stderr, flush=True)
        with np.load(file) as stored:
            latents.append(torch.from_numpy(stored["latents"]))
            prompts.extend(stored["prompts"].tolist())
    return torch.cat(latents), prompts


def embed(encoder: nn.Module, ids: Int[Tensor, "B L"], mask: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
    """Prompt embeddings as ``WanPipeline`` makes them: zero after the end of the prompt, and
    attended to nevertheless.
    """
    return encoder(ids, mask).last_hidden_state * mask[..., None]


def draw_sigmas(count: int, recipe: WanRecipe, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Noise levels in (0, 1): logit-normal, then shifted as the sampler shifts its schedule."""
    u = torch.sigmoid(recipe.time_mean + recipe.time_std * torch.randn(count, generator=generator))
    shift = recipe.model.flow_shift
    return shift * u / (1 + (shift - 1) * u)


def train_wan(recipe: WanRecipe, *, stop_at: int | None = None) -> Path | None:
    """Run job ``wan``; returns the finished pipeline folder, or None when stopped before the end."""
    from diffusers import AutoencoderKLWan

    from cac_align.generation.wan import Wan
    from cac_align.miniature.world.grammar import VOCABULARY

    torch.set_num_threads(recipe.schedule.threads)
    out = Path(recipe.out)
    if not (Path(recipe.vae) / "config.json").is_file():
        raise ValueError(f"{recipe.vae}: no trained VAE there; train that first, or pass vae=FOLDER")
    pipeline = build_pipeline(recipe.model, VOCABULARY, recipe.seed)
    if recipe.start:
        begun = Wan.load(recipe.start).pipeline
        pipeline.text_encoder.load_state_dict(begun.text_encoder.state_dict())
        pipeline.transformer.load_state_dict(begun.transformer.state_dict())
    vae = AutoencoderKLWan.from_pretrained(recipe.vae, dtype=torch.float32).eval()
    pipeline.register_modules(vae=vae)
    latents, prompts = encode_clips(vae, recipe)
    encoder, transformer = pipeline.text_encoder.train(), pipeline.transformer.train()
    tokens = pipeline.tokenizer(
        ["", *prompts],
        padding="max_length",
        max_length=recipe.model.prompt_tokens,
        truncation=True,
        return_tensors="pt",
    )
    optimisation = Optimisation(out, {"text_encoder": encoder, "transformer": transformer}, recipe.schedule, recipe)
    batch = recipe.schedule.batch

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe.seed, step)
        chosen = epoch_indices(len(prompts), step * batch, batch, recipe.seed)
        clean = latents[chosen].float()
        rows = torch.where(torch.rand(batch, generator=generator) < recipe.empty_prompts, 0, chosen + 1)
        sigma = draw_sigmas(batch, recipe, generator)
        noise = torch.randn(clean.shape, generator=generator)
        level = sigma.view(-1, 1, 1, 1, 1)
        text = embed(encoder, tokens.input_ids[rows], tokens.attention_mask[rows])
        flow = transformer((1 - level) * clean + level * noise, sigma * 1000, text, return_dict=False)[0]
        error = ((flow - (noise - clean)) ** 2).mean(dim=(0, 1, 3, 4))
        weight = torch.ones(len(error))
        weight[0] = recipe.first_weight
        return (error * weight).sum() / weight.sum(), {"first": error[0].item()}

    def after(step: int) -> None:
        if (
            recipe.evaluate_every
            and step % recipe.evaluate_every == 0
            and step < (recipe.schedule.stop_after or recipe.schedule.steps)
        ):
            with optimisation.averaged():
                optimisation.log(evaluate(save_final(pipeline, recipe, out / "latest"), recipe))

    if not optimisation.run(loss_at, stop_at=stop_at, after=after):
        return None
    with optimisation.averaged():
        folder = save_final(pipeline, recipe, out / "final")
        if recipe.evaluate_clips:
            optimisation.log(evaluate(folder, recipe))
    return folder


def epoch_indices(count: int, start: int, batch: int, seed: int) -> Int[Tensor, " batch"]:
    """Positions start … start + batch − 1 of an endless stream that goes through all ``count``
    clips in a new order each time.
    """
    picked = []
    for epoch in range(start // count, (start + batch - 1) // count + 1):
        order = torch.randperm(count, generator=step_generator(seed + 1, epoch))
        picked.append(order[max(0, start - epoch * count) : start + batch - epoch * count])
    return torch.cat(picked)


def save_final(pipeline: Any, recipe: WanRecipe, folder: Path) -> Path:
    """Write the pipeline with half-precision weights and the numbers it is sampled with; training
    goes on in single precision.
    """
    frozen = copy.deepcopy(pipeline)
    for module in (frozen.text_encoder, frozen.transformer, frozen.vae):
        module.eval().half()
    clip, _ = training_clip(recipe.first_clip, recipe.anomalous, recipe.world)
    defaults = {
        "height": clip.shape[1],
        "width": clip.shape[2],
        "num_frames": clip.shape[0],
        "num_inference_steps": recipe.num_inference_steps,
        "guidance_scale": recipe.guidance_scale,
        "fps": 16.0,
        "max_sequence_length": recipe.model.prompt_tokens,
    }
    save_pipeline(frozen, folder, defaults)
    return folder


def evaluate(folder: Path, recipe: WanRecipe) -> dict[str, Any]:
    """Generate ``evaluate_clips`` clips for prompts that no training clip fixed (seeds of the
    world's VALID range); what the oracle says.

    anomaly_rate: share judged abnormal; ``types``: how often each type. follows: share with entity,
    colour and motion as asked, and each. displacement_px_s: over the clips that show their entity;
    None when none does. A contact sheet of the first clips lies beside the folder.
    """
    from collections import Counter

    from cac_align.generation.wan import Wan
    from cac_align.miniature.oracle.oracle import judge_clip
    from cac_align.miniature.oracle.rates import rates_of
    from cac_align.miniature.world.settings import PLAYGROUND, STUDIO, VALID_SEEDS
    from cac_align.miniature.world.world import make_prompts

    wan = Wan.load(folder)
    prompts = make_prompts(VALID_SEEDS[: recipe.evaluate_clips], PLAYGROUND if recipe.world == "playground" else STUDIO)
    began = time.time()
    videos = [
        v for n in range(0, len(prompts), 8) for v in wan.batch(prompts[n : n + 8], range(n, min(n + 8, len(prompts))))
    ]
    seconds = time.time() - began
    verdicts = [judge_clip(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
    followed = Counter(name for verdict in verdicts for name, held in verdict.follows.items() if held)
    asked = Counter(name for verdict in verdicts for name in verdict.follows)
    draw_sheet([video.frames(range(len(video))).pixels for video in videos[:24]], folder.with_suffix(".png"))
    return {
        "clips": len(videos),
        "anomaly_rate": float(np.mean([verdict.status == "abnormal" for verdict in verdicts])),
        "follows": float(
            np.mean([all(verdict.follows[name] for name in ("entity", "colour", "motion")) for verdict in verdicts])
        ),
        "followed": {name: round(followed[name] / count, 3) for name, count in asked.items()},
        "types": dict(Counter(name for verdict in verdicts for name in verdict.types)),
        "displacement_px_s": rates_of("", verdicts).displacement_px_s.value,
        "generate_s": round(seconds, 1),
    }


def draw_sheet(clips: Sequence[UInt8[np.ndarray, "T H W 3"]], path: Path, every: int = 3) -> None:
    """A PNG with one row of every third frame per clip: what a training has learnt, at a glance."""
    from PIL import Image

    Image.fromarray(np.concatenate([np.concatenate(list(clip[::every]), axis=1) for clip in clips])).save(path)
