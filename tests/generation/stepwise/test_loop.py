"""The step-wise loop, with planner and verifier on scripted models: none of the seven defects of the released CollabVR code."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.core.video import Video
from cac_align.generation.stepwise.contracts import CLIP_VERDICT_SCHEMA, PLAN_SCHEMA, read_plan, read_verdict
from cac_align.generation.stepwise.loop import StepwiseSettings, generate_stepwise
from cac_align.generation.stepwise.roles import JudgeVerifier, NoAnswer, VlmPlanner, VlmVerifier
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm
from tests.support.tiny_flow import every

TASK = "the ball goes through the gate"


def plan(action="the ball rolls", last=False):
    return json.dumps({"action": action, "target_state": "it is at the gate", "last_step": last})


def verdict(accept, good=0.0, suggestion="", diagnosis="", complete=False):
    return json.dumps(
        {
            "diagnosis": diagnosis,
            "accept": accept,
            "suggestion": suggestion,
            "good_fraction": good,
            "task_complete": complete,
        }
    )


@dataclass
class Shades:
    """Frames in one shade per clip, 10 brighter each time; ``broken`` calls fail."""

    broken: tuple = ()
    calls: list = field(default_factory=list)
    provenance: dict = field(default_factory=lambda: {"generator": "shades"})
    temporal: int = 4
    fps: float = 8.0
    steps: int = 10

    def __call__(self, prompt, frame, num_frames, seed):
        assert (num_frames - 1) % self.temporal == 0
        self.calls.append((prompt, None if frame is None else int(frame[0, 0, 0]), num_frames, seed))
        if len(self.calls) - 1 in self.broken:
            raise ValueError("the model's output is not finite")
        return Video.open(np.full((num_frames, 8, 8, 3), 10 * len(self.calls), np.uint8), fps=self.fps)


def run(out, plans, verdicts, shades=None, *, frames=8, verifier=None, **more):
    shades = shades or Shades()
    settings = StepwiseSettings(**{"max_steps": 1, "attempts": 3, "frames_per_step": frames, **more})
    planner = VlmPlanner(plans if isinstance(plans, ScriptedVlm) else ScriptedVlm(plans))
    checker = verifier or VlmVerifier(verdicts if isinstance(verdicts, ScriptedVlm) else ScriptedVlm(verdicts))
    return generate_stepwise(TASK, planner, checker, shades, settings, out), shades


def test_steps_go_on_from_the_last_frame_until_the_task_is_done(tmp_path):
    plans = ScriptedVlm([plan("it rolls"), plan("it passes", last=True)])
    result, shades = run(tmp_path, plans, [verdict(True, 1.0), verdict(True, 1.0)], max_steps=5)
    assert result.complete and [step.accepted for step in result.steps] == [True, True]
    # 8 new frames each: 9 where free (the shortest 4k + 1 with 8), and 9 with the frame that the clip goes on from
    assert shades.calls == [("it rolls", None, 9, 0), ("it passes", 10, 9, 1)]
    shown = every(result.video)[:, 0, 0, 0].tolist()
    assert shown == [10] * 8 + [20] * 8
    told = plans.asked[1][0].text
    assert "1. it rolls (accepted)" in told and "step 2 of at most 5" in told
    assert plans.asked[1][0].frames.pixels[0, 0, 0, 0] == 10 and plans.asked[0][0].frames is None
    assert (tmp_path / "video.mp4").is_file()


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON", "[]", "{}", '{"accept": true}', verdict(True).replace("true", '"yes"'),
        verdict(True, 1.0).replace("1.0", "NaN"), verdict(True, 2.0), verdict(True)[:-3], Reply("", error="connection refused"),
    ],
)  # fmt: skip
def test_defect_1_an_unreadable_verdict_is_never_an_accept(tmp_path, answer):
    result, _ = run(tmp_path, [plan(last=True)], [answer] * 6)
    assert not result.complete and not result.steps[0].accepted and result.steps[0].attempts == 3
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert all(row["verdict"] is None and row["error"] for row in rows if row["kind"] == "attempt")


def test_an_unusable_answer_is_asked_for_again_with_its_fault(tmp_path):
    verifier = ScriptedVlm(["what?", verdict(True, 1.0)])
    result, _ = run(tmp_path, [plan(last=True)], verifier)
    assert result.complete and "no JSON object" in verifier.asked[1][-1].text
    assert result.costs.judge_calls == 3  # one plan, two answers of the verifier


def test_defect_2_every_attempt_has_a_seed_of_its_own_also_without_a_suggestion(tmp_path):
    plans, verdicts = [plan(), plan()], [verdict(False)] * 3 + [verdict(True, 1.0)]
    result, shades = run(tmp_path, plans, verdicts, max_steps=2, seed=7)
    assert [call[3] for call in shades.calls] == [7, 8, 9, 10] and len(result.steps) == 2


def test_defect_3_a_planner_that_fails_is_said_and_what_was_made_stays(tmp_path):
    plans = [plan(), Reply("", error="quota exceeded")]
    result, _ = run(tmp_path, plans, [verdict(True, 1.0)], max_steps=3)
    assert "no plan for step 2: quota exceeded" in result.reason and not result.complete
    assert len(result.video) == 8
    nothing, _ = run(tmp_path / "b", ["nonsense", "nonsense"], [])
    assert nothing.video is None and "no plan for step 1" in nothing.reason


def test_defect_4_a_step_that_is_never_accepted_is_filled_by_its_best_attempt(tmp_path):
    verdicts = [verdict(False, 0.1), verdict(False, 0.15), verdict(False, 0.05)]
    result, _ = run(tmp_path, [plan(last=True)], verdicts)
    assert result.video is not None and every(result.video)[0, 0, 0, 0] == 20  # the second one was good longest
    assert not result.steps[0].accepted and not result.complete


def test_defect_5_a_kept_part_keeps_the_steps_length_and_parts_add_up(tmp_path):
    verdicts = [verdict(False, 0.5), verdict(False, 0.75, "slower"), verdict(True, 1.0)]
    result, shades = run(tmp_path, [plan(last=True)], verdicts, frames=16)
    # 16 of 17 frames; then 8 are kept and 8 are new (9 with the one it goes on from); then 12 are kept and 4 are new (5)
    assert [call[2] for call in shades.calls] == [17, 9, 5]
    assert [call[1] for call in shades.calls] == [None, 10, 20]
    assert every(result.video)[:, 0, 0, 0].tolist() == [10] * 8 + [20] * 4 + [30] * 4
    assert shades.calls[2][0] == "the ball rolls slower"


def test_a_good_part_below_the_limit_or_shorter_than_the_kept_one_is_not_taken(tmp_path):
    verdicts = [verdict(False, 0.5), verdict(False, 0.25), verdict(False, 0.1)]
    _, shades = run(tmp_path, [plan()], verdicts, frames=16)
    assert [call[2] for call in shades.calls] == [17, 9, 9] and [call[1] for call in shades.calls] == [None, 10, 10]


def test_defect_6_a_clip_that_could_not_be_made_is_no_clip(tmp_path):
    result, _ = run(tmp_path, [plan(last=True)], [verdict(True, 1.0)], Shades(broken=(0,)))
    assert result.complete and result.steps[0].attempts == 2
    assert (result.costs.clips, result.costs.frame_steps, result.costs.judge_calls) == (1, 2 * 9 * 10, 2)
    none, _ = run(tmp_path / "b", [plan(last=True)], [], Shades(broken=(0, 1, 2)))
    assert none.video is None and "no clip of step 1" in none.reason and none.costs.clips == 0


def test_defect_7_resume_is_by_content(tmp_path):
    plans, verdicts = [plan("a"), plan("b", last=True)], [verdict(False, 0.5), verdict(True, 1.0), verdict(True, 1.0)]
    first, _ = run(tmp_path, plans, verdicts, max_steps=2)
    again, silent = run(tmp_path, [], [], max_steps=2)  # scripts without an answer: nothing may be asked
    assert silent.calls == [] and again.costs == first.costs and again.complete
    assert np.array_equal(every(again.video), every(first.video))
    (tmp_path / "video.mp4").write_bytes(b"")  # that a file of that name exists says nothing
    run(tmp_path, [], [], max_steps=2)
    assert (tmp_path / "video.mp4").stat().st_size > 0
    other, fresh = run(tmp_path, [], verdicts, Shades(provenance={"generator": "other"}), max_steps=2)
    assert len(fresh.calls) >= 2 and other.video is not None  # another generator: its clips are others


def test_an_attempt_without_a_verdict_is_judged_again_when_the_verifier_is_back(tmp_path):
    gone, shades = run(tmp_path, [plan(last=True)], [Reply("", error="refused")], attempts=1)
    assert not gone.complete and len(shades.calls) == 1
    back, same = run(tmp_path, [], [verdict(True, 1.0)], attempts=1)
    assert back.complete and same.calls == []


def test_budgets_end_the_loop_with_what_there_is(tmp_path):
    result, shades = run(tmp_path, [plan()], [verdict(False)] * 3, max_frame_steps=180)
    assert len(shades.calls) == 2 and "max_frame_steps 180" in result.reason and len(result.video) == 8
    calls, shades = run(tmp_path / "b", [plan()], [verdict(False)] * 3, max_judge_calls=3)
    assert len(shades.calls) == 2 and calls.costs.judge_calls == 3


class Judge:
    name, bounds, provenance = "judge", (0.0, 1.0), {"reward": "judge"}

    def __init__(self, *scores):
        self.scores = list(scores)

    def __call__(self, prompts, videos):
        return [self.scores.pop(0) for _ in videos]


def test_a_judge_verifies_with_its_evidence(tmp_path):
    melts = Anomaly("Object Distortion", Window(0.5, 0.75), "the ball melts")
    judge = Judge(
        Score(0.1, evidence=Judgement("abnormal", (melts,))),
        Score.missing("server gone"),
        Score(0.9, evidence=Judgement("normal")),
    )
    result, shades = run(tmp_path, [plan(last=True)], None, verifier=JudgeVerifier(judge))
    assert result.steps[0].accepted and result.steps[0].attempts == 3
    assert shades.calls[1] == ("the ball rolls without this: the ball melts", 10, 5, 1)  # .5 of 1 s was good: 4 frames
    with pytest.raises(NoAnswer, match="without a judgement"):
        JudgeVerifier(Judge(Score(0.5)))(TASK, read_plan(plan()), result.video)


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (read_plan, plan(action="")),
        (read_plan, plan(action=" ")),
        (read_plan, plan().replace("}", ', "more": 1}')),
        (read_plan, plan().replace("false", "0")),
        (read_verdict, verdict(True, 1.5)),
        (read_verdict, verdict(True, 0.5).replace("0.5", "true")),
    ],
)
def test_an_answer_outside_its_contract_is_refused(reader, text):
    with pytest.raises(ValueError, match=r"expected|must be"):
        reader(text)


def test_the_contracts_are_what_the_readers_return():
    assert set(PLAN_SCHEMA["required"]) == set(read_plan(plan()).__dict__)
    assert set(CLIP_VERDICT_SCHEMA["required"]) == set(read_verdict(f"```json\n{verdict(True, 1)}\n```").to_json())
