"""Train the small Wan: first its VAE, then text encoder and DiT together by flow matching. Both stop and resume anywhere.

recipes/miniature/vae.yaml  world clips, rendered as they are needed → AutoencoderKLWan (L1 + gradients + KL) → latent mean and std
recipes/miniature/wan.yaml  clips encoded once (fp16 shards) → x_σ = (1 − σ) x0 + σ ε, v = ε − x0, MSE of v → WanPipeline folder

    python -m cac_align.miniature.train_wan recipes/miniature/vae.yaml [key=value …]
    python -m cac_align.miniature.train_wan recipes/miniature/wan.yaml [key=value …]

Everything random in step n is drawn from a generator seeded by (seed, n), so a run that was killed goes on exactly as if it had not
been: a checkpoint holds weights, their running average, the optimizer and the number of the step. On one machine and thread count
the same recipe gives the same weights to the last bit; another processor or torch build rounds differently.
Sources: flow matching with logit-normal times, Esser et al. 2024 (arXiv 2403.03206) Sec. 3.1; the shift as in Wan (arXiv 2503.20314).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from cac_align.miniature.wan import MiniWan, build_pipeline, build_vae, save_pipeline
from cac_align.recipe import read_recipe


@dataclass(frozen=True)
class Schedule:
    """Optimisation of one job. Steps are optimizer steps; ``lr`` rises over ``warmup`` steps and falls on a cosine to a twentieth.

    matrix_lr: learning rate of Muon for the matrices inside (0: AdamW for everything).
    threads: torch threads (on a shared machine one is often the fastest). save_every, log_every: steps.
    """

    steps: int = 1000
    batch: int = 16
    lr: float = 1e-3
    matrix_lr: float = 0.0
    warmup: int = 50
    weight_decay: float = 0.0
    beta2: float = 0.99
    clip_norm: float = 1.0
    ema: float = 0.99
    save_every: int = 100
    log_every: int = 20
    threads: int = 1


@dataclass(frozen=True)
class VaeRecipe:
    """Job ``vae``. Clip seeds are first_clip, first_clip + 1, …, all inside the world's training range.

    frames, crop: length and side (px) of a training piece, cut at a random time and around something, because most of a clip is empty
    background; every ``long_every``-th step sees a whole clip instead, because the causal decoder drifts in frames it never reached in
    training. entity_weight: how much more a pixel counts that is not background. kl: weight of the KL term per latent value.
    measure: clips for PSNR and for the latents' mean and std.
    """

    job: str = "vae"
    out: str = "runs/miniature/vae"
    seed: int = 0
    first_clip: int = 0
    frames: int = 9
    crop: int = 40
    long_every: int = 8
    anomalous: float = 0.4
    entity_weight: float = 4.0
    gradient_weight: float = 0.5
    kl: float = 1e-4
    measure: int = 128
    model: MiniWan = field(default_factory=MiniWan)
    schedule: Schedule = field(default_factory=Schedule)


@dataclass(frozen=True)
class WanRecipe:
    """Job ``wan``. ``vae`` is the folder the first job wrote; ``clips`` are encoded once and kept in ``out/latents``.

    anomalous: share of training clips with an anomaly. empty_prompts: share trained without a prompt, for guidance.
    time_mean, time_std: logit-normal density of σ before the shift. The rest is how finished weights are sampled by default.
    evaluate_every: steps between evaluations of ``evaluate_clips`` generated clips by the oracle (0: only at the end).
    """

    job: str = "wan"
    out: str = "runs/miniature/wan"
    vae: str = "runs/miniature/vae/final"
    seed: int = 0
    first_clip: int = 0
    clips: int = 4000
    anomalous: float = 0.4
    empty_prompts: float = 0.1
    time_mean: float = 0.0
    time_std: float = 1.0
    num_inference_steps: int = 10
    guidance_scale: float = 2.0
    evaluate_every: int = 500
    evaluate_clips: int = 48
    model: MiniWan = field(default_factory=MiniWan)
    schedule: Schedule = field(default_factory=Schedule)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> VaeRecipe | WanRecipe:
    """The recipe in ``path`` with ``key=value`` overrides. Raises ``ValueError`` for an unknown job or key, or a value of another type."""
    from omegaconf import OmegaConf

    jobs = {"vae": VaeRecipe, "wan": WanRecipe}
    job = OmegaConf.load(path).get("job") if Path(path).is_file() else "wan"
    if job not in jobs:
        raise ValueError(f"{path}: job must be one of {', '.join(jobs)}; received {job!r}")
    return read_recipe(jobs[job], path, overrides)


# ── the loop both jobs share ──────────────────────────────────────────────────────────────────────────────────────────────


class Run:
    """A resumable optimisation: modules, their running average, the optimizer and the step. ``go`` takes the steps that remain."""

    def __init__(self, out: Path, modules: dict[str, nn.Module], schedule: Schedule, recipe: VaeRecipe | WanRecipe) -> None:
        self.out, self.modules, self.schedule = out, modules, schedule
        self.recipe = {name: value for name, value in asdict(recipe).items() if name != "out"}
        self.step = 0
        self.parameters = [p for module in modules.values() for p in module.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        named = [(name, p) for module in modules.values() for name, p in module.named_parameters()]
        # The DiT's linear layers and the VAE's convolutions; what is at either end of the DiT, and vectors, are Adam's.
        inner = [p for name, p in named if (name.startswith("blocks.") and p.ndim == 2) or (p.ndim >= 4 and "patch" not in name)]
        matrices = inner if schedule.matrix_lr else []
        others = [p for _, p in named if not any(p is matrix for matrix in matrices)]
        adam = torch.optim.AdamW(others, lr=schedule.lr, betas=(0.9, schedule.beta2), weight_decay=schedule.weight_decay)
        self.optimizers = [adam, *([Muon(matrices, schedule.matrix_lr)] if matrices else [])]
        out.mkdir(parents=True, exist_ok=True)
        if (out / "checkpoint.pt").is_file():
            self._restore()

    def _restore(self) -> None:
        saved = torch.load(self.out / "checkpoint.pt", map_location="cpu", weights_only=True)
        changed = sorted(
            name for name, value in self.recipe.items() if json.dumps(value) != json.dumps(saved["recipe"].get(name))
        )
        if changed:
            raise ValueError(
                f"{self.out}: holds a run of another recipe ({', '.join(changed)} differ); choose another out=, or remove the folder"
            )
        for name, module in self.modules.items():
            module.load_state_dict(saved["modules"][name])
        for average, stored in zip(self.average, saved["average"], strict=True):
            average.copy_(stored)
        for optimizer, stored in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.step = saved["step"]

    def save(self) -> None:
        """Write the checkpoint next to its place and move it there: a kill leaves the old one or the new one, never half of one."""
        state = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "recipe": self.recipe,
        }
        torch.save(state, self.out / "checkpoint.tmp")
        os.replace(self.out / "checkpoint.tmp", self.out / "checkpoint.pt")

    def go(
        self,
        loss_at: Callable[[int], tuple[Tensor, dict[str, float]]],
        *,
        stop_at: int | None = None,
        after: Callable[[int], None] | None = None,
    ) -> bool:
        """Take the remaining steps, up to ``stop_at``; True when the schedule is finished. ``after(step)`` runs after each step."""
        s = self.schedule
        began, seen = time.time(), []
        while self.step < s.steps and (stop_at is None or self.step < stop_at):
            for optimizer, lr in zip(self.optimizers, (s.lr, s.matrix_lr), strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = lr * learning_rate_factor(self.step, s.steps, s.warmup)
            loss, numbers = loss_at(self.step)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"step {self.step}: the loss is {loss.item()}; lower schedule.lr and resume from the last checkpoint"
                )
            for p in self.parameters:
                p.grad = None
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, s.clip_norm)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            # A young average would remember the random weights for long; it starts short and lengthens to ``ema``.
            keep = min(s.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
            seen.append({"loss": loss.item(), "norm": float(norm), **numbers})
            if self.step % s.log_every == 0 or self.step == s.steps:
                means = {name: float(np.mean([row[name] for row in seen])) for name in seen[0]}
                self.log({**means, "seconds": round(time.time() - began, 1)})
                seen.clear()
            if self.step % s.save_every == 0 or self.step in (s.steps, stop_at):
                self.save()
            if after is not None:
                after(self.step)
        return self.step >= s.steps

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to ``log.jsonl`` and show it on stderr."""
        row = {"step": self.step, **{k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)

    def averaged(self) -> _Averaged:
        """``with run.averaged():`` the modules hold the running average of their weights."""
        return _Averaged(self)


class _Averaged:
    def __init__(self, run: Run) -> None:
        self.run = run

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *exc: object) -> None:
        self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for p, average in zip(self.run.parameters, self.run.average, strict=True):
                kept = p.detach().clone()
                p.copy_(average)
                average.copy_(kept)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: every direction of a weight matrix moves equally far. Needs about half of Adam's steps here.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; torch's own computes in bfloat16, which many
    CPUs emulate at a tenth of their speed.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 1 - group["momentum"])
                direction = orthogonalise(p.grad.lerp(state["mean"], group["momentum"]).flatten(1))
                rows, columns = direction.shape
                p.add_(direction.view_as(p), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalise(matrix: Float[Tensor, "M N"], steps: int = 5) -> Float[Tensor, "M N"]:
    """About U Vᵀ of the singular value decomposition, by a quintic Newton–Schulz iteration; singular values end in about [0.7, 1.2]."""
    x = matrix / (matrix.norm() + 1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine from 1 to 1/20 at the last step."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of everything random in one step; a function of its two numbers alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def training_clip(seed: int, anomalous: float) -> tuple[UInt8[np.ndarray, "T H W 3"], str]:
    """One Studio clip of the world and its prompt; a share ``anomalous`` of the seeds shows an anomaly."""
    from cac_align.miniature.world import STUDIO, TRAIN_SEEDS, make_clip

    if seed not in TRAIN_SEEDS:
        raise ValueError(
            f"clip seed {seed} lies outside the training range {TRAIN_SEEDS}; lower first_clip, clips or schedule.steps"
        )
    clip = make_clip(seed, replace(STUDIO, anomaly_share=anomalous))
    return clip.pixels, clip.prompt


def to_signal(pixels: UInt8[np.ndarray, "*batch T H W 3"]) -> Float[Tensor, "*batch 3 T H W"]:
    """uint8 pixels as the VAE's input: floats in [−1, 1], channels before time."""
    return torch.from_numpy(pixels).movedim(-1, -4).float() / 127.5 - 1


# ── the VAE ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def decode_unclamped(vae: nn.Module, latents: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B 3 T H W"]:
    """``vae.decode`` without its clamp to [−1, 1], whose gradient is zero outside: a saturated pixel could never come back."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    pieces = []
    for index in range(hidden.shape[2]):
        vae._conv_idx = [0]
        piece = hidden[:, :, index : index + 1]
        pieces.append(vae.decoder(piece, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(pieces, 2), patch_size=vae.config.patch_size)


def reconstruction_loss(
    made: Float[Tensor, "B 3 T H W"],
    target: Float[Tensor, "B 3 T H W"],
    weight: Float[Tensor, "B 1 T H W"],
    gradient_weight: float,
) -> Tensor:
    """Weighted mean of |e| + 2e², and of |difference of e| between neighbours in space and time; e in brightness and two colour axes.

    By |e| alone the best colour of something small is the grey around it, hence the square; and brightness, which varies most, would be
    learnt long before colour, hence the axes: e = (mean of R, G, B; R − G; (R + G) / 2 − B).
    """
    weight = weight / weight.mean()
    red, green, blue = (made - target).unbind(1)
    error = torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], 1)
    loss = (weight * (error.abs() + 2 * error**2)).mean()
    if gradient_weight:
        edges = (error.diff(dim=-1).abs() * weight[..., 1:]).mean() + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
        loss = loss + gradient_weight * edges
        if error.shape[2] > 1:
            loss = loss + gradient_weight * (error.diff(dim=2).abs() * weight[:, :, 1:]).mean()
    return loss


def salience(clip: UInt8[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "T H W"]:
    """0 for background, 1 for what stands out: 4 · |pixel − median of its row over the clip| of the signal, at most 1."""
    backdrop = np.median(clip[::4], axis=(0, 2), keepdims=True)
    return np.minimum(1, np.abs(clip - backdrop).max(-1) * (4 / 127.5)).astype(np.float32)


def vae_batch(recipe: VaeRecipe, step: int) -> tuple[Float[Tensor, "B 3 T H W"], Float[Tensor, "B 1 T H W"]]:
    """What step ``step`` of job ``vae`` sees, as a signal in [−1, 1], and how much each pixel weighs."""
    generator = step_generator(recipe.seed, step)
    seed = recipe.first_clip + step * recipe.schedule.batch
    whole = recipe.long_every > 0 and step % recipe.long_every == recipe.long_every - 1
    clips = [training_clip(n, recipe.anomalous)[0] for n in range(seed, seed + (1 if whole else recipe.schedule.batch))]
    weights = [1 + recipe.entity_weight * salience(clip) for clip in clips]
    if whole:
        pieces = [(slice(None), slice(None), slice(None))]
    else:
        pieces = [cut(weight, recipe.frames, recipe.crop, generator) for weight in weights]
    target = to_signal(np.stack([clip[piece] for clip, piece in zip(clips, pieces, strict=True)]))
    return target, torch.from_numpy(np.stack([weight[piece] for weight, piece in zip(weights, pieces, strict=True)]))[:, None]


def cut(weight: Float[np.ndarray, "T H W"], frames: int, side: int, generator: torch.Generator) -> tuple[slice, slice, slice]:
    """A piece of a clip: ``frames`` at a random time, and a square that holds a random pixel of the weightiest tenth of their first frame."""
    start, where, dx, dy = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    count, height, width = weight.shape
    first = int(start * (count - frames + 1))
    order = np.argsort(weight[first], axis=None, kind="stable")
    y, x = np.unravel_index(order[-1 - int(where * 0.1 * (len(order) - 1))], (height, width))
    top = int(np.clip(y - dy * side, 0, height - side))
    left = int(np.clip(x - dx * side, 0, width - side))
    return slice(first, first + frames), slice(top, top + side), slice(left, left + side)


def train_vae(recipe: VaeRecipe, *, stop_at: int | None = None) -> Path | None:
    """Run job ``vae``; returns the folder of the finished VAE, or None when stopped before the end."""
    torch.set_num_threads(recipe.schedule.threads)
    out = Path(recipe.out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vae = build_vae(recipe.model).train()
    with torch.no_grad():  # almost no noise at first (standard deviation 0.05): with the default of 1 the first signal drowns
        vae.quant_conv.bias[recipe.model.latent_channels :] = -6.0
    run = Run(out, {"vae": vae}, recipe.schedule, recipe)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        target, weight = vae_batch(recipe, step)
        generator = step_generator(recipe.seed + 1, step)
        posterior = vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        made = decode_unclamped(vae, posterior.mean + posterior.std * noise)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction_loss(made, target, weight, recipe.gradient_weight)
        numbers = {"psnr": psnr(made.detach(), target), "kl": kl.item(), "std": posterior.std.mean().item()}
        return loss + recipe.kl * kl, numbers

    if not run.go(loss_at, stop_at=stop_at):
        return None
    with run.averaged():
        return finish_vae(vae.eval(), recipe, run)


def psnr(made: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of signals in [−1, 1], the made one clamped as ``vae.decode`` does."""
    return float(10 * torch.log10(4 / ((made.clamp(-1, 1) - target) ** 2).mean()))


@torch.no_grad()
def finish_vae(vae: nn.Module, recipe: VaeRecipe, run: Run) -> Path:
    """Measure PSNR and the latents' mean and std on unseen clips, write them into the config, save the folder ``out/final``."""
    first = recipe.first_clip + recipe.schedule.steps * recipe.schedule.batch
    latents, values, standing_out = [], [], []
    for seed in range(first, first + recipe.measure):
        clip, _ = training_clip(seed, recipe.anomalous)
        target = to_signal(clip)[None]
        mode = vae.encode(target).latent_dist.mode()
        made = vae.decode(mode).sample
        latents.append(mode)
        values.append(psnr(made, target))
        entity = torch.from_numpy(salience(clip) > 0.9).expand_as(target)
        if entity.any():
            standing_out.append(psnr(made[entity], target[entity]))
    joined = torch.cat(latents)
    mean, std = joined.mean(dim=(0, 2, 3, 4)), joined.std(dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    vae.save_pretrained(Path(recipe.out) / "final")
    run.log(
        {"psnr_held_out": float(np.mean(values)), "psnr_entity": float(np.mean(standing_out)), "latent_std": std.mean().item()}
    )
    return Path(recipe.out) / "final"


# ── text encoder and DiT ─────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def encode_clips(vae: nn.Module, recipe: WanRecipe, shard: int = 250) -> tuple[Float[Tensor, "N C t h w"], list[str]]:
    """Normalised latents (fp16) and prompts of all training clips; shards already in ``out/latents`` are not encoded again."""
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    folder = Path(recipe.out) / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    latents, prompts = [], []
    for first in range(0, recipe.clips, shard):
        file = folder / f"{first:06d}.npz"
        if not file.is_file():
            clips = [
                training_clip(recipe.first_clip + n, recipe.anomalous) for n in range(first, min(first + shard, recipe.clips))
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
    """Prompt embeddings as ``WanPipeline`` makes them: zero after the end of the prompt, and attended to nevertheless."""
    return encoder(ids, mask).last_hidden_state * mask[..., None]


def draw_sigmas(count: int, recipe: WanRecipe, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Noise levels in (0, 1): logit-normal, then shifted as the sampler shifts its schedule."""
    u = torch.sigmoid(recipe.time_mean + recipe.time_std * torch.randn(count, generator=generator))
    shift = recipe.model.flow_shift
    return shift * u / (1 + (shift - 1) * u)


def train_wan(recipe: WanRecipe, *, stop_at: int | None = None) -> Path | None:
    """Run job ``wan``; returns the finished pipeline folder, or None when stopped before the end."""
    from diffusers import AutoencoderKLWan

    from cac_align.miniature.world import VOCABULARY

    torch.set_num_threads(recipe.schedule.threads)
    out = Path(recipe.out)
    if not (Path(recipe.vae) / "config.json").is_file():
        raise ValueError(f"{recipe.vae}: no trained VAE there; run recipes/miniature/vae.yaml first, or pass vae=FOLDER")
    pipeline = build_pipeline(recipe.model, VOCABULARY, recipe.seed)
    vae = AutoencoderKLWan.from_pretrained(recipe.vae, dtype=torch.float32).eval()
    pipeline.register_modules(vae=vae)
    latents, prompts = encode_clips(vae, recipe)
    encoder, transformer = pipeline.text_encoder.train(), pipeline.transformer.train()
    tokens = pipeline.tokenizer(
        ["", *prompts], padding="max_length", max_length=recipe.model.prompt_tokens, truncation=True, return_tensors="pt"
    )
    run = Run(out, {"text_encoder": encoder, "transformer": transformer}, recipe.schedule, recipe)
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
        return F.mse_loss(flow, noise - clean), {}

    def after(step: int) -> None:
        if recipe.evaluate_every and step % recipe.evaluate_every == 0 and step < recipe.schedule.steps:
            with run.averaged():
                run.log(evaluate(save_final(pipeline, recipe, out / "latest"), recipe))

    if not run.go(loss_at, stop_at=stop_at, after=after):
        return None
    with run.averaged():
        folder = save_final(pipeline, recipe, out / "final")
        if recipe.evaluate_clips:
            run.log(evaluate(folder, recipe))
    return folder


def epoch_indices(count: int, start: int, batch: int, seed: int) -> Int[Tensor, " batch"]:
    """Positions start … start + batch − 1 of an endless stream that goes through all ``count`` clips in a new order each time."""
    picked = []
    for epoch in range(start // count, (start + batch - 1) // count + 1):
        order = torch.randperm(count, generator=step_generator(seed + 1, epoch))
        picked.append(order[max(0, start - epoch * count) : start + batch - epoch * count])
    return torch.cat(picked)


def save_final(pipeline: Any, recipe: WanRecipe, folder: Path) -> Path:
    """Write the pipeline with half-precision weights and the numbers it is sampled with; training goes on in single precision."""
    import copy

    frozen = copy.deepcopy(pipeline)
    for module in (frozen.text_encoder, frozen.transformer, frozen.vae):
        module.eval().half()
    clip, _ = training_clip(recipe.first_clip, recipe.anomalous)
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
    """Generate ``evaluate_clips`` clips for prompts that no training clip fixed (seeds of the world's VALID range); what the oracle says.

    anomaly_rate: share judged abnormal; ``types``: how often each type. follows: share with entity, colour and motion as asked, and each.
    A contact sheet of the first clips lies beside the folder.
    """
    from collections import Counter

    from cac_align.generation.wan import Wan
    from cac_align.miniature.oracle import judge
    from cac_align.miniature.world import VALID_SEEDS, make_prompts

    wan = Wan.load(folder)
    prompts = make_prompts(VALID_SEEDS[: recipe.evaluate_clips])
    began = time.time()
    videos = [v for n in range(0, len(prompts), 8) for v in wan.batch(prompts[n : n + 8], range(n, min(n + 8, len(prompts))))]
    seconds = time.time() - began
    verdicts = [judge(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
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
        "speed_px_s": float(np.mean([verdict.displacement_px for verdict in verdicts])),
        "generate_s": round(seconds, 1),
    }


def draw_sheet(clips: Sequence[UInt8[np.ndarray, "T H W 3"]], path: Path, every: int = 3) -> None:
    """A PNG with one row of every third frame per clip: what a training has learnt, at a glance."""
    from PIL import Image

    Image.fromarray(np.concatenate([np.concatenate(list(clip[::every]), axis=1) for clip in clips])).save(path)


def main(arguments: Sequence[str]) -> int:
    """``train_wan RECIPE [key=value …]``: exit 0 when the job is finished, 2 with one line when the request is wrong."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        recipe = load_job(arguments[0], arguments[1:])
        folder = train_vae(recipe) if isinstance(recipe, VaeRecipe) else train_wan(recipe)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
