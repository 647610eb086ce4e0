"""The recipe of an alignment: which values are refused, the SDE window, and the shipped recipes."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cac_align.align.recipe import AlignRecipe, SdeWindow, check_align_recipe, draw_sde_steps
from cac_align.config import read_recipe
from cac_align.rewards.build import load_reward
from tests.support.tiny_flow import recipe
from tests.support.tracked import tracked

ROOT = Path(__file__).parents[2]


def test_windows_are_drawn_from_their_range():
    drawn = {draw_sde_steps(SdeWindow(3, 1, 6), 10, np.random.default_rng(seed)) for seed in range(300)}
    assert all(
        len(set(steps)) == 3 and min(steps) >= 1 and max(steps) <= 6 and list(steps) == sorted(steps) for steps in drawn
    )
    assert len(drawn) == 20, "all of 6 choose 3"
    assert draw_sde_steps(SdeWindow(0, 2, 4), 10, np.random.default_rng(0)) == (2, 3, 4)
    with pytest.raises(
        ValueError, match=re.escape("(of 10 steps the last, 9, stays without noise), received first=1, last=9")
    ):
        draw_sde_steps(SdeWindow(3, 1, 9), 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match=re.escape("sde_window.size must lie in [0, 2]")):
        draw_sde_steps(SdeWindow(3, 1, 2), 10, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2, received 1"),
        ({"lr": 0.0}, "lr must be a positive number, received 0.0"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio is the share of lr that the last step has, in [0, 1]; received 1.5"),
        ({"ema_decay": 1.0}, "ema_decay must lie in [0, 1), received 1.0"),
        ({"objective": "nft", "kl_beta": 0.1}, "kl_beta belongs to objective grpo"),
        ({"objective": "nft", "shared_noise": True}, "shared_noise needs stochastic steps"),
        ({"advantages": "local", "aggregation": "decoupled"}, "use aggregation sum with it"),
        (
            {"global_std": True, "aggregation": "decoupled"},
            "global_std belongs to aggregation sum and advantages uniform",
        ),
        ({"global_std": True, "advantages": "local"}, "global_std belongs to aggregation sum and advantages uniform"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, None; received 'float16'"),
        ({"min_group_std": -1.0}, "min_group_std must be a number of at least 0, received -1.0"),
        ({"sampler": "checkpoint"}, "which objective grpo needs; use sampler euler, or objective nft"),
        ({"sampler": "unipc"}, "sampler must be one of euler, checkpoint; received 'unipc'"),
        ({"dynamics": "euler"}, "dynamics must be one of flow, dance, cps; received 'euler'"),
    ],
)
def test_wrong_recipes_are_refused_in_one_sentence(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_align_recipe(replace(AlignRecipe(), **changes))


@pytest.mark.parametrize(
    "path",
    [path for path in tracked("recipes/align", "*.yaml") if path.parent.name == "align"],
    ids=lambda path: path.stem,
)
def test_the_shipped_recipes_read(path):
    given = read_recipe(AlignRecipe, path)
    check_align_recipe(given)
    draw_sde_steps(given.sde_window, given.num_inference_steps, np.random.default_rng(0))
    assert (ROOT / given.reward).is_file()
    assert given.global_std and (given.normalise_ratio or given.objective == "nft"), (
        "what the miniature's trials showed to matter"
    )
    if path.stem == "wan2.1_1.3b":  # the paper's numbers
        paper = (
            given.steps,
            given.group_size,
            given.prompts_per_step,
            given.lora_rank,
            given.noise_level,
            given.num_inference_steps,
        )
        assert paper == (120, 16, 2, 32, 0.3, 50) and (given.height, given.width, given.num_frames) == (480, 832, 81)


def test_the_reward_of_a_recipe_can_be_a_name(tmp_path):
    assert load_reward(recipe("m", tmp_path).reward).name == "brightness"


def test_a_least_std_that_is_no_number_of_at_least_zero_is_refused():
    check_align_recipe(AlignRecipe(min_group_std=0.0))
    for wrong in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"min_group_std must be a number of at least 0, received {wrong}"):
            check_align_recipe(AlignRecipe(min_group_std=wrong))
