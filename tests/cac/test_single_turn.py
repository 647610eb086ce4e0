"""The single-turn formulation: one question, windows and boxes at once, in judging, samples, rollouts and rewards; worked out by hand."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from cac_align.cac.answer_schema import answer_schema
from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn
from cac_align.core.answer import read_answer, write_answer
from cac_align.core.judgement import Box, Window
from cac_align.core.video import Video
from cac_align.data.records import read_records
from cac_align.data.splits import Splits, check_split_folder, split_stages
from cac_align.data.synthesis.plan import plan_questions
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.synthesise import synthesise
from cac_align.data.synthesis.verify import answer_faults
from cac_align.miniature.teacher.ground_truth import GroundTruth
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import write_world
from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward
from cac_align.rewards.cac import CaC
from cac_align.training.early_stopping import EarlyStopping
from cac_align.training.evaluate import evaluation_row, metrics
from cac_align.training.grpo import GrpoRecipe, ObjectiveRecipe, train_grpo
from cac_align.training.policy import ModelRecipe, load
from cac_align.training.rollout import RolloutRecipe, RolloutSettings, open_video_prompt, roll_out
from cac_align.training.run import RunConfig
from cac_align.training.samples import DataRecipe
from cac_align.training.sft import SftRecipe, train_sft
from cac_align.training.terms import terms
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm
from tests.support import tiny_stage

SCAN_S = tuple(frame / 16 for frame in tiny_stage.SCAN)


def judge(vlm, prompts, shown, settings=SingleTurn()):  # through the reward, as a user does
    return CaC(vlm, settings).judge(prompts, shown)


def clip(num_frames=17):
    return Video.open(np.zeros((num_frames, 32, 32, 3), np.uint8), fps=16.0)


def item(region="Frame 1-2", boxes=None):
    found = {"Attributed Label": "Object Distortion", "Reason for Anomaly": "the ball melts", "Problem Region": "ball"}
    found |= {"Attributed Time Region": region} if region else {}
    return found | ({"BBOX": boxes} if boxes else {})


def answer(*items, status="abnormal"):
    return json.dumps({"COT": "", "status": status, "anomalies": list(items)})


BOXES = {"Frame 1": [100, 200, 500, 600], "Frame 2": [100, 200, 300, 600]}
NORMAL = answer(status="normal")


def read(text):
    return read_answer(text, number=1, frames=tiny_stage.SCAN, times_s=SCAN_S, boxed=True)


# ---- the answer and the judging --------------------------------------------------------------------------------------


def test_an_answer_needs_windows_and_boxes():
    assert read(answer(item(boxes=BOXES))).faults == () and read(NORMAL).faults == ()
    assert read(answer(item())).faults == ("anomalies[0].BBOX: missing",)
    assert read(answer(item(region=None, boxes=BOXES))).faults == ("anomalies[0].Attributed Time Region: missing",)
    (found,) = read(answer(item(boxes=BOXES))).anomalies
    assert found.window == Window(0.25, 0.5)  # frames 1 and 2 at 4 fps
    assert found.boxes == {4: (Box(100, 200, 500, 600),), 8: (Box(100, 200, 300, 600),)}  # source frames
    again = write_answer(
        chain_of_thought="", anomalies=[found], number=1, frames=tiny_stage.SCAN, times_s=SCAN_S, boxed=True
    )
    assert read(again) == replace(read(answer(item(boxes=BOXES))), text=again)
    wanted = answer_schema(1, boxed=True)["anyOf"][1]["properties"]["anomalies"]["items"]["required"]
    assert {"Attributed Time Region", "BBOX"} <= set(wanted)


def test_one_question_decides():
    vlm = ScriptedVlm(lambda conversation: answer(item(boxes=BOXES)), confidence=0.8)
    (judgement,) = judge(vlm, ["a ball"], [clip()])
    (asked,) = vlm.asked
    assert asked[0].frames.indices == (0, 4, 8, 12, 16) and "BBOX" in asked[0].text and "a ball" in asked[0].text
    assert judgement.status == "abnormal" and judgement.reward == pytest.approx(0.2)
    assert judgement.anomalies[0].window == Window(0.25, 0.5) and set(judgement.anomalies[0].boxes) == {4, 8}
    assert [turn.number for turn in judgement.turns] == [1]


def test_a_verdict_stands_without_its_window_but_not_without_a_status():
    said = iter([answer(item(region=None)), "no json", "no json", NORMAL])
    vlm = ScriptedVlm(lambda conversation: Reply(next(said), {"normal": math.log(0.3), "abnormal": math.log(0.6)}))
    (kept,) = judge(vlm, ["a"], [clip()])
    assert kept.status == "abnormal" and kept.turns[0].faults  # nothing has to be cropped, so the verdict is used
    (lost,) = judge(vlm, ["a"], [clip()])
    assert lost.status is None and lost.error.startswith("single turn: no usable status (not json")
    assert len(lost.turns) == 2 and "This answer could not be used" in vlm.asked[-1][-1].text
    assert judge(vlm, ["a"], [clip()], SingleTurn(retries=0))[0].status == "normal"


def test_it_is_another_reward():
    vlm = ScriptedVlm(lambda conversation: NORMAL, confidence=0.9)
    one, two = CaC(vlm, SingleTurn()), CaC(vlm, TwoTurn())
    assert (one.name, two.name) == ("cac_single_turn", "cac")
    assert one.provenance["reward"] == "cac single turn" and one.provenance["mode"] == "single turn: no second look"
    brief = SingleTurn(wording="brief").provenance()
    hashes = [entry["prompt_sha256"] for entry in (one.provenance, two.provenance, brief)]
    assert len(set(hashes)) == 3
    (score,) = one(["a ball"], [clip()])
    assert score.value == pytest.approx(0.9) and score.provenance == one.provenance
    small = load_reward(RewardRecipe(components={"cac": JudgeRecipe(mode="single_turn")}))
    assert small.settings == SingleTurn(wording="brief", max_new_tokens=400) and small.temperature == 1.0
    with pytest.raises(ValueError, match="expected max_new_tokens >= 1"):
        SingleTurn(max_new_tokens=0)


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_verification_asks_for_time_and_boxes():
    video = clip().sample(4.0)
    truth = [replace(tiny_stage.TRUE, boxes={f: b for f, b in tiny_stage.TRUE.boxes.items() if f in (4, 8)})]

    def against(text):
        return [reason.split(":")[0] for reason in answer_faults(text, truth, video, number=1, boxed=True)]

    assert against(answer(item(boxes=BOXES))) == []  # box IoU (1 + 0.5) / 2 = 0.75
    assert against(answer(item(region="Frame 2-4", boxes=BOXES))) == ["time"]  # {2} of {1, 2, 3, 4}
    assert against(answer(item(boxes={"Frame 1": [100, 200, 500, 600]}))) == [
        "boxes"
    ]  # half of the boxes: 0.5 does not exceed 0.5
    assert against(answer(item())) == ["format", "boxes"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    path = write_world(40, 1_930_000, root / "world", PLAYGROUND)
    records = list(read_records(path))
    settings = Synthesis(wording="brief", workers=1, tasks=["scan", "look", "frame", "single"])
    synthesise(records, path.parent, GroundTruth(records), root / "chains", settings)
    split_stages(root / "chains", root / "stages", Splits(near=0.02))
    return root / "stages"


def test_single_turn_samples_stand_beside_the_others_of_the_same_videos(stages):
    rows = [json.loads(line) for line in (stages / "stage2.jsonl").read_text().splitlines()]
    of = {task: {row["record"] for row in rows if row["task"] == task} for task in ("scan", "look", "single")}
    assert of["single"] == of["scan"] and len(of["single"]) >= 4
    assert check_split_folder(stages, Splits(near=0.02))[1] == []
    records = {record.id: record for record in read_records(stages / "records.jsonl")}
    for row in rows:
        if row["task"] == "single":
            record = records[row["record"]]
            turn = read_answer(
                row["answer"], number=1, frames=tiny_stage.SCAN, times_s=SCAN_S, boxed=True
            )  # the playground's 17 frames
            assert turn.faults == () and turn.status == record.status
            assert all(found.window and found.boxes for found in turn.anomalies)
            assert re.search(r"Frame 4: (?:[a-d][1-4]|away) ", turn.chain_of_thought)  # where the ball is


def test_nothing_changes_for_those_who_do_not_ask_for_it(stages):
    record = next(iter(read_records(stages / "records.jsonl")))
    assert "single" not in {question.task for question in plan_questions([record])[record.id]}
    assert Synthesis().tasks == ["scan", "look", "frame"] and "single_turn_sha256" not in Synthesis().identity()
    assert "single_turn_sha256" in Synthesis(tasks=["single"]).identity()


# ---- rollouts, rewards and the two trainers --------------------------------------------------------------------------


def reward_terms(text, record, ending="single turn"):
    return terms(read(text), None, ending, record, SCAN_S)


def test_the_terms_of_one_answer(tmp_path):
    normal, broken = list(read_records(tiny_stage.data_folder(tmp_path, clips=2) / "records.jsonl"))
    whole = reward_terms(answer(item(boxes=BOXES)), broken)
    # truth: frames 4 to 10 boxed, so frames 1 and 2 of the scan: temporal 1; boxes 1 and 1/2: spatial 0.75; 2·1 + 2·1 + 5·0.75
    assert (whole.format, whole.status, whole.type, whole.temporal, whole.spatial) == (0, 0, 1, 1, 0.75)
    assert whole.total == pytest.approx(7.75)
    assert reward_terms(answer(item()), broken).total == pytest.approx(-1 + 2 + 2)  # no box: format −1, spatial 0
    assert reward_terms(NORMAL, broken).total == -2 and reward_terms(NORMAL, normal).total == 0
    assert reward_terms(answer(item(boxes=BOXES)), normal).total == -2
    assert reward_terms("no json", normal, "window").total == reward_terms("no json", broken, "window").total == -3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    tiny_stage.model_folder(folder / "model")
    made = tiny_stage.data_folder(folder / "data")
    rows = [json.loads(line) for line in (made / "stage2.jsonl").read_text().splitlines()]
    true = replace(tiny_stage.TRUE, boxes={f: b for f, b in tiny_stage.TRUE.boxes.items() if f in tiny_stage.SCAN})
    boxed = write_answer(
        chain_of_thought="", anomalies=[true], number=1, frames=tiny_stage.SCAN, times_s=SCAN_S, boxed=True
    )
    for row in [row for row in rows if row["task"] == "scan"]:
        broken = '"abnormal"' in row["answer"]
        rows.append({**row, "task": "single", "answer": boxed if broken else row["answer"]})
    (made / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rollouts_end_with_the_first_answer(root):
    model, processor = load(ModelRecipe(path=str(root / "model")))
    records = list(read_records(root / "data" / "records.jsonl"))[:2]
    prompts = [
        open_video_prompt(slot, r, Video.open(root / "data" / r.video, fps=16), 4.0) for slot, r in enumerate(records)
    ]
    settings = RolloutSettings(RolloutRecipe(group_size=16, max_new_tokens=4), "brief", 8.0, None, 0, 0, turns=1)
    store = {}
    rollouts = roll_out(model.eval(), processor, prompts, settings, store)
    assert len(rollouts) == 32 and {len(rollout.segments) for rollout in rollouts} == {1} and len(store) == 2
    # total, ending and whether it breaks the schema, by what was said, of the normal and of the anomalous clip
    expected = {
        tiny_stage.NORMAL: ((0, -2), "single turn", False),
        tiny_stage.WINDOW: ((-1 - 2, -1 + 2 + 2), "single turn", True),  # no boxes
        tiny_stage.BOXED: (
            (-2, 2 + 2 / 3),
            "single turn",
            False,
        ),  # frames {0, 1} against {1, 2}; frame 0 is not boxed in truth
        tiny_stage.BROKEN: ((-3, -3), "window", True),
    }
    assert {rollout.first.text for rollout in rollouts} >= set(list(expected)[:3])
    for rollout in rollouts:
        totals, ending, malformed = expected.get(rollout.first.text, ((-3, -3), "window", True))
        found = terms(rollout.first, rollout.second, rollout.ending, rollout.record, rollout.scan_times_s)
        assert (rollout.ending, rollout.malformed) == (ending, malformed) and rollout.second is None
        assert found.total == pytest.approx(totals[rollout.record.status == "abnormal"])
    said = [evaluation_row(rollout, GrpoRecipe().weights)["predicted"] for rollout in rollouts]
    assert said == [rollout.first.status if rollout.ending == "single turn" else None for rollout in rollouts]
    assert metrics([evaluation_row(rollout, GrpoRecipe().weights) for rollout in rollouts])["held_out_videos"] == 32


def test_stages_2_and_3_train_in_a_single_turn(root):
    data = DataRecipe(folder=str(root / "data"), samples="both.jsonl", wording="brief", held_out=0.3, turns=1)
    run = RunConfig(steps=1, warmup_steps=0, lr=1e-3, eval_every=1, cpu=True)
    model = ModelRecipe(path=str(root / "model"))
    end = train_sft(SftRecipe(stage=2, out=str(root / "two"), batch=2, lora_rank=0, model=model, data=data, run=run))
    calm = EarlyStopping(1, 1.0, 1.0, 1.0, 1.0, 0.0)
    made = GrpoRecipe(
        out=str(root / "three"),
        batch=2,
        eval_videos=2,
        model=ModelRecipe(path=str(end)),
        data=replace(data, samples="stage3.jsonl"),  # rollouts need no answers: the videos are enough
        rollout=RolloutRecipe(group_size=4, max_new_tokens=4),
        grpo=ObjectiveRecipe(beta=0.1),
        early_stopping=calm,
        run=run,
    )
    train_grpo(made)
    table = [json.loads(line) for line in (root / "three" / "rollouts.jsonl").read_text().splitlines()]
    assert len(table) == 8 and {row["ending"] for row in table} <= {"single turn", "window"}
    assert all(len(row["turns"]) == 1 for row in table)
    with pytest.raises(ValueError, match=r"another recipe \(data.turns differ; data.turns was 1, now 2\)"):
        train_grpo(replace(made, data=replace(made.data, turns=2)))


def test_wrong_settings(root):
    with pytest.raises(ValueError, match="data.turns must be 2 .* or 1"):
        DataRecipe(turns=3)
    data = DataRecipe(folder=str(root / "data"), samples="stage2.jsonl", turns=1)
    with pytest.raises(ValueError, match="the split is empty; expected samples of task single"):
        train_sft(SftRecipe(stage=2, out=str(root / "none"), model=ModelRecipe(path=str(root / "model")), data=data))
