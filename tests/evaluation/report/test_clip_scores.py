"""Scores, verdicts and judges of a clip."""

from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.evaluation.report.clip_record import ClipRecord
from cac_align.evaluation.report.clip_scores import enter_score, judge_differences, same_judge
from cac_align.rewards.reward import Score


class Brightness:
    """A reward: the mean brightness. Dark videos (below 0.1) have no score."""

    bounds = (0.0, 1.0)

    def __init__(self, name):
        self.name = name
        self.provenance = {"reward": name}

    def __call__(self, prompts, videos):
        values = [float(video.frames([0]).pixels.mean()) / 255 for video in videos]
        return [Score(v) if v >= 0.1 else Score.missing("too dark to see") for v in values]


ABNORMAL = Judgement("abnormal", (Anomaly("Object Distortion", Window(0.0, 0.1)),))


def test_a_verdict_counts_only_with_the_score_that_it_led_to():
    refused = ClipRecord(None)
    enter_score(refused, Score.missing("mass 0.0003 on the two verdicts", evidence=ABNORMAL), "cac")
    assert (refused.judged_abnormal, refused.scored, refused.error) == (None, False, "mass 0.0003 on the two verdicts")
    enter_score(refused, Score(0.2, evidence=ABNORMAL), "cac")
    assert refused.judged_abnormal is True and refused.error is None
    enter_score(refused, Score.missing("refused", evidence=Judgement("normal")), "cac")
    assert refused.judged_abnormal is True and refused.values == {
        "cac": 0.2
    }  # value and verdict are still the same call's


def test_the_verdict_of_a_scored_component_survives_a_combination_that_failed():
    provenance = {"reward": "combine unified+cac", "cac/vlm": "A", "unified/vlm": "B"}
    kept, lost = ClipRecord(None), ClipRecord(None)
    enter_score(
        kept,
        Score.missing("unified: no answer", parts={"cac": 0.2}, evidence=ABNORMAL, provenance=provenance),
        "unified+cac",
    )
    enter_score(
        lost,
        Score.missing("cac: mass", parts={"unified": 3.0}, evidence=ABNORMAL, provenance=provenance),
        "unified+cac",
    )
    assert (kept.judged_abnormal, lost.judged_abnormal) == (True, None)
    assert kept.judges["cac_rate"] == {"vlm": "A"}


def test_a_component_s_judge_is_the_same_alone_and_in_a_combination():
    alone, combined, other = ClipRecord(None), ClipRecord(None), ClipRecord(None)
    enter_score(alone, Score(0.2, evidence=ABNORMAL, provenance={"vlm": "A"}), "cac")
    parts, provenance = {"cac": 0.3, "normalised/cac": 0.3}, {"reward": "combine cac", "cac/vlm": "A"}
    enter_score(combined, Score(0.3, parts, ABNORMAL, None, provenance), "cac")
    enter_score(other, Score(0.2, evidence=ABNORMAL, provenance={"vlm": "B", "tta": "2"}), "cac")
    assert (
        same_judge(alone, combined, "cac")
        and same_judge(alone, combined, "cac_rate")
        and judge_differences(alone, combined) == {}
    )
    assert judge_differences(alone, other) == {"cac": ["tta", "vlm"], "cac_rate": ["tta", "vlm"]}
