"""Audits of scripted judges with known faults: each is flagged for its own, and one without a fault passes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.evaluation.audit.pairs import AuditGroup, AuditPair, Defective, cut_to_move, mirrored_defect
from cac_align.evaluation.audit.run import audit_reward
from cac_align.evaluation.audit.verdict import audit_markdown, sentences, table_rows
from cac_align.evaluation.pages.audit_page import write_audit_page
from cac_align.rewards.combine import combine
from cac_align.rewards.pairwise.comparison import Comparison
from cac_align.rewards.pairwise.tournament import Tournament
from cac_align.rewards.reward import Score
from tests.support.chromium import browser_page, check_phone, require_chromium

FRAMES, SIDE, FPS = 17, 40, 16.0
TYPES = ("Object Distortion", "Motion Anomalies", "Physical Violations")


def scene(rng):
    """Soft stripes below 200 grey levels: no pixel of theirs looks like a defect."""
    return np.tile(rng.integers(40, 180, (1, 1, SIDE, 1)), (FRAMES, SIDE, 1, 3)).astype(np.uint8)


def with_square(pixels, first, last, x, y, side):
    """A white square, which is the defect, with its window and boxes."""
    pixels = pixels.copy()
    pixels[first : last + 1, y : y + side, x : x + side] = 255
    box = Box.from_pixels(x, y, x + side, y + side, SIDE, SIDE)
    return pixels, Window(first / FPS, last / FPS), dict.fromkeys(range(first, last + 1), (box,))


def make_pair(number):
    rng = np.random.default_rng(number)
    clean = scene(rng)
    first, length, side = (int(rng.integers(low, high)) for low, high in ((1, 9), (3, 8), (6, 14)))
    x, y = (int(rng.integers(0, SIDE - side)) for _ in range(2))
    shown = f"a red ball rolls to the {('left', 'right')[number % 2]}, take {number}"

    def defective(first):
        pixels, window, boxes = with_square(clean, first, first + length - 1, x, y, side)
        anomaly = Anomaly(TYPES[number % 3], window, boxes=boxes)
        return Defective(shown, Video.open(pixels, fps=FPS, name=f"{number}-{first}"), anomaly)

    defect = defective(first)
    moved = defective(FRAMES - length if first < 5 else 0)
    return AuditPair(
        Video.open(clean, fps=FPS, name=f"{number}"),
        defect,
        side / 14,
        side**2 / SIDE**2,
        moved,
        mirrored_defect(defect),
    )


@pytest.fixture(scope="module")
def pairs():
    return [make_pair(number) for number in range(24)]


@pytest.fixture(scope="module")
def groups():
    rng, found = np.random.default_rng(99), []
    for number in range(4):
        videos = []
        for index in range(16):
            pixels = scene(rng)
            if index % 3 == 0:
                pixels = with_square(pixels, 2, 2 + index % 5, 3, 4, 6 + index % 7)[0]
            videos.append(Video.open(pixels, fps=FPS, name=f"{number}-{index}"))
        found.append(AuditGroup(f"prompt {number}", tuple(videos)))
    return found


def white(video):
    return (video.frames(range(len(video))).pixels >= 250).all(-1)


def detail(video):
    """How much neighbouring columns differ, in [0, 1]: 0 for grey frames. No change of the audit moves it much."""
    pixels = video.frames((0,)).pixels[0].astype(float)
    return min(np.abs(np.diff(pixels.mean((0, 2)))).mean() / 255, 1.0)


@dataclass(frozen=True)
class Sees:
    """Finds the white square, and likes detail a little: a judge as it should be."""

    name: str = "sees"
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def provenance(self):
        return {"reward": self.name}

    def judgement(self, video):
        found = white(video)
        frames = np.flatnonzero(found.any((1, 2)))
        if not len(frames):
            return Judgement("normal")
        boxes = {}
        for frame in frames.tolist():
            y, x = np.flatnonzero(found[frame].any(1)), np.flatnonzero(found[frame].any(0))
            boxes[frame] = (Box.from_pixels(x[0], y[0], x[-1] + 1, y[-1] + 1, SIDE, SIDE),)
        window = Window(frames[0] / video.fps, frames[-1] / video.fps)
        return Judgement("abnormal", (Anomaly("Object Distortion", window, boxes=boxes),))

    def value(self, prompt, video):
        return 0.9 - 0.5 * bool(white(video).any()) - 5 * float(white(video).mean()) + 0.1 * detail(video)

    def __call__(self, prompts, videos):
        return [
            Score(float(np.clip(self.value(p, v), *self.bounds)), evidence=self.judgement(v))
            for p, v in zip(prompts, videos, strict=True)
        ]


class PointsAtTheSamePlace(Sees):
    """Knows that something is wrong, and always names the same window and box."""

    def judgement(self, video):
        if super().judgement(video).status == "normal":
            return Judgement("normal")
        boxes = {frame: (Box(300, 300, 700, 700),) for frame in range(4, 12)}
        return Judgement("abnormal", (Anomaly("Object Distortion", Window(0.25, 0.7), boxes=boxes),))


class Blind(Sees):
    """Scores the prompt."""

    def value(self, prompt, video):
        return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) / 2**32

    def judgement(self, video):
        return None


class Saturated(Sees):
    """Full marks unless more than a third of all pixels are wrong."""

    def value(self, prompt, video):
        return 1.0 - float(white(video).mean() > 1 / 3)


@dataclass(frozen=True)
class LikesBrightness(Sees):
    """Sees the defect, and brightness as strongly."""

    bounds: tuple[float, float] = (-100.0, 100.0)

    def value(self, prompt, video):
        return super().value(prompt, video) + 15 * float(video.frames((0,)).pixels.mean()) / 255


class Silent(Sees):
    def __call__(self, prompts, videos):
        return [Score.missing("the server is down") for _ in videos]


@dataclass(frozen=True)
class Compares:
    """Prefers what Sees prefers, plus a lead for the video shown first."""

    lead: float
    sight: float
    name: str = "compares"

    @property
    def provenance(self):
        return {"reward": "compares"}

    def compare(self, prompts, firsts, seconds):
        judge = Sees()
        return [
            Comparison(float(np.clip(0.5 + self.lead + self.sight * (judge.value(p, a) - judge.value(p, b)), 0, 1)))
            for p, a, b in zip(prompts, firsts, seconds, strict=True)
        ]


def names(report, fails=True):
    return {flag.name for flag in report.flags if flag.fails == fails}


def test_a_judge_that_sees_and_points_passes_with_the_numbers_it_should_have(pairs, groups, tmp_path):
    report = audit_reward(Sees(), pairs, groups, "scripted")
    found = report.findings
    assert report.passes and report.flags == ()
    assert found.perception.falls.value == 1 and found.perception.p_value == pytest.approx(0.5**24)
    assert found.perception.drop.value == pytest.approx(
        np.mean([0.5 + 5 * p.size * p.duration_s * FPS / FRAMES for p in pairs]), abs=0.02
    )
    where = found.localisation
    assert where.localises and where.found.value == 1
    for one in (where.time, where.space):  # its windows and boxes are exact, also where the defect was moved to
        assert one.iou.value == pytest.approx(1) and one.pointing.value == 1 and one.follows.value == 1
        assert one.null < 0.5 and one.p_value == pytest.approx(1 / 2000)
    assert where.time.follows.n >= 10 and where.space.follows.n >= 10
    assert where.spatial_iou.value == pytest.approx(1)
    assert (
        found.groups.zero_std.value == 0
        and found.groups.noise == 0
        and (found.groups.groups, found.groups.size) == (4, 16)
    )
    assert found.blind["grey_frames"].as_well.value == 0
    assert sum(one.n for one in found.perception.curve["type"].values()) == 24
    assert len(found.perception.curve["duration_s"]) == 3
    path = write_audit_page(report, tmp_path / "audit.html")
    require_chromium()
    with browser_page(offline=True) as page:
        check_phone(page, path)


def test_no_number_of_the_json_is_nan_and_the_gate_stands_in_it(pairs, groups):
    import json

    row = json.loads(json.dumps(audit_reward(Blind(), pairs, [], "scripted").to_json(), allow_nan=False))
    assert row["passes"] is False and row["localisation"]["localises"] is False
    assert row["groups"]["spread"]["value"] is None and row["groups"]["position_bias"]["value"] is None


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (Blind(name="blind"), {"blind", "does not react", "no spread"}),
        (Saturated(name="saturated"), {"does not react", "saturated"}),
    ],
    ids=["blind", "saturated"],
)
def test_blind_and_saturated_judges_are_flagged_for_it(pairs, groups, judge, expected):
    assert names(audit_reward(judge, pairs, groups, "scripted")) == expected


def test_a_lover_of_the_first_is_told_from_a_judge_that_compares_well(pairs, groups):
    lover = audit_reward(Tournament(Compares(lead=0.5, sight=0.0)), pairs[:8], groups[:2], "scripted")
    assert "prefers the first" in names(lover) and lover.findings.groups.position_bias.value == pytest.approx(1)
    fair = audit_reward(Tournament(Compares(lead=0.0, sight=8.0)), pairs[:8], groups[:2], "scripted")
    assert fair.passes and fair.findings.groups.position_bias.value == pytest.approx(0, abs=1e-9)
    assert fair.findings.groups.cycles.value == 0 and fair.findings.perception.falls.value == 1


def test_a_judge_that_always_points_at_the_same_place_does_not_localise(pairs, groups):
    report = audit_reward(PointsAtTheSamePlace(), pairs, groups, "scripted")
    assert report.passes and names(report, fails=False) == {"does not localise"}
    where = report.findings.localisation
    assert not where.localises and where.time.p_value > 0.05 and where.time.follows.value == 0
    assert where.time.iou.value == pytest.approx(where.time.null, abs=0.15)


def test_too_few_answers_prove_no_localisation(pairs, groups):
    assert not audit_reward(Sees(), pairs[:7], groups, "scripted").findings.localisation.localises


def test_what_moves_the_reward_and_must_not_is_named(pairs, groups):
    report = audit_reward(LikesBrightness(), pairs, groups, "scripted")
    found = report.findings.nuisances
    assert found["brightness"].share_of_drop >= 0.5 and found["brightness"].shift > 0
    assert "moved by brightness" in names(report, fails=False)
    assert found["fps_tag"].change.value == found["mirror"].change.value == 0
    clean = audit_reward(Sees(), pairs, groups, "scripted").findings.nuisances
    assert clean["brightness"].share_of_drop < 0.05 and clean["recompression"].share_of_drop < 0.05


def test_a_sham_edit_is_compared_with_the_clip_before_it(pairs, groups):
    darker = [
        replace(pair, original=Video.open(pair.clean.frames(range(FRAMES)).pixels // 2, fps=FPS)) for pair in pairs[:8]
    ]
    assert audit_reward(LikesBrightness(), darker, groups, "scripted").findings.nuisances["sham_edit"].shift > 0.1
    assert "sham_edit" not in audit_reward(Sees(), pairs[:8], groups, "scripted").findings.nuisances


def test_a_reward_without_any_score_has_no_audit_and_says_why(pairs, groups):
    with pytest.raises(ValueError, match="no score at all.*the server is down"):
        audit_reward(Silent(), pairs, groups, "scripted")
    with pytest.raises(ValueError, match="received none"):
        audit_reward(Sees(), [], groups, "scripted")


def test_missing_scores_are_counted_and_never_numbers(pairs, groups):
    class Sometimes(Sees):
        def __call__(self, prompts, videos):
            answered = super().__call__(prompts, videos)
            return [
                Score.missing("timeout") if prompt.endswith(("3", "7")) or not prompt else score
                for prompt, score in zip(prompts, answered, strict=True)
            ]

    report = audit_reward(Sometimes(), pairs, groups, "scripted")
    found = report.findings
    out = sum(pair.prompt.endswith(("3", "7")) for pair in pairs)
    assert found.perception.unscored == out and found.perception.falls.n == len(pairs) - out
    assert names(report) == {"does not answer"}
    assert found.blind["no_prompt"].as_well.value is None and found.blind["no_prompt"].unscored == 8


def test_a_combination_is_audited_with_the_boxes_of_its_component(pairs, groups):
    report = audit_reward(combine({"cac": Sees(), "prompt": Blind()}), pairs, groups, "scripted")
    assert report.findings.localisation.localises and report.findings.perception.falls.value == 1


def test_each_video_is_asked_about_once(pairs, groups):
    asked = []

    class Counts(Sees):
        def __call__(self, prompts, videos):
            asked.extend((p, v.content_hash) for p, v in zip(prompts, videos, strict=True))
            return super().__call__(prompts, videos)

    report = audit_reward(Counts(), pairs, groups, "scripted")
    repeated = [one for one in set(asked) if asked.count(one) > 1]
    assert len(repeated) == 4  # of the first group, for repeatability
    cost = report.findings.cost
    assert cost.videos == 120 * 4 * 16 and cost.seconds == pytest.approx(cost.videos * cost.seconds_per_video)


def test_cutting_moves_the_defect_and_its_truth_together():
    rng = np.random.default_rng(5)
    pixels, window, boxes = with_square(scene(rng), 9, 12, 4, 8, 10)
    defect = Defective("p", Video.open(pixels, fps=FPS), Anomaly(TYPES[0], window, boxes=boxes))
    moved = cut_to_move(defect)
    assert moved is not None and len(moved.video) == 12
    judged = Sees().judgement(moved.video).anomalies[0]
    assert judged.window == moved.anomaly.window == Window(4 / FPS, 7 / FPS) and judged.boxes == moved.anomaly.boxes
    early = replace(defect, anomaly=replace(defect.anomaly, window=Window(1 / FPS, 0.5)))
    assert cut_to_move(early) is None


def test_the_text_names_every_flag_and_the_table_has_every_part(pairs, groups):
    report = audit_reward(Saturated(name="saturated"), pairs, groups, "scripted")
    text = audit_markdown(report)
    assert all(flag.reason in text for flag in report.flags) and "saturated" in sentences(report)[0]
    assert {part for part, _, _ in table_rows(report)} == {
        "perception",
        "localisation",
        "nuisances",
        "blind",
        "as a reward",
    }
