"""The reward for normal-flow speed: speeds by construction, its ceiling, and videos that cannot be measured."""

import numpy as np
import pytest

from cac_align.config import read_recipe
from cac_align.core.video import Video
from cac_align.rewards.build import RewardRecipe, load_reward
from cac_align.rewards.normal_flow_speed import NormalFlowSpeed, normal_flow_speed
from tests.support.moving_disc import moving


def test_the_measure_follows_the_speed_and_hardly_anything_else():
    base = normal_flow_speed(moving(1.6))
    for factor in (0.5, 0.75, 1.25):
        assert normal_flow_speed(moving(1.6 * factor)) / base == pytest.approx(factor, abs=0.06)
    assert normal_flow_speed(moving(0.0)) == 0.0
    assert normal_flow_speed(moving(1.6, flash=9)) == pytest.approx(base, rel=0.02), "a vanished frame is no motion"
    assert normal_flow_speed(moving(1.6).with_fps(8)) == pytest.approx(base / 2)
    assert normal_flow_speed(moving(1.6, frames=1)) == 0.0


def test_the_reward_is_the_speed_up_to_the_ceiling():
    slow, fast, still = moving(0.8), moving(1.6), moving(0.0)
    ceiling = normal_flow_speed(fast) * 0.9
    scores = NormalFlowSpeed(ceiling)(["p", "p", "p"], [slow, fast, still])
    assert scores[0].value == pytest.approx(normal_flow_speed(slow) / ceiling) and 0 < scores[0].value < 1
    assert scores[1].value == 1.0, "faster than the ceiling pays nothing more"
    assert scores[2].value == 0.0 and scores[1].parts == {"speed": normal_flow_speed(fast)}


def test_shimmer_is_no_motion(monkeypatch):
    """A resting disc on a ground that flickers by up to four levels: nothing moves, and with a lower limit it would seem to."""
    clip = moving(0.0)
    pixels = clip.frames(range(len(clip))).pixels.astype(np.int16)
    shimmer = np.random.default_rng(0).integers(-4, 5, size=(*pixels.shape[:3], 1))
    shaken = Video.open(np.clip(pixels + shimmer, 0, 255).astype(np.uint8), fps=16)
    assert normal_flow_speed(shaken) < 0.002
    monkeypatch.setattr("cac_align.rewards.normal_flow_speed.MIN_CHANGE", 2 / 255)
    assert normal_flow_speed(shaken) > 0.05


def test_what_cannot_be_measured_has_no_score():
    one = moving(1.0, frames=1)
    (alone,) = NormalFlowSpeed()(["p"], [one])
    assert not alone.scored and "a video of one frame has no motion" in alone.error
    with pytest.raises(ValueError, match="full_speed must be a positive number"):
        NormalFlowSpeed(0.0)


def test_a_recipe_can_weigh_it_against_the_judges():
    made = read_recipe(RewardRecipe, "recipes/reward/miniature_tta_normal_flow.yaml")
    assert made.components["normal_flow_speed"].full_speed == 0.15
    alone = RewardRecipe(components={"normal_flow_speed": made.components["normal_flow_speed"]})
    assert load_reward(alone) == NormalFlowSpeed(0.15)
    assert load_reward(alone).provenance["full_speed"] == "0.15"
