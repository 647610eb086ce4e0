"""Which form of local advantages points where uniform ones point in the long run? Gradients of the small Wan.

python -m research.experiments.credit_gradients OUT [--groups 96]: groups of 16 clips of one prompt by the shipped small
Wan, the oracle's verdicts and exact boxes, and for every arm the gradient of the Flow-GRPO loss that ``cac-align align``
would take at its first step; resumable, group by group. The plan is in docs/local_advantages.md.

An arm's gradient of four groups is compared, as a cosine, with the mean uniform gradient of all groups of the other half.
Uniform advantages need no assumption about places, so their mean over many groups is the direction that the score asks
for; an arm with less noise lies nearer to it with few groups, an arm with a bias stays away from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cac_align.align.advantages.local import local_advantages
from cac_align.align.advantages.uniform import normalise_in_group
from cac_align.align.lora import add_lora, lora_parameters
from cac_align.align.losses.grpo_loss import grpo_loss, split_by_position
from cac_align.align.sampling.rollout import Flow, RolloutBatch, guided_velocity, sample_batch
from cac_align.align.sampling.sde import transition
from cac_align.core.weights import shipped
from cac_align.generation.latent_masks import LatentGrid, latent_grid, marked_cells
from cac_align.generation.wan import Wan
from cac_align.miniature.oracle.oracle import analyse
from cac_align.miniature.world.world import make_prompts
from research.training.generated import anomalies_of

FIRST_PROMPT = 3_000_000
GROUP = 16
DYNAMICS, NOISE_LEVEL = "flow", 0.7
FIRST_STEP, LAST_STEP = 1, 6
CONTRAST = 8.0
BATCH = 4
"""Groups per step, as in recipes/align/miniature.yaml."""
ARMS = ("uniform", "position-wise", "mask x advantage", "content saliency", "shuffled boxes", "boxes with noise")


def exact_masks(prompt: str, rollout: RolloutBatch, grid: LatentGrid) -> tuple[np.ndarray, np.ndarray]:
    """(R, masks): 1 for clips that the oracle calls normal, else 0; masks of its boxes, (G, t, h, w), 1 everywhere where it
    places none, as for a judge that names no place.
    """
    scores, masks = np.zeros(GROUP), np.ones((GROUP, *grid.shape), bool)
    for number, video in enumerate(rollout.videos):
        if video is None:
            raise ValueError(f"{prompt}: clip {number} is not finite")
        result = analyse(prompt, video)
        scores[number] = result.verdict.status == "normal"
        if anomalies := anomalies_of(result, video.fps, video.height, video.width):
            masks[number] = marked_cells(anomalies, video, grid)
    return scores, masks


def advantages_of(
    scores: np.ndarray, masks: np.ndarray, latents: np.ndarray, rng: np.random.Generator
) -> Mapping[str, np.ndarray]:
    """The advantage of each clip at each latent position, by arm. latents: (G, C, t, h, w)."""
    plain = normalise_in_group(scores)[0]
    everywhere = np.broadcast_to(plain[:, None, None, None], masks.shape)

    def weighted(maps: np.ndarray) -> np.ndarray:
        return everywhere * maps / maps.mean((1, 2, 3), keepdims=True)

    broken = np.flatnonzero(scores == 0)
    shuffled, moved = masks.copy(), masks.copy()
    shuffled[broken] = masks[np.roll(broken, 1)]
    for number in broken:  # by up to two cells in space and one in time
        shift = (rng.integers(-1, 2), rng.integers(-2, 3), rng.integers(-2, 3))
        moved[number] = np.roll(masks[number], shift, (0, 1, 2))
    marked = np.where(masks & (scores == 0)[:, None, None, None], CONTRAST, 1.0)
    content = np.abs(latents - np.median(latents, (2, 3, 4), keepdims=True)).mean(1)
    return {
        "uniform": everywhere,
        "position-wise": local_advantages(scores, masks)[0],
        "mask x advantage": weighted(marked),
        "content saliency": weighted(content),
        "shuffled boxes": local_advantages(scores, shuffled)[0],
        "boxes with noise": local_advantages(scores, moved)[0],
    }


def gradients(flow: Flow, rollout: RolloutBatch, advantages: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gradient of the mean loss of a group, by arm, as one float32 vector over the LoRA's parameters."""
    (step,) = rollout.steps
    parameters = [
        p for name, p in lora_parameters(flow.model).items() if ".lora_B" in name
    ]  # lora_A's is 0 at the start
    velocity = guided_velocity(flow, step.x, step.index, rollout.embeds)
    mean = transition(DYNAMICS, step.x, velocity, flow.schedule.sigmas, step.index, NOISE_LEVEL).mean
    found = {}
    for arm, values in advantages.items():
        base, deviation = split_by_position(torch.from_numpy(np.ascontiguousarray(values)))
        loss = grpo_loss(
            mean, step.mean, step.x_next, step.std, step.dt, base, clip=1e-3, deviation=deviation, normalise_ratio=True
        )
        grads = torch.autograd.grad(loss.per_sample.mean(), parameters, retain_graph=True)
        found[arm] = torch.cat([each.flatten() for each in grads]).numpy()
    return found


def fill(out: Path, groups: int) -> None:
    """One file per group that has both normal and broken clips; the others give no gradient and an empty file."""
    wan = Wan.load(shipped("wan"), device="cpu", num_inference_steps=10)
    add_lora(wan.pipeline.transformer, rank=32, alpha=64, ffn=True, seed=0)
    flow, grid = Flow.of(wan, wan.pipeline.transformer, torch.device("cpu")), latent_grid(wan)
    for number, prompt in enumerate(make_prompts(range(FIRST_PROMPT, FIRST_PROMPT + groups))):
        path = out / f"{number:03d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng(number)
        steps = (int(rng.integers(FIRST_STEP, LAST_STEP + 1)),)
        seeds = [number * GROUP + one for one in range(GROUP)]
        rollout = sample_batch(flow, [prompt] * GROUP, seeds, steps, dynamics=DYNAMICS, noise_level=NOISE_LEVEL)
        scores, masks = exact_masks(prompt, rollout, grid)
        found: dict[str, Any] = {}
        if 0 < scores.sum() < GROUP:
            found |= gradients(flow, rollout, advantages_of(scores, masks, rollout.latents.numpy(), rng))
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **found)
        part.rename(path)
        print(f"{number + 1} of {groups}: {scores.mean():.0%} normal", flush=True)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def cosines(gradients_by_arm: Mapping[str, np.ndarray], order: np.ndarray) -> dict[str, float]:
    """Mean cosine of an arm's batches with the mean uniform gradient of the other half. (n, D) arrays; order: of groups."""
    half = len(order) // 2
    found: dict[str, list[float]] = {arm: [] for arm in gradients_by_arm}
    for own, other in ((order[:half], order[half:]), (order[half:], order[:half])):
        gold = gradients_by_arm["uniform"][list(other)].mean(0)
        for arm, values in gradients_by_arm.items():
            for start in range(0, len(own) - BATCH + 1, BATCH):
                found[arm].append(cosine(values[list(own[start : start + BATCH])].mean(0), gold))
    return {arm: float(np.mean(values)) for arm, values in found.items()}


def table(out: Path) -> str:
    """One line per arm. Intervals: 1.96 standard deviations over 200 half-samples of the groups (a jackknife that leaves out
    half: the spread of halves drawn without replacement is that of the whole).
    """
    files = [np.load(path) for path in sorted(out.glob("*.npz"))]
    stacked = {arm: np.stack([file[arm] for file in files if arm in file]) for arm in ARMS}
    count = len(stacked["uniform"])
    rng = np.random.default_rng(0)
    means = [cosines(stacked, rng.permutation(count)) for _ in range(50)]
    parts = [cosines(stacked, rng.permutation(count)[: count // 2]) for _ in range(200)]
    lines = [f"{count} of {len(files)} groups have both kinds", "", "| arm | cosine | minus uniform |", "|---|---|---|"]
    for arm in ARMS:
        found = []
        for base in (0.0, 1.0):
            mean = float(np.mean([each[arm] - base * each["uniform"] for each in means]))
            half = 1.96 * float(np.std([part[arm] - base * part["uniform"] for part in parts]))
            found.append(f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]")
        lines.append(f"| {arm} | {' | '.join(found)} |")
    return "\n".join(lines)


def main() -> None:
    """Fill what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--groups", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    fill(options.out, options.groups)
    print(table(options.out))


if __name__ == "__main__":
    main()
