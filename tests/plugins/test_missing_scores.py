"""The failure policy: a missing score becomes an error or its group's mean, loudly, and never anything else."""

import logging
import math
import pickle

import pytest

from cac_align.plugins.common.missing_scores import (
    MAX_IN_A_ROW,
    MissingScoreError,
    MissingScorePolicy,
    ScoreCount,
    evaluation_values,
    training_values,
    values_or_none,
)
from cac_align.rewards.reward import Score


def neutral(group_size):
    return MissingScorePolicy("neutral", max_unscored_share=1.0, group_size=group_size)


def scores(*values):
    return [Score.missing("the judge was silent") if value is None else Score(value) for value in values]


def test_scores_pass_through_untouched():
    assert training_values(["a", "b"], scores(0.25, 0.75), MissingScorePolicy(), ScoreCount()) == [0.25, 0.75]
    assert training_values([], [], MissingScorePolicy(), ScoreCount()) == []


def test_raise_names_the_prompt_the_reason_and_the_policy():
    with pytest.raises(
        MissingScoreError, match=r"1 of 2 videos have no score \(policy raise, .*'b': the judge was silent"
    ):
        training_values(["a", "b"], scores(0.5, None), MissingScorePolicy("raise"), ScoreCount())


def test_neutral_is_the_mean_of_the_scored_members_of_its_own_prompt(caplog):
    prompts = ["a", "a", "b", "a", "b"]
    with caplog.at_level(logging.WARNING):
        sent = training_values(prompts, scores(0.2, None, 0.9, 0.6, 0.1), neutral(3), ScoreCount())
    assert sent == [0.2, pytest.approx(0.4), 0.9, 0.6, 0.1]  # (0.2 + 0.6) / 2; b's 0.9 and 0.1 play no part
    group = [sent[0], sent[1], sent[3]]
    assert sent[1] - sum(group) / 3 == pytest.approx(0)  # hence advantage 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert "policy neutral" in line and "1 of 5 unscored (20.0%)" in line and "the judge was silent" in line


def test_a_group_without_any_score_gets_one_number_for_all_and_a_call_without_any_raises():
    sent = training_values(["a", "a", "b", "b"], scores(None, None, 0.5, 0.7), neutral(2), ScoreCount())
    assert sent[0] == sent[1] and sent[2:] == [0.5, 0.7]  # nobody of group a has an advantage
    with pytest.raises(MissingScoreError, match="no video of this prompt's group has a score"):
        training_values(["a", "a"], scores(None, None), neutral(2), ScoreCount())


def test_the_mean_of_a_fragment_is_not_neutral():
    # flow_grpo's geometry: 2 of a group's 16 videos per call. The sibling's 0.1 for the missing one would be an advantage of
    # (0.1 - 0.8) / 0.2646 = -2.65: the group would be 14 × 0.9 and 2 × 0.1, mean 0.8, std √(0.875 × 0.125) × 0.8 = 0.2646.
    group = [0.9] * 14 + [0.1, 0.1]
    mean = math.fsum(group) / 16
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in group) / 16)
    assert (0.1 - mean) / std == pytest.approx(-2.6458, abs=1e-4)
    with pytest.raises(
        MissingScoreError, match="holds 2 videos of the prompt and its group 16: the mean of another set is not neutral"
    ):
        training_values(["a", "a"], scores(0.1, None), neutral(16), ScoreCount())
    with pytest.raises(
        MissingScoreError, match="holds 4 videos of the prompt and its group 2"
    ):  # two groups of one prompt
        training_values(["a"] * 4, scores(0.1, None, 0.9, 0.9), neutral(2), ScoreCount())
    assert training_values(["a", "a"], scores(0.1, 0.2), neutral(16), ScoreCount()) == [0.1, 0.2]  # nothing is missing


def test_none_is_counted_too():
    policy, count = MissingScorePolicy(max_unscored_share=0.25, min_seen=4), ScoreCount()
    assert values_or_none(["a", "b"], scores(0.5, None), policy, count) == [0.5, None]
    with pytest.raises(MissingScoreError, match="this run: 2 of 4 unscored"):
        values_or_none(["a", "b"], scores(0.5, None), policy, count)


def test_the_budget_stops_the_run_once_enough_videos_were_seen():
    policy, count = MissingScorePolicy("neutral", max_unscored_share=0.25, min_seen=8, group_size=2), ScoreCount()
    for _ in range(3):
        training_values(["a", "a"], scores(0.5, None), policy, count)  # 50 % of 2, 4, 6 videos: too few to judge
    with pytest.raises(
        MissingScoreError,
        match=r"too many videos without a score \(policy neutral, at most 25.0% unscored; this run: 4 of 8",
    ):
        training_values(["a", "a"], scores(0.5, None), policy, count)


def test_the_count_survives_pickling():
    count = ScoreCount()
    count.add(scores(None, 0.1, 0.2))
    assert pickle.loads(pickle.dumps(count)).add(scores(None)) == (4, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_missing": "zero"},
        {"on_missing_evaluation": "zero"},
        {"max_unscored_share": 2},
        {"min_seen": 0},
        {"group_size": 1},
    ],
)
def test_a_wrong_policy_is_refused(wrong):
    with pytest.raises(ValueError, match="received"):
        MissingScorePolicy(**wrong)


def test_one_clip_does_not_end_a_run_and_a_lasting_share_does():
    count, policy = ScoreCount(), MissingScorePolicy()
    for _ in range(200 // 4 - 1):
        training_values(["a"] * 4, scores(0.1, 0.2, 0.3, 0.4), policy, count)
    training_values(["a"] * 4, scores(0.1, None, 0.3, 0.4), policy, count)  # 1 of 200
    with pytest.raises(MissingScoreError, match="too many videos without a score"):
        for _ in range(4):  # 5 of 216
            training_values(["a"] * 4, scores(0.1, None, 0.3, 0.4), policy, count)


def test_a_judge_that_is_gone_ends_the_run_before_the_share_is_judged():
    count, policy = ScoreCount(), MissingScorePolicy(min_seen=10**6)
    with pytest.raises(MissingScoreError, match=f"{MAX_IN_A_ROW} videos in a row"):
        for _ in range(MAX_IN_A_ROW):
            evaluation_values(["a"], scores(None), policy, count)
    assert count.seen == MAX_IN_A_ROW


def test_an_evaluation_leaves_a_missing_score_out_and_counts_it(caplog):
    policy, count = MissingScorePolicy(), ScoreCount()
    sent = evaluation_values(["a", "b", "c"], scores(0.2, None, 0.6), policy, count)
    assert sum(sent) / 3 == pytest.approx((0.2 + 0.6) / 2)  # the host's mean is that of the scored
    assert "1 of 3 unscored" in caplog.records[0].getMessage() and count.unscored == 1
    assert evaluation_values(["a", "b"], scores(0.2, None), policy, count, left_out=-10.0) == [0.2, -10.0]
    assert math.isnan(evaluation_values(["a"], scores(None), policy, count)[0])  # no number that no judge gave
    with pytest.raises(MissingScoreError, match="1 of 2 evaluation videos"):
        evaluation_values(
            ["a", "b"], scores(0.2, None), MissingScorePolicy(on_missing_evaluation="raise"), ScoreCount()
        )
