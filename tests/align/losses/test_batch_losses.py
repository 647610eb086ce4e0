"""The losses of a micro-batch: at which noise levels each video is trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cac_align.align.losses import batch_losses
from cac_align.align.losses.batch_losses import nft_batch_losses
from cac_align.align.recipe import AlignRecipe
from cac_align.align.sampling.rollout import RolloutBatch
from cac_align.align.sampling.sde import Schedule

SIGMAS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


def rollout(seeds):
    latents = torch.zeros(len(seeds), 1, 1, 2, 2)
    return RolloutBatch(("p",) * len(seeds), tuple(seeds), torch.zeros(len(seeds), 1, 1), (), latents, (None,))


@pytest.fixture
def levels(monkeypatch):
    """The levels at which each video of a micro-batch is trained, and how much noise its latents got there."""

    def of(seeds):
        asked = []

        def velocity(flow, x, index, embeds):
            asked.append((index.tolist(), x.flatten(1).square().mean(1).sqrt().tolist()))
            return torch.zeros_like(x)

        monkeypatch.setattr(batch_losses, "guided_velocity", velocity)
        flow = SimpleNamespace(device=torch.device("cpu"), schedule=Schedule(SIGMAS, torch.arange(5)))
        recipe = AlignRecipe(objective="nft", nft_timesteps=4)
        losses = list(nft_batch_losses(flow, recipe, rollout(seeds), torch.full((len(seeds),), 0.5), None, {}, {}))
        assert len(losses) == 4 and len(asked) == 8, "the old policy and the LoRA, at each level"
        assert asked[::2] == asked[1::2], "both at the same level"
        return [[index[n] for index, _ in asked[::2]] for n in range(len(seeds))], asked

    return of


def test_every_video_draws_noise_levels_of_its_own(levels):
    found, asked = levels([11, 12, 13, 14, 15, 16, 17, 18])
    assert all(len(set(row)) == 4 for row in found), "without repetition"
    assert len({tuple(row) for row in found}) > 4
    assert len({row[0] for row in found}) > 2, "in one pass, too"
    noise = {n: [] for n in range(5)}
    for index, sizes in asked:
        for n, size in zip(index, sizes, strict=True):
            noise[n].append(size)
    means = [np.mean(noise[n]) for n in range(5)]
    assert means == sorted(means, reverse=True), "the noise in the latents is that of the level"


def test_levels_do_not_depend_on_the_batch(levels):
    together, _ = levels([11, 12, 13])
    assert [levels([seed])[0][0] for seed in (11, 12, 13)] == together
