"""The motion reward: speeds by construction, its ceiling, and what it says of videos that cannot be measured."""

import numpy as np
import pytest

from cac_align.config import read_recipe
from cac_align.core.video import Video
from cac_align.rewards.build import RewardRecipe, load_reward
from cac_align.rewards.motion import Motion, motion
from tests.align.test_alarms import moving


def test_the_reward_is_the_speed_up_to_the_ceiling():
    slow, fast, still = moving(0.8), moving(1.6), moving(0.0)
    ceiling = motion(fast) * 0.9
    scores = Motion(ceiling)(["p", "p", "p"], [slow, fast, still])
    assert scores[0].value == pytest.approx(motion(slow) / ceiling) and 0 < scores[0].value < 1
    assert scores[1].value == 1.0, "faster than the ceiling pays nothing more"
    assert scores[2].value == 0.0 and scores[1].parts == {"speed": motion(fast)}


def test_shimmer_is_no_motion(monkeypatch):
    """A resting disc on a ground that flickers by up to four levels: nothing moves, and with a lower limit it would seem to."""
    clip = moving(0.0)
    pixels = clip.frames(range(len(clip))).pixels.astype(np.int16)
    shimmer = np.random.default_rng(0).integers(-4, 5, size=(*pixels.shape[:3], 1))
    shaken = Video.open(np.clip(pixels + shimmer, 0, 255).astype(np.uint8), fps=16)
    assert motion(shaken) < 0.002
    monkeypatch.setattr("cac_align.rewards.motion.STILL", 2 / 255)
    assert motion(shaken) > 0.05


def test_what_cannot_be_measured_has_no_score():
    one = moving(1.0, frames=1)
    (alone,) = Motion()(["p"], [one])
    assert not alone.scored and "one frame cannot move" in alone.error
    with pytest.raises(ValueError, match="full_speed must be a positive number"):
        Motion(0.0)


def test_a_recipe_can_weigh_it_against_the_judges():
    made = read_recipe(RewardRecipe, "recipes/reward/miniature_views_motion.yaml")
    assert made.components["motion"].full_speed == 0.15
    alone = RewardRecipe(components={"motion": made.components["motion"]})
    assert load_reward(alone) == Motion(0.15)
    assert load_reward(alone).provenance["full_speed"] == "0.15"
