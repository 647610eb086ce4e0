"""The repair loop with a judge that looks at pixels and a backend that paints: what is kept, what it costs, what is resumed."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, pixel_mask
from cac_align.generation.repair.accept import AcceptRule, Assessment, compare
from cac_align.generation.repair.assess import Assessor
from cac_align.generation.repair.loop import repair_videos
from cac_align.generation.repair.resample import RepairedClip
from cac_align.generation.repair.settings import RepairSettings
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score
from tests.support.tiny_flow import every

PROMPT = "a grey field"
WHITE, GREY, BLACK = 230, 128, 20
FRAMES, SIZE = 9, 64


@dataclass
class WhiteSpots:
    """White is a defect: each white quadrant of the middle frames is an anomaly, and the score falls with their number."""

    gone_after: float = math.inf
    place: bool = True
    calls: int = 0
    name: str = "spots"
    bounds: tuple = (0.0, 1.0)
    provenance: dict = field(default_factory=lambda: {"reward": "spots"})

    def __call__(self, prompts, videos):
        return [self.one(video) for video in videos]

    def one(self, video):
        self.calls += 1
        if self.calls > self.gone_after:
            return Score.missing("connection refused")
        middle = every(video)[FRAMES // 2].mean(-1)
        anomalies = []
        for row, column in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            x, y = 32 * column, 32 * row
            if middle[y : y + 32, x : x + 32].max() > 200:
                box = Box.from_pixels(x + 8, y + 8, x + 24, y + 24, SIZE, SIZE)
                boxes = {4: (box,)} if self.place else {}
                anomalies.append(
                    Anomaly("Object Distortion", Window(3 / 8, 5 / 8) if self.place else None, boxes=boxes)
                )
        judgement = Judgement("abnormal" if anomalies else "normal", tuple(anomalies))
        return Score(0.9 - 0.2 * len(anomalies), evidence=judgement)


class Brightness:
    """A guard: nothing may get much darker."""

    name, bounds, provenance = "brightness", (0.0, 1.0), {"reward": "brightness"}

    def __call__(self, prompts, videos):
        return [Score(float(every(video).mean()) / 255) for video in videos]


@dataclass
class Painter:
    """Paints the mask in one shade per attempt. wanted: shades by seed."""

    shades: list
    made: list = field(default_factory=list)
    provenance: dict = field(default_factory=lambda: {"repair": "painter"})

    def grid(self, video):
        return LatentGrid(len(video), video.height, video.width, 4, 8)

    def steps(self, strength):
        return round(10 * strength)

    def __call__(self, request):
        self.made.append(request)
        shade = self.shades[request.seed % len(self.shades)]
        if shade is None:
            raise ValueError("the model's output is not finite")
        pixels = every(request.video).copy()
        pixels[pixel_mask(request.weights, self.grid(request.video))] = shade
        video = Video.open(pixels, fps=request.video.fps)
        return RepairedClip(video, None, self.steps(request.strength), request.video)


def spotted(path, *quadrants):
    """A grey video with a white spot in some quadrants of its middle frames."""
    pixels = np.full((FRAMES, SIZE, SIZE, 3), GREY, np.uint8)
    for row, column in quadrants:
        pixels[3:6, 32 * row + 8 : 32 * row + 24, 32 * column + 8 : 32 * column + 24] = WHITE
    write_mp4(path, pixels, 8)
    return Video.open(path)


def run(out, videos, painter, judge=None, *, settings=None, **more):
    out.mkdir(exist_ok=True)
    assessor = Assessor(judge or WhiteSpots(), {"brightness": Brightness()}, Ledger(out / "ledger.jsonl"))
    return repair_videos(videos, [PROMPT] * len(videos), painter, assessor, settings or RepairSettings(), out, **more)


def rows(out):
    return [json.loads(line) for line in (out / "attempts.jsonl").read_text().splitlines()]


def test_a_defect_is_mended_and_the_rest_and_the_original_stay(tmp_path):
    original = spotted(tmp_path / "one.mp4", (0, 0))
    before = (tmp_path / "one.mp4").read_bytes()
    (result,) = run(tmp_path / "out", [original], Painter([GREY]))
    assert (result.status, result.attempts) == ("mended", 1)
    assert result.before == pytest.approx(0.7) and result.after == pytest.approx(0.9)
    assert (tmp_path / "one.mp4").read_bytes() == before
    mended = every(Video.open(result.path)).astype(int)
    assert Path(result.path).parent == tmp_path / "out" / "videos"
    assert abs(mended[4, 12:20, 12:20] - GREY).max() < 16 and abs(mended[:, 32:, 32:] - GREY).max() < 16
    judged, attempt = rows(tmp_path / "out")
    assert judged["attempt"] == 0 and attempt["attempt"] == 1 and attempt["accepted"]
    assert attempt["outside"]["max"] <= 8  # what the mp4's codec does
    assert judged["costs"] == {"clips": 0, "frame_steps": 0, "judge_calls": 2, "judge_tokens": None}
    assert attempt["costs"] == {"clips": 1, "frame_steps": 9 * 9, "judge_calls": 2, "judge_tokens": None}


def test_failed_attempts_get_new_seeds_and_more_strength_until_none_is_left(tmp_path):
    painter = Painter([WHITE])
    settings = RepairSettings(attempts=3, strength=0.9, strength_growth=0.06)
    (result,) = run(tmp_path / "out", [spotted(tmp_path / "one.mp4", (0, 0))], painter, settings=settings)
    assert (
        result.status == "kept" and result.path == str(tmp_path / "one.mp4") and "no attempt is left" in result.reason
    )
    assert [(each.seed, round(each.strength, 2)) for each in painter.made] == [(0, 0.9), (1, 0.96), (2, 1.0)]
    assert not any(row["accepted"] for row in rows(tmp_path / "out")[1:])
    assert list((tmp_path / "out" / "videos").iterdir()) == []


def test_a_guard_that_falls_stops_what_the_judge_likes(tmp_path):
    (result,) = run(tmp_path / "out", [spotted(tmp_path / "one.mp4", (0, 0))], Painter([BLACK, GREY]))
    first, second = rows(tmp_path / "out")[1:]
    assert not first["accepted"] and "brightness fell" in first["reason"] and first["after"]["score"] > 0.8
    assert second["accepted"] and result.status == "mended" and result.attempts == 2


def test_all_windows_at_once_or_the_worst_alone(tmp_path):
    video = spotted(tmp_path / "two.mp4", (0, 0), (1, 1))
    (every_window,) = run(tmp_path / "all", [video], Painter([GREY]), settings=RepairSettings(grow=0))
    assert (every_window.status, every_window.attempts) == ("mended", 1)
    painter = Painter([GREY])
    (one_window,) = run(tmp_path / "worst", [video], painter, settings=RepairSettings(windows="worst", grow=0))
    assert (one_window.status, one_window.attempts) == ("mended", 2)
    first, second = painter.made  # the second one goes on from the repair that was kept
    assert first.video.path == video.path and "attempts" in str(second.video.path)
    assert first.weights[1, 0, 0] != second.weights[1, 0, 0]


def test_half_of_the_defects_gone_is_better_and_kept_but_not_called_mended(tmp_path):
    settings = RepairSettings(windows="worst", attempts=1)
    (result,) = run(
        tmp_path / "out", [spotted(tmp_path / "two.mp4", (0, 0), (1, 1))], Painter([GREY]), settings=settings
    )
    assert result.status == "improved" and result.after == pytest.approx(0.7) and "videos" in result.path


def test_a_clip_without_a_place_or_with_a_defect_all_over_is_advised_a_new_seed(tmp_path):
    painter = Painter([GREY])
    video = spotted(tmp_path / "one.mp4", (0, 0))
    (nowhere,) = run(tmp_path / "a", [video], painter, WhiteSpots(place=False))
    (wide,) = run(tmp_path / "b", [video], painter, settings=RepairSettings(max_share=0.1))
    for result in (nowhere, wide):
        assert result.status == "not local" and "another seed" in result.reason
        assert result.path == str(tmp_path / "one.mp4") and result.costs.clips == 0
    assert painter.made == []
    (normal,) = run(tmp_path / "c", [spotted(tmp_path / "none.mp4")], painter)
    assert normal.status == "normal" and painter.made == []


def test_a_budget_of_frame_steps_or_judge_calls_is_never_passed(tmp_path):
    video = spotted(tmp_path / "one.mp4", (0, 0))
    (short,) = run(tmp_path / "a", [video], Painter([WHITE]), settings=RepairSettings(max_frame_steps=170))
    assert short.costs.frame_steps == 9 * 9 and short.attempts == 1 and "max_frame_steps 170" in short.reason
    (mute,) = run(tmp_path / "b", [video], Painter([WHITE]), settings=RepairSettings(max_judge_calls=5))
    assert mute.costs.judge_calls == 4 and mute.attempts == 1 and "max_judge_calls 5" in mute.reason


def test_a_judge_that_goes_ends_the_run_and_the_same_call_goes_on(tmp_path):
    video, painter = spotted(tmp_path / "one.mp4", (0, 0)), Painter([GREY])
    settings = RepairSettings(attempts=5)
    with pytest.raises(ValueError, match="no verdict on 3 repairs in a row .connection refused"):
        run(tmp_path / "out", [video], painter, WhiteSpots(gone_after=1), settings=settings)
    unread = rows(tmp_path / "out")[1:]
    assert len(unread) == 3 and not any(row["accepted"] for row in unread) and unread[0]["after"]["score"] is None
    assert not list((tmp_path / "out" / "videos").iterdir())
    (result,) = run(tmp_path / "out", [video], painter, settings=settings)
    assert result.status == "mended" and result.attempts == 1
    assert len(painter.made) == 3  # the first attempt's video was only judged again
    assert rows(tmp_path / "out")[-1]["key"] == unread[0]["key"] and rows(tmp_path / "out")[-1]["accepted"]


def test_what_is_logged_is_not_done_again_and_costs_the_same(tmp_path):
    videos = [spotted(tmp_path / f"{n}.mp4", (0, n)) for n in range(2)]
    painter, judge = Painter([WHITE, GREY]), WhiteSpots()
    first = run(tmp_path / "out", videos, painter, judge)
    calls, made, log = judge.calls, len(painter.made), (tmp_path / "out" / "attempts.jsonl").read_bytes()
    again = run(tmp_path / "out", videos, painter, judge)
    assert again == first and (judge.calls, len(painter.made)) == (calls, made) == (
        5,
        4,
    )  # the two mended videos are the same bytes
    assert (tmp_path / "out" / "attempts.jsonl").read_bytes() == log
    other = Painter([WHITE, GREY], provenance={"repair": "another painter"})
    run(tmp_path / "out", videos, other, judge)
    assert len(other.made) == 4  # by content: another backend's attempts are others


def test_a_torn_line_and_a_lost_file_are_made_again(tmp_path):
    video, painter = spotted(tmp_path / "one.mp4", (0, 0)), Painter([GREY])
    (first,) = run(tmp_path / "out", [video], painter)
    log = tmp_path / "out" / "attempts.jsonl"
    log.write_text(log.read_text()[:-40])
    (again,) = run(tmp_path / "out", [video], painter)
    assert (again.status, again.path, again.attempts) == (first.status, first.path, 1) and len(painter.made) == 1
    assert again.costs.judge_calls == 2  # the repair's verdict was in the ledger
    next((tmp_path / "out" / "attempts").glob("*.mp4")).unlink()
    (third,) = run(tmp_path / "out", [video], painter)
    assert third == again and len(painter.made) == 2


def test_a_failed_generation_is_no_clip_and_no_accept(tmp_path):
    (result,) = run(tmp_path / "out", [spotted(tmp_path / "one.mp4", (0, 0))], Painter([None, GREY]))
    failed = rows(tmp_path / "out")[1]
    assert not failed["accepted"] and "not finite" in failed["reason"]
    assert failed["costs"] == {"clips": 0, "frame_steps": 81, "judge_calls": 0, "judge_tokens": 0}
    assert result.status == "mended" and result.costs.clips == 1 and result.costs.frame_steps == 81 + 90


def test_a_full_disk_ends_the_run_and_leaves_the_original(tmp_path, monkeypatch):
    video, painter = spotted(tmp_path / "one.mp4", (0, 0)), Painter([GREY])
    before = (tmp_path / "one.mp4").read_bytes()

    def full(path, pixels, fps):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("cac_align.generation.repair.one_video.write_mp4", full)
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path / "out", [video], painter)
    assert (tmp_path / "one.mp4").read_bytes() == before and len(rows(tmp_path / "out")) == 1
    (result,) = run(tmp_path / "out", [video], painter)
    assert result.status == "mended"


def test_an_original_in_the_folder_of_the_results_is_refused(tmp_path):
    (tmp_path / "out" / "videos").mkdir(parents=True)
    video = spotted(tmp_path / "out" / "videos" / "one.mp4", (0, 0))
    with pytest.raises(ValueError, match="choose another folder"):
        run(tmp_path / "out", [video], Painter([GREY]))
    assert not (tmp_path / "out" / "attempts.jsonl").exists()


def test_a_reward_without_windows_and_boxes_is_no_judge(tmp_path):
    (result,) = run(tmp_path / "out", [spotted(tmp_path / "one.mp4", (0, 0))], Painter([GREY]), Brightness())
    assert result.status == "unjudged" and "without windows" in result.reason


def score(value, error=None):
    return Score.missing(error) if error else Score(value)


@pytest.mark.parametrize(
    ("judge", "guard", "accepted"),
    [
        ((0.5, 0.6), (3.0, 3.0), True),
        ((0.5, 0.6), (3.0, 2.95), True),  # .05 of a scale of 4: within 2 %
        ((0.5, 0.6), (3.0, 2.9), False),
        ((0.5, 0.54), (3.0, 5.0), False),  # less than min_gain, however glad the guard
        ((0.5, math.nan), (3.0, 3.0), False),
        ((math.nan, 0.9), (3.0, 3.0), False),
        ((0.5, 0.9), (3.0, math.nan), False),
        ((0.5, 0.9), (math.nan, 3.0), False),
    ],
)
def test_judge_and_guard_must_agree_and_no_missing_verdict_is_an_accept(judge, guard, accepted):
    sides = [
        Assessment(
            Score.missing("gone") if math.isnan(j) else Score(j),
            {"ur": Score.missing("gone") if math.isnan(g) else Score(g)},
            {"ur": 4.0},
        )
        for j, g in zip(judge, guard, strict=True)
    ]
    assert compare(*sides, AcceptRule()).accepted is accepted


def test_repairing_overlaps_judging(tmp_path):
    """The judge of the first video waits until the second video's repair has begun; in turn that would never happen."""
    import threading

    begun = threading.Event()

    class Waiting(WhiteSpots):
        def one(self, video):
            if "attempts" in str(video.path) and video.path.name.startswith("0"):
                assert begun.wait(20)
            return super().one(video)

    class Telling(Painter):
        def __call__(self, request):
            if request.video.path.name.startswith("1"):
                begun.set()
            return super().__call__(request)

    videos = [spotted(tmp_path / f"{n}.mp4", (0, n)) for n in range(2)]
    results = run(tmp_path / "out", videos, Telling([GREY]), Waiting())
    assert [result.status for result in results] == ["mended", "mended"]
