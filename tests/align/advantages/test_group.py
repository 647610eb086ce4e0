"""Advantages of whole groups: every kind of advantages, what is logged of them, and the clips that are kept."""

import math

import numpy as np
import pytest
import torch

from cac_align.align.advantages.group import GroupAdvantages, clips_to_keep, group_advantages, summarise
from cac_align.align.async_reward import RewardSample
from cac_align.align.recipe import AlignRecipe

WEIGHTS = {"unified": 0.5, "cac": 0.5}


def judged(unified, cac, mask=None):
    """Reward samples of a combination normalised by range: unified is given on 1 to 5."""
    mapped = [(u, c, (u - 1) / 4) for u, c in zip(unified, cac, strict=True)]
    return [
        RewardSample(
            (z + c) / 2, {"unified": u, "cac": c, "normalised/unified": z, "normalised/cac": c}, None, 0.1, mask
        )
        for u, c, z in mapped
    ]


UNIFIED, CAC, NEARLY = [4.003, 3.997, 4.003, 3.997], [0.9, 0.9, 0.1, 0.1], [0.9003, 0.8997, 0.9003, 0.8997]


@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "sum"},
        {"aggregation": "sum", "global_std": True},
        {"aggregation": "decoupled"},
        {"advantages": "local"},
    ],
)
def test_the_recipes_least_std_reaches_every_kind_of_advantages(options):
    recipe = AlignRecipe(group_size=4, **options)
    quiet, clear = judged(UNIFIED, NEARLY, np.ones((1, 2, 2), bool)), judged(UNIFIED, CAC, np.ones((1, 2, 2), bool))
    (found,) = group_advantages([quiet + clear], recipe, WEIGHTS)
    assert found.zero_std.tolist() == [True, False] and found.trained.tolist() == [False] * 4 + [True] * 4
    assert not found.advantage[:4].any() and (found.advantage[4:] * [1, 1, -1, -1] > 0).all()
    numbers = summarise([found], WEIGHTS)
    assert numbers["zero_std_groups"] == 1 and numbers["variance_shares"]["cac"] > 0.99, (
        "a zero-std group has no shares"
    )
    (open_to_all,) = group_advantages([quiet + clear], AlignRecipe(group_size=4, min_group_std=0.0, **options), WEIGHTS)
    assert not open_to_all.zero_std.any() and open_to_all.advantage[0] > 0 > open_to_all.advantage[1]


def test_the_clips_without_a_score_and_with_the_extreme_advantages_are_kept():
    def chunk(advantage, values):
        samples = tuple(RewardSample(value, {}, None, 0.1) for value in values)
        return GroupAdvantages(
            torch.zeros(3), None, torch.ones(3, dtype=torch.bool), advantage, np.zeros(1, bool), samples
        )

    chunks = [
        chunk(np.array([0.0, -2.0, 1.0]), [0.1, 0.2, 0.3]),
        chunk(np.array([0.5, 0.0, 3.0]), [0.1, math.nan, 0.3]),
    ]
    assert clips_to_keep(chunks, 3) == {(1, 1), (0, 1), (1, 2)}
    assert clips_to_keep(chunks, 0) == set()
