"""Views: where things lie comes back exactly, prompts turn with the picture, and the mean is worked out by hand."""

import json
import math

import numpy as np
import pytest

from cac_align.cac.augmentations import FOUR_PHASES, told, unviewed, viewed
from cac_align.core.judgement import Judgement, Window
from cac_align.core.video import Video
from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward
from cac_align.rewards.cac import CaC
from cac_align.vlm.scripted import ScriptedVlm

PROMPT = "a red ball rolls to the right"
SIZE, FRAMES = 64, 17


def clip(where, when):
    """Grey, with a white square at x, y, side (px) in frames ``when``."""
    pixels = np.full((FRAMES, SIZE, SIZE, 3), 90, np.uint8)
    x, y, side = where
    pixels[when, y : y + side, x : x + side] = 255
    return Video.open(pixels, fps=16)


def eye(conversation):
    """A judge that really looks: it calls a white square an anomaly, says in which of the frames shown it is, and boxes it."""
    frames = next(message.frames for message in conversation if message.frames is not None)
    white = [number for number, frame in enumerate(frames.pixels) if frame.max() > 200]
    if not white:
        return json.dumps({"COT": "clean", "status": "normal", "anomalies": []})
    boxes = {}
    for number in white:
        rows, columns = np.nonzero(frames.pixels[number, ..., 0] > 200)
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        boxes[f"Frame {number}"] = [round(1000 * int(edge) / SIZE) for edge in edges]
    item = {"Attributed Label": "Object Distortion", "Reason for Anomaly": "a white square", "Problem Region": "there"}
    if "Attributed Time Region" in conversation[-1].text:
        item["Attributed Time Region"] = f"Frame {white[0]}-{white[-1]}"
    item["BBOX"] = boxes
    return json.dumps({"COT": "look", "status": "abnormal", "anomalies": [item]})


@pytest.mark.parametrize("view", ["mirrored", "shifted", "reversed", "mirrored+reversed", "shifted+mirrored"])
def test_what_is_seen_in_a_view_comes_back_to_where_it_is(view):
    video = clip((6, 20, 12), slice(8, 13))
    reward = CaC(ScriptedVlm(eye), views=(view,))
    (plain,), (seen,) = CaC(ScriptedVlm(eye))([PROMPT], [video]), reward([PROMPT], [video])
    (truth,), (back,) = plain.evidence.anomalies, seen.evidence.anomalies
    assert back.window == truth.window == Window(0.5, 0.75)
    assert set(back.boxes) == set(truth.boxes) and set(truth.boxes) >= {8, 12}
    for frame, boxes in truth.boxes.items():
        # An independent reading of the pixels: the square's edges in thousandths.
        assert boxes[0].to_json() == [94, 312, 281, 500]
        assert back.boxes[frame][0].to_json() == pytest.approx([94, 312, 281, 500], abs=1)
    assert seen.evidence.turns[0].frames == plain.evidence.turns[0].frames
    assert seen.provenance["views"] == view and "views" not in plain.provenance


def test_a_view_is_the_picture_it_says_it_is():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    video = Video.open(pixels, fps=8)
    seen = {name: viewed(video, name).frames(range(5)).pixels for name in ("mirrored", "reversed", "shifted")}
    np.testing.assert_array_equal(seen["mirrored"], pixels[:, :, ::-1])
    np.testing.assert_array_equal(seen["reversed"], pixels[::-1])
    np.testing.assert_array_equal(seen["shifted"][:, 2:, 3:], pixels[:, :-2, :-3])  # 64 / 32 and 96 / 32 px
    np.testing.assert_array_equal(seen["shifted"][:, 0, 3:], pixels[:, 0, :-3])
    assert viewed(video, "as_is") is video
    assert len({viewed(video, name).content_hash for name in ("as_is", *seen)}) == 4
    uneven = Video(8.0, (0.0, 0.1, 0.4), 4, 4, "uneven", np.zeros((3, 4, 4, 3), np.uint8))
    assert viewed(uneven, "reversed").times_s == pytest.approx((0.0, 0.3, 0.4))


@pytest.mark.parametrize("view", ["later", "later+mirrored", "reversed+later"])
def test_later_scans_the_frames_between(view):
    """A defect on frames 9 to 11 lies between the scan's 8 and 12 and on the later scan's 10; it comes back in the video's own clock."""
    video = clip((6, 20, 12), slice(9, 12))
    (missed,) = CaC(ScriptedVlm(eye))([PROMPT], [video])
    (score,) = CaC(ScriptedVlm(eye), views=(view,))([PROMPT], [video])
    assert missed.evidence.status == "normal" and missed.evidence.turns[0].frames == (0, 4, 8, 12, 16)
    (found,) = score.evidence.anomalies
    assert score.evidence.turns[0].frames == (2, 6, 10, 14)
    assert set(found.boxes) == {10} and found.boxes[10][0].to_json() == [94, 312, 281, 500]
    assert found.window == Window(10 / 16, 10 / 16)


def test_four_beginnings_show_every_frame_at_16_fps():
    """The scans of a video of 17 frames: each frame in one of them, and a defect of any one frame before one of them."""
    video = clip((6, 20, 12), slice(0, 0))
    scores = [CaC(ScriptedVlm(eye), views=(view,))([PROMPT], [video])[0] for view in FOUR_PHASES]
    shown = [score.evidence.turns[0].frames for score in scores]
    assert shown == [(0, 4, 8, 12, 16), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    for frame in range(1, 17):
        blink = clip((6, 20, 12), slice(frame, frame + 1))
        told = [CaC(ScriptedVlm(eye), views=(view,))([PROMPT], [blink])[0].evidence for view in FOUR_PHASES]
        assert [judgement.status for judgement in told].count("abnormal") == 1
        (found,) = next(judgement.anomalies for judgement in told if judgement.status == "abnormal")
        assert set(found.boxes) == {frame} and found.window == Window(frame / 16, frame / 16)


def test_later_is_an_eighth_of_a_second_of_an_uneven_clock_and_leaves_a_frame():
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 4, 3), np.uint8)
    uneven = Video(8.0, (0.0, 0.1, 0.4, 0.45, 0.6), 4, 4, "uneven", pixels)
    late, back = viewed(uneven, "later"), viewed(uneven, "reversed+later")
    assert late.times_s == pytest.approx((0.0, 0.05, 0.2)) and back.times_s == pytest.approx((0.0, 0.05, 0.35, 0.45))
    assert [frame.max() for frame in late.frames(range(3)).pixels] == [2, 3, 4]
    assert [frame.max() for frame in back.frames(range(4)).pixels] == [3, 2, 1, 0]
    short = Video(30.0, (0.0, 1 / 30), 4, 4, "short", pixels[:2])
    for view, only in (("later", 1), ("reversed+later", 0)):
        assert len(viewed(short, view)) == 1 and viewed(short, view).frames([0]).pixels.max() == only


def test_left_and_right_change_places_in_a_mirror_only():
    assert told("Left hand up, a car drifts rightwards", "mirrored+reversed") == "Right hand up, a car drifts leftwards"
    assert told("the leftmost cup, Rightmost of three", "mirrored") == "the rightmost cup, Leftmost of three"
    assert told("a bright aright leftover", "mirrored") == "a bright aright leftover"
    assert told("to the right", "reversed") == told("to the right", "as_is") == "to the right"


def said(status, normal, abnormal):
    from cac_align.vlm.protocol import Reply

    text = json.dumps({"COT": "c", "status": status, "anomalies": []})
    return Reply(text, {"normal": math.log(normal), "abnormal": math.log(abnormal)})


def test_r_is_that_of_the_mean_log_odds():
    # Log-odds log 9 and log(0.6 / 0.4): their mean is log √(9 · 1.5) = log 3.67423, so R = 3.67423 / 4.67423 = 0.78606.
    reward = CaC(ScriptedVlm([said("normal", 0.9, 0.1), said("normal", 0.6, 0.4)]), views=("as_is", "mirrored"))
    (score,) = reward([PROMPT], [clip((6, 20, 12), slice(0, 0))])
    assert score.value == pytest.approx(0.78606, abs=1e-5)
    assert score.parts["log_odds"] == pytest.approx(math.log(3.67423), abs=1e-5)
    assert score.parts["log_odds/mirrored"] == pytest.approx(
        math.log(1.5)
    ) and score.evidence.p_normal == pytest.approx(0.9)


def half_blind(normal):
    """An eye that overlooks what is on the left, as surely as P(normal) says."""

    def look(conversation):
        shown = conversation[-1].frames.pixels
        left = shown.max() > 200 and np.nonzero(shown.max(axis=(0, 1, 3)) > 200)[0].min() < SIZE // 2
        return eye(conversation) if not left else said("normal", normal, 1 - normal)

    return look


def test_the_evidence_is_the_first_view_that_says_what_the_mean_says():
    video = clip((6, 20, 12), slice(8, 13))

    # As it is the square lies on the left and is overlooked (log-odds log 7/3); mirrored it is seen (turn 2: log 1/9).
    (score,) = CaC(ScriptedVlm(half_blind(0.7)), views=("as_is", "mirrored"))([PROMPT], [video])
    assert score.parts["log_odds"] == pytest.approx((math.log(7 / 3) - math.log(9)) / 2) and score.value < 0.5
    assert score.evidence.status == "abnormal" and score.evidence.anomalies[0].boxes[8][0].to_json()[
        0
    ] == pytest.approx(94, abs=1)


def test_several_views_have_a_threshold_of_their_own_and_one_is_never_overruled():
    video = clip((6, 20, 12), slice(8, 13))

    def verdict(threshold, *views):
        reward = CaC(ScriptedVlm(half_blind(0.9)), views=views, threshold=threshold)
        (score,), (judgement,) = reward([PROMPT], [video]), reward.judge([PROMPT], [video])
        assert judgement == score.evidence and score.provenance.get("threshold", "0.0") == repr(threshold)
        return judgement.status, score.value

    # Two views overlook the square (log 9 each), the mirrored one sees it (log 1/9): their mean is log 9 / 3 = 0.7324, R = 0.67533.
    three = ("as_is", "mirrored", "reversed")
    assert verdict(0.0, *three) == verdict(0.73, *three) == ("normal", pytest.approx(0.67533, abs=1e-5))
    assert verdict(0.74, *three) == ("abnormal", pytest.approx(0.67533, abs=1e-5)), "R does not move"
    assert verdict(5.0, "as_is", "reversed")[0] == "normal", "no view says abnormal, so nobody has a window for it"
    assert verdict(5.0, "as_is")[0] == "normal" and verdict(-5.0, "mirrored")[0] == "abnormal"
    with pytest.raises(ValueError, match="threshold must be a finite log-odds, received nan"):
        CaC(ScriptedVlm([]), threshold=math.nan)


def test_a_view_without_a_verdict_leaves_no_score():
    reward = CaC(ScriptedVlm([said("normal", 0.9, 0.1), "no JSON", "still none"]), views=("as_is", "mirrored"))
    (score,) = reward([PROMPT], [clip((6, 20, 12), slice(0, 0))])
    assert not score.scored and score.error.startswith("cac (mirrored): turn 1: no usable status")
    reward = CaC(ScriptedVlm([said("normal", 0.9, 0.1), said("normal", 1e-4, 1e-5)]), views=("as_is", "mirrored"))
    (score,) = reward([PROMPT], [clip((6, 20, 12), slice(0, 0))])
    assert not score.scored and "cac (mirrored): the verdict's two words hold only 0.00011" in score.error


def test_progress_counts_videos_not_views():
    seen = []
    reward = CaC(ScriptedVlm(lambda _: said("normal", 0.9, 0.1)), views=("as_is", "mirrored", "reversed"))
    judgements = reward.judge([PROMPT] * 4, [clip((6, 20, 12), slice(0, 0))] * 4, progress=seen.append)
    assert sum(seen) == len(judgements) == 4


def test_views_are_checked_and_come_from_recipes():
    for wrong in (
        (),
        ("as_is", "as_is"),
        ("upside_down",),
        ("mirrored+mirrored",),
        ("later+later_1_16",),
        ("mirrored+reversed", "reversed+mirrored"),
    ):
        with pytest.raises(ValueError, match="view"):
            CaC(ScriptedVlm([]), views=wrong)
    made = load_reward(RewardRecipe(components={"cac": JudgeRecipe(views=["as_is", "mirrored"], threshold=2.5)}))
    assert (
        made.views == ("as_is", "mirrored") and made.provenance["views"] == "as_is, mirrored" and made.threshold == 2.5
    )


def test_a_judgement_without_verdict_stays_one():
    failed = Judgement(None, error="video: cut off")
    assert unviewed(failed, clip((6, 20, 12), slice(0, 0)), "mirrored") == failed
