"""The values of a judgement: exact JSON round trips, Eq. 7, boxes and windows."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cac_align.core.judgement import (
    ANOMALY_TYPES,
    LENGTH_UNVERIFIED,
    Anomaly,
    Box,
    Judgement,
    Turn,
    Window,
    hull,
    shown_frames,
)

FRAMES = tuple(range(0, 81, 4))
TIMES_S = tuple(index / 16 for index in FRAMES)


boxes = st.tuples(st.integers(0, 999), st.integers(0, 999), st.integers(1, 1000), st.integers(1, 1000)).map(
    lambda c: Box(c[0], c[1], min(c[0] + c[2], 1000), min(c[1] + c[3], 1000))
)


# ---- JSON ---------------------------------------------------------------------------------------------------------

log_p = st.none() | st.floats(max_value=0, allow_nan=False, allow_infinity=False)
windows = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).map(lambda ends: Window(min(ends), max(ends)))
anomalies = st.builds(
    Anomaly,
    type=st.sampled_from(ANOMALY_TYPES),
    window=st.none() | windows,
    reason=st.text(),
    region=st.text(),
    boxes=st.dictionaries(st.integers(0, 10_000), st.lists(boxes, max_size=3).map(tuple), max_size=3),
    saliency=st.sampled_from([None, "salient", "non-salient"]),
)
turns = st.builds(
    Turn,
    number=st.sampled_from([1, 2]),
    text=st.text(),
    frames=st.lists(st.integers(0, 10_000), max_size=5).map(tuple),
    status=st.sampled_from([None, "normal", "abnormal"]),
    anomalies=st.lists(anomalies, max_size=2).map(tuple),
    chain_of_thought=st.text(),
    faults=st.lists(st.text(), max_size=2).map(tuple),
    log_p_normal=log_p,
    log_p_abnormal=log_p,
)


@given(
    st.builds(
        Judgement,
        status=st.sampled_from([None, "normal", "abnormal"]),
        anomalies=st.lists(anomalies, max_size=2).map(tuple),
        turns=st.lists(turns, max_size=3).map(tuple),
        log_p_normal=log_p,
        log_p_abnormal=log_p,
        error=st.none() | st.text(),
    )
)
@settings(max_examples=60, deadline=None)
def test_a_judgement_round_trips_through_json(judgement: Judgement) -> None:
    again = Judgement.from_json(json.loads(json.dumps(judgement.to_json(), allow_nan=False)))
    assert again == judgement
    assert json.dumps(again.to_json()) == json.dumps(judgement.to_json())


# ---- Eq. 7 and the small values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_normal", "p_abnormal", "reward"),
    [(0.6, 0.2, 0.75), (0.2, 0.6, 0.25), (0.5, 0.5, 0.5), (1e-9, 1e-3, 1e-9 / (1e-9 + 1e-3))],
)
def test_the_reward_is_the_share_of_normal(p_normal: float, p_abnormal: float, reward: float) -> None:
    judgement = Judgement("normal", log_p_normal=math.log(p_normal), log_p_abnormal=math.log(p_abnormal))
    assert judgement.reward == pytest.approx(reward, rel=1e-12)
    assert judgement.mass == pytest.approx(p_normal + p_abnormal)
    assert judgement.log_odds == pytest.approx(math.log(p_normal / p_abnormal))


def test_extreme_odds_do_not_overflow() -> None:
    assert Judgement("normal", log_p_normal=0.0, log_p_abnormal=-5000.0).reward == 1.0
    assert Judgement("abnormal", log_p_normal=-5000.0, log_p_abnormal=0.0).reward == 0.0


def test_without_a_verdict_there_is_no_number() -> None:
    for judgement in (
        Judgement(None, error="dead server"),
        Judgement(None, log_p_normal=-0.1, log_p_abnormal=-3.0, error="bad window"),
        Judgement("normal", log_p_normal=-0.1),
        Judgement("normal"),
    ):
        assert math.isnan(judgement.reward)
    assert math.isnan(Judgement("normal").mass) and math.isnan(Judgement("normal").p_abnormal)


@pytest.mark.parametrize(
    ("ends", "said"),
    [((2, 1), "inverted"), ((-1, 1), "before the video"), ((math.nan, 1), "finite"), ((0, math.inf), "finite")],
)
def test_impossible_windows(ends: tuple[float, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Window(*ends)


def test_the_hull_of_windows() -> None:
    assert hull([Window(3, 4), Window(1, 2), Window(1.5, 3.5)]) == Window(1, 4)
    with pytest.raises(ValueError, match="at least one"):
        hull([])


def test_boxes_go_to_pixels_and_back() -> None:
    assert Box(0, 250, 500, 1000).to_pixels(832, 480) == (0.0, 120.0, 416.0, 480.0)
    assert Box.from_pixels(0, 120, 416, 480, 832, 480) == Box(0, 250, 500, 1000)
    assert Box.from_pixels(10, 10, 10.5, 10.5, 832, 480).area > 0
    assert Box.from_pixels(-50, -50, 9000, 9000, 832, 480) == Box(0, 0, 1000, 1000)
    assert Box.from_pixels(832, 480, 832, 480, 832, 480) == Box(999, 999, 1000, 1000)


@given(st.integers(0, 831), st.integers(0, 479), st.integers(1, 832), st.integers(1, 480))
def test_a_box_covers_the_pixels_it_was_made_from(left: int, top: int, width: int, height: int) -> None:
    right, bottom = min(left + width, 832), min(top + height, 480)
    box = Box.from_pixels(left, top, right, bottom, 832, 480)
    got = box.to_pixels(832, 480)
    assert got[0] <= left + 1e-9 and got[1] <= top + 1e-9 and got[2] >= right - 1e-9 and got[3] >= bottom - 1e-9
    assert left - got[0] < 0.833 and got[2] - right < 0.833  # one step of the grid


def test_anomalies_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Anomaly\.type must be one of"):
        Anomaly("Finger", None)
    with pytest.raises(ValueError, match="saliency must be"):
        Anomaly("Motion Anomalies", None, saliency="very")


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(1.0, 2.0), range(4, 9)),
        (Window(0.9, 1.6), range(4, 7)),
        (Window(1.1, 1.2), range(5, 6)),  # between two frames: the nearer one, at 1.25 s
        (Window(1.05, 1.1), range(4, 5)),
        (Window(5.0, 7.0), range(20, 21)),
        (Window(6.0, 7.0), range(20, 21)),  # behind the last frame: the last
    ],
)
def test_seconds_become_positions(window: Window, expected: range) -> None:
    assert shown_frames(window, TIMES_S) == expected


def test_warnings_survive_json_and_stand_there_only_where_there_are_some() -> None:
    judgement = Judgement("normal", warnings=(LENGTH_UNVERIFIED,))
    assert Judgement.from_json(json.loads(json.dumps(judgement.to_json()))) == judgement
    assert "warnings" not in Judgement("normal").to_json()
