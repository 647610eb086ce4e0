"""Augmentations: boxes and windows map back exactly, prompts follow the mirror, and the mean is worked out by hand."""

import json
import math

import numpy as np
import pytest

from cac_align.cac.augmentations import FOUR_PHASES, augment, transform_prompt, undo_augmentation
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


def square_detector(conversation):
    """A judge that calls a white square an anomaly, names the frames that show it, and boxes it."""
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


@pytest.mark.parametrize("augmentation", ["mirrored", "shifted", "reversed", "mirrored+reversed", "shifted+mirrored"])
def test_windows_and_boxes_map_back_to_the_unaltered_video(augmentation):
    video = clip((6, 20, 12), slice(8, 13))
    reward = CaC(ScriptedVlm(square_detector), tta=(augmentation,))
    (plain,), (augmented,) = CaC(ScriptedVlm(square_detector))([PROMPT], [video]), reward([PROMPT], [video])
    (truth,), (back,) = plain.evidence.anomalies, augmented.evidence.anomalies
    assert back.window == truth.window == Window(0.5, 0.75)
    assert set(back.boxes) == set(truth.boxes) and set(truth.boxes) >= {8, 12}
    for frame, boxes in truth.boxes.items():
        # An independent reading of the pixels: the square's edges in thousandths.
        assert boxes[0].to_json() == [94, 312, 281, 500]
        assert back.boxes[frame][0].to_json() == pytest.approx([94, 312, 281, 500], abs=1)
    assert augmented.evidence.turns[0].frames == plain.evidence.turns[0].frames
    assert augmented.provenance["tta"] == augmentation and "tta" not in plain.provenance


def test_each_augmentation_alters_the_pixels_as_documented():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    video = Video.open(pixels, fps=8)
    pixels_of = {name: augment(video, name).frames(range(5)).pixels for name in ("mirrored", "reversed", "shifted")}
    np.testing.assert_array_equal(pixels_of["mirrored"], pixels[:, :, ::-1])
    np.testing.assert_array_equal(pixels_of["reversed"], pixels[::-1])
    np.testing.assert_array_equal(pixels_of["shifted"][:, 2:, 3:], pixels[:, :-2, :-3])  # 64 / 32 and 96 / 32 px
    np.testing.assert_array_equal(pixels_of["shifted"][:, 0, 3:], pixels[:, 0, :-3])
    assert augment(video, "as_is") is video
    assert len({augment(video, name).content_hash for name in ("as_is", *pixels_of)}) == 4
    uneven = Video(8.0, (0.0, 0.1, 0.4), 4, 4, "uneven", np.zeros((3, 4, 4, 3), np.uint8))
    assert augment(uneven, "reversed").times_s == pytest.approx((0.0, 0.3, 0.4))


@pytest.mark.parametrize("augmentation", ["later", "later+mirrored", "reversed+later"])
def test_a_later_start_samples_the_frames_between(augmentation):
    """A defect on frames 9 to 11 lies between the sampled frames 8 and 12; a later start samples frame 10."""
    video = clip((6, 20, 12), slice(9, 12))
    (missed,) = CaC(ScriptedVlm(square_detector))([PROMPT], [video])
    (score,) = CaC(ScriptedVlm(square_detector), tta=(augmentation,))([PROMPT], [video])
    assert missed.evidence.status == "normal" and missed.evidence.turns[0].frames == (0, 4, 8, 12, 16)
    (found,) = score.evidence.anomalies
    assert score.evidence.turns[0].frames == (2, 6, 10, 14)
    assert set(found.boxes) == {10} and found.boxes[10][0].to_json() == [94, 312, 281, 500]
    assert found.window == Window(10 / 16, 10 / 16)


def test_four_starts_sample_every_frame_at_16_fps():
    """Of 17 frames each is in one of the four samples, so a defect of a single frame is always in one of them."""
    video = clip((6, 20, 12), slice(0, 0))
    scores = [
        CaC(ScriptedVlm(square_detector), tta=(augmentation,))([PROMPT], [video])[0] for augmentation in FOUR_PHASES
    ]
    shown = [score.evidence.turns[0].frames for score in scores]
    assert shown == [(0, 4, 8, 12, 16), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    for frame in range(1, 17):
        blink = clip((6, 20, 12), slice(frame, frame + 1))
        judgements = [
            CaC(ScriptedVlm(square_detector), tta=(augmentation,))([PROMPT], [blink])[0].evidence
            for augmentation in FOUR_PHASES
        ]
        assert [judgement.status for judgement in judgements].count("abnormal") == 1
        (found,) = next(judgement.anomalies for judgement in judgements if judgement.status == "abnormal")
        assert set(found.boxes) == {frame} and found.window == Window(frame / 16, frame / 16)


def test_a_later_start_on_an_uneven_clock_is_an_eighth_of_a_second_and_leaves_a_frame():
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 4, 3), np.uint8)
    uneven = Video(8.0, (0.0, 0.1, 0.4, 0.45, 0.6), 4, 4, "uneven", pixels)
    late, back = augment(uneven, "later"), augment(uneven, "reversed+later")
    assert late.times_s == pytest.approx((0.0, 0.05, 0.2)) and back.times_s == pytest.approx((0.0, 0.05, 0.35, 0.45))
    assert [frame.max() for frame in late.frames(range(3)).pixels] == [2, 3, 4]
    assert [frame.max() for frame in back.frames(range(4)).pixels] == [3, 2, 1, 0]
    short = Video(30.0, (0.0, 1 / 30), 4, 4, "short", pixels[:2])
    for augmentation, only in (("later", 1), ("reversed+later", 0)):
        assert len(augment(short, augmentation)) == 1 and augment(short, augmentation).frames([0]).pixels.max() == only


def test_left_and_right_are_swapped_in_mirrored_prompts_only():
    assert (
        transform_prompt("Left hand up, a car drifts rightwards", "mirrored+reversed")
        == "Right hand up, a car drifts leftwards"
    )
    assert (
        transform_prompt("the leftmost cup, Rightmost of three", "mirrored") == "the rightmost cup, Leftmost of three"
    )
    assert transform_prompt("a bright aright leftover", "mirrored") == "a bright aright leftover"
    assert transform_prompt("to the right", "reversed") == transform_prompt("to the right", "as_is") == "to the right"


def reply(status, normal, abnormal):
    from cac_align.vlm.protocol import Reply

    text = json.dumps({"COT": "c", "status": status, "anomalies": []})
    return Reply(text, {"normal": math.log(normal), "abnormal": math.log(abnormal)})


def test_r_is_that_of_the_mean_log_odds():
    # Log-odds log 9 and log(0.6 / 0.4): their mean is log √(9 · 1.5) = log 3.67423, so R = 3.67423 / 4.67423 = 0.78606.
    reward = CaC(ScriptedVlm([reply("normal", 0.9, 0.1), reply("normal", 0.6, 0.4)]), tta=("as_is", "mirrored"))
    (score,) = reward([PROMPT], [clip((6, 20, 12), slice(0, 0))])
    assert score.value == pytest.approx(0.78606, abs=1e-5)
    assert score.parts["log_odds"] == pytest.approx(math.log(3.67423), abs=1e-5)
    assert score.parts["log_odds/mirrored"] == pytest.approx(
        math.log(1.5)
    ) and score.evidence.p_normal == pytest.approx(0.9)


def half_blind(normal):
    """A judge that misses what is on the left and then says "normal" with this probability."""

    def look(conversation):
        shown = conversation[-1].frames.pixels
        left = shown.max() > 200 and np.nonzero(shown.max(axis=(0, 1, 3)) > 200)[0].min() < SIZE // 2
        return square_detector(conversation) if not left else reply("normal", normal, 1 - normal)

    return look


def test_the_evidence_is_the_first_judgement_that_agrees_with_the_mean():
    video = clip((6, 20, 12), slice(8, 13))

    # The square lies on the left and is missed (log-odds log 7/3); mirrored it is found (turn 2: log 1/9).
    (score,) = CaC(ScriptedVlm(half_blind(0.7)), tta=("as_is", "mirrored"))([PROMPT], [video])
    assert score.parts["log_odds"] == pytest.approx((math.log(7 / 3) - math.log(9)) / 2) and score.value < 0.5
    assert score.evidence.status == "abnormal" and score.evidence.anomalies[0].boxes[8][0].to_json()[
        0
    ] == pytest.approx(94, abs=1)


def test_the_threshold_decides_over_several_augmentations_and_never_overrules_a_single_one():
    video = clip((6, 20, 12), slice(8, 13))

    def verdict(threshold, *tta):
        reward = CaC(ScriptedVlm(half_blind(0.9)), tta=tta, threshold=threshold)
        (score,), (judgement,) = reward([PROMPT], [video]), reward.judge([PROMPT], [video])
        assert judgement == score.evidence and score.provenance.get("threshold", "0.0") == repr(threshold)
        return judgement.status, score.value

    # Two copies miss the square (log 9 each), the mirrored one finds it (log 1/9): mean log 9 / 3 = 0.7324, R = 0.67533.
    three = ("as_is", "mirrored", "reversed")
    assert verdict(0.0, *three) == verdict(0.73, *three) == ("normal", pytest.approx(0.67533, abs=1e-5))
    assert verdict(0.74, *three) == ("abnormal", pytest.approx(0.67533, abs=1e-5)), "R does not change"
    assert verdict(5.0, "as_is", "reversed")[0] == "normal", "no judgement is abnormal, so none has a window"
    assert verdict(5.0, "as_is")[0] == "normal" and verdict(-5.0, "mirrored")[0] == "abnormal"
    with pytest.raises(ValueError, match="threshold must be a finite log-odds, received nan"):
        CaC(ScriptedVlm([]), threshold=math.nan)


def test_a_copy_without_a_verdict_means_no_score():
    reward = CaC(ScriptedVlm([reply("normal", 0.9, 0.1), "no JSON", "still none"]), tta=("as_is", "mirrored"))
    (score,) = reward([PROMPT], [clip((6, 20, 12), slice(0, 0))])
    assert not score.scored and score.error.startswith("cac (mirrored): turn 1: no usable status")
    reward = CaC(ScriptedVlm([reply("normal", 0.9, 0.1), reply("normal", 1e-4, 1e-5)]), tta=("as_is", "mirrored"))
    (score,) = reward([PROMPT], [clip((6, 20, 12), slice(0, 0))])
    assert not score.scored and "cac (mirrored): P(normal) + P(abnormal) is only 0.00011" in score.error


def test_progress_counts_videos_not_copies():
    seen = []
    reward = CaC(ScriptedVlm(lambda _: reply("normal", 0.9, 0.1)), tta=("as_is", "mirrored", "reversed"))
    judgements = reward.judge([PROMPT] * 4, [clip((6, 20, 12), slice(0, 0))] * 4, progress=seen.append)
    assert sum(seen) == len(judgements) == 4


def test_tta_is_checked_and_comes_from_recipes():
    for wrong in (
        (),
        ("as_is", "as_is"),
        ("upside_down",),
        ("mirrored+mirrored",),
        ("later+later_1_16",),
        ("mirrored+reversed", "reversed+mirrored"),
    ):
        with pytest.raises(ValueError, match="augmentation"):
            CaC(ScriptedVlm([]), tta=wrong)
    made = load_reward(RewardRecipe(components={"cac": JudgeRecipe(tta=["as_is", "mirrored"], threshold=2.5)}))
    assert made.tta == ("as_is", "mirrored") and made.provenance["tta"] == "as_is, mirrored" and made.threshold == 2.5


def test_a_judgement_without_verdict_stays_one():
    failed = Judgement(None, error="video: cut off")
    assert undo_augmentation(failed, clip((6, 20, 12), slice(0, 0)), "mirrored") == failed
