"""The failure policy: a missing score becomes an error or its group's mean, loudly, and never anything else."""

import logging
import pickle

import pytest

from cac_align.plugins.failure import Policy, Tally, Unscored, numbers
from cac_align.rewards.reward import Score

NEUTRAL = Policy("neutral", max_unscored_share=1.0)


def scores(*values):
    return [Score.missing("the judge was silent") if value is None else Score(value) for value in values]


def test_scores_pass_through_untouched():
    assert numbers(["a", "b"], scores(0.25, 0.75), Policy(), Tally()) == [0.25, 0.75]
    assert numbers([], [], Policy(), Tally()) == []


def test_raise_names_the_prompt_the_reason_and_the_policy():
    with pytest.raises(Unscored, match=r"1 of 2 videos have no score \(policy raise, .*'b': the judge was silent"):
        numbers(["a", "b"], scores(0.5, None), Policy(), Tally())


def test_neutral_is_the_mean_of_the_scored_members_of_its_own_prompt(caplog):
    prompts = ["a", "a", "b", "a", "b"]
    with caplog.at_level(logging.WARNING):
        sent = numbers(prompts, scores(0.2, None, 0.9, 0.6, 0.1), NEUTRAL, Tally())
    assert sent == [0.2, pytest.approx(0.4), 0.9, 0.6, 0.1]  # (0.2 + 0.6) / 2; b's 0.9 and 0.1 play no part
    group = [sent[0], sent[1], sent[3]]
    assert sent[1] - sum(group) / 3 == pytest.approx(0)  # hence advantage 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert "policy neutral" in line and "1 of 5 unscored (20.0%)" in line and "the judge was silent" in line


def test_a_group_without_any_score_has_no_neutral_value():
    with pytest.raises(Unscored, match="no video of this prompt's group has a score"):
        numbers(["a", "b"], scores(None, 0.5), NEUTRAL, Tally())


def test_the_budget_stops_the_run_once_enough_videos_were_seen():
    policy, tally = Policy("neutral", max_unscored_share=0.25, min_seen=8), Tally()
    for _ in range(3):
        numbers(["a", "a"], scores(0.5, None), policy, tally)  # 50 % of 2, 4, 6 videos: too few to judge
    with pytest.raises(
        Unscored, match=r"too many videos without a score \(policy neutral, at most 25.0% unscored; this run: 4 of 8"
    ):
        numbers(["a", "a"], scores(0.5, None), policy, tally)


def test_the_tally_survives_pickling():
    tally = Tally()
    tally.count(scores(None, 0.1, 0.2))
    assert pickle.loads(pickle.dumps(tally)).count(scores(None)) == (4, 2)


@pytest.mark.parametrize("wrong", [{"on_missing": "zero"}, {"max_unscored_share": 2}, {"min_seen": 0}])
def test_a_wrong_policy_is_refused(wrong):
    with pytest.raises(ValueError, match="received"):
        Policy(**wrong)
