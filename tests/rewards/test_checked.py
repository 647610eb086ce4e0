"""What a reward may return wrong: it costs the video's own score, and neither a neighbour nor the ledger."""

import math

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.rewards.cached import cached
from cac_align.rewards.checked import checked_scores
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score


class ThirdParty:
    name, bounds = "third", (0.0, 1.0)
    provenance = {"reward": "third"}  # noqa: RUF012

    def __init__(self, second):
        self.second = second

    def __call__(self, prompts, videos):
        return [Score(0.5), self.second]


def with_field(field, value):
    """A Score that escaped its own checks."""
    score = Score(0.25)
    object.__setattr__(score, field, value)
    return score


WRONG = [None, 0.7, True, {}, np.zeros(3), object]
WRONG += [with_field("value", value) for value in (None, "1", True, math.nan, math.inf, 1j, 10**400, np.zeros(3))]
WRONG += [with_field("parts", value) for value in (None, 3, {"a": None}, {1: 2.0}, {"a": math.inf})]
WRONG += [
    with_field("evidence", {}),
    with_field("error", 3),
    with_field("error", "both"),
    with_field("provenance", "x"),
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_score_that_breaks_the_contract_is_missing_and_its_neighbour_is_filed(wrong, tmp_path):
    videos = [Video.open(np.full((5, 16, 16, 3), level, np.uint8), fps=16) for level in (0, 9)]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for reward in (cached(ThirdParty(wrong), ledger), combine({"a": ThirdParty(wrong), "b": ThirdParty(wrong)})):
        good, bad = reward(["p", "q"], videos)
        assert good.value == 0.5 and not bad.scored and bad.error
    assert [row["kind"] for row in Ledger(ledger.path).rows()] == ["score", "missing"]


class Raises(dict):
    def items(self):
        raise KeyError("its own")


def test_an_object_that_raises_when_it_is_looked_at_costs_its_own_score(tmp_path):
    videos = [Video.open(np.full((5, 16, 16, 3), level, np.uint8), fps=16) for level in (0, 9)]
    for field in ("parts", "provenance"):
        reward = ThirdParty(with_field(field, Raises(a=1.0)))
        good, bad = cached(reward, Ledger(tmp_path / f"{field}.jsonl"))(["p", "q"], videos)
        assert good.value == 0.5 and not bad.scored and "cannot be read: KeyError" in bad.error


class OtherIdentity(ThirdParty):
    def __init__(self, **changed):
        super().__init__(Score(0.25))
        vars(self).update(changed)


@pytest.mark.parametrize("provenance", [None, "text", {"a": 1}, {1: "a"}, {"a": 1j}, ["a"]], ids=repr)
def test_a_reward_whose_provenance_identifies_nothing_is_refused_before_it_is_asked(provenance, tmp_path):
    videos = [Video.open(np.full((5, 16, 16, 3), level, np.uint8), fps=16) for level in (0, 9)]
    reward = OtherIdentity(provenance=provenance)
    for asked in (cached(reward, Ledger(tmp_path / "a.jsonl")), combine({"a": reward})):
        with pytest.raises(ValueError, match="must map names to texts"):
            asked(["p", "q"], videos)


def test_a_reward_with_a_name_that_is_no_text_or_with_bounds_that_are_none_is_refused(tmp_path):
    videos = [Video.open(np.zeros((5, 16, 16, 3), np.uint8), fps=16)] * 2
    with pytest.raises(ValueError, match="name of a reward must be a text, received int"):
        cached(OtherIdentity(name=3), Ledger(tmp_path / "a.jsonl"))(["p", "q"], videos)
    for bounds in (True, (1.0, 0.0), (0.0, math.nan), (0.0, math.inf), ("a", "b"), (0.0,), 1j, np.zeros(3)):
        with pytest.raises(ValueError, match="two increasing numbers"):
            combine({"a": OtherIdentity(bounds=bounds)})


@pytest.mark.parametrize("returned", [None, 3, "ab", {}, [], [Score(0.5)] * 3, np.zeros(2)], ids=repr)
def test_without_one_score_per_video_nobody_knows_whose_they_are(returned):
    with pytest.raises(ValueError, match="2"):
        checked_scores("third", returned, 2)


def test_numbers_of_numpy_are_plain_afterwards():
    (score,) = checked_scores("third", [Score(np.float32(0.5), {"a": np.float64(1.0), "b": 2})], 1)
    assert score == Score(0.5, {"a": 1.0, "b": 2.0}) and type(score.value) is float and type(score.parts["a"]) is float
