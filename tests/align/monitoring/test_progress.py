"""The seconds of a step."""

from cac_align.align.monitoring.progress import step_seconds


def test_seconds_add_up():
    spent = step_seconds(10.0, {"model": 4.0, "vae": 1.0, "backward": 3.0}, reward_s=5.0, wait_s=0.5)
    assert spent["overlapped"] == 4.5 and spent["other"] == 1.5 and spent["optimizer"] == 0.0
