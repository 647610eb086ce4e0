"""The recipe section ``run``: which steps are taken at which rate, and what it refuses."""

import pytest

from cac_align.training.run import RunConfig


def test_a_run_may_end_early_on_the_schedule_of_all_steps():
    config = RunConfig(steps=11, warmup_steps=2, lr=2.0, min_lr_ratio=0.2, stop_after=4)
    assert config.last_step == 4 and RunConfig(steps=11).last_step == 11
    assert [config.lr_at(step) for step in (0, 1, 2, 10)] == pytest.approx([1.0, 2.0, 2.0, 0.4])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "run.steps must be at least 1, received 0"),
        ({"lr": 0.0}, "run.lr and run.max_grad_norm must be positive"),
        ({"track": "mlflow"}, "run.track must be 'tensorboard', 'wandb' or '', received 'mlflow'"),
    ],
)
def test_a_wrong_section_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**changes)
