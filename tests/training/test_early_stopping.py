"""Stage 3's early stopping: nothing while all is well, one sentence when the figures say collapse."""

import pytest

from cac_align.training.early_stopping import EarlyStopping, stop_reason

WELL = {"normal_rate": 0.5, "answer_tokens": 100.0, "malformed": 0.02, "unscored": 0.0, "zero_std_groups": 0.3}


def rows(count, **changes):
    return [{**WELL} for _ in range(5)] + [{**WELL, **changes} for _ in range(count)]


def test_all_is_well_or_too_early():
    limits = EarlyStopping(patience=5)
    assert stop_reason(rows(20), limits) is None
    assert stop_reason(rows(0, normal_rate=1.0)[:4], limits) is None
    assert (
        stop_reason([*rows(3, normal_rate=1.0), {"held_out_reward": 1.0}], limits) is None
    )  # a mean, not one bad step


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"normal_rate": 1.0, "answer_tokens": 11.0},
            "100.0% of all rollouts say normal over the last 5 steps, with answers of 11 tokens",
        ),
        ({"normal_rate": 0.0}, "say abnormal"),
        ({"answer_tokens": 10.0}, "answers shrank from 100 to 10 tokens"),
        ({"malformed": 0.8}, "80.0% of rollouts are malformed"),
        # cut off or unreadable: no rollout has a verdict, which is no collapse to "abnormal"
        (
            {"malformed": 0.98, "normal_rate": 0.0},
            "98.0% of rollouts are malformed over the last 5 steps (limit 50%); train stage 2 longer",
        ),
        ({"unscored": 0.5}, "50.0% of rollouts are unscored"),
        ({"zero_std_groups": 1.0}, "100.0% of groups have rewards without a spread"),
    ],
)
def test_collapse_is_one_sentence(changes, told):
    said = stop_reason(rows(5, **changes), EarlyStopping(patience=5))
    assert told in said and "\n" not in said


def test_limits_can_be_switched_off():
    limits = EarlyStopping(patience=5, max_same_verdict=1.0, max_zero_std_groups=1.0, min_length_ratio=0.0)
    assert stop_reason(rows(5, normal_rate=1.0, answer_tokens=1.0, zero_std_groups=1.0), limits) is None
    with pytest.raises(ValueError, match="at least 1 step"):
        EarlyStopping(patience=0)
