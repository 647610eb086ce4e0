"""The teacher who knows the miniature's truth: places from the clip drawn again, and mistaken scans about who is in the scene."""

import json
from dataclasses import replace

from cac_align.core.answer import read_answer
from cac_align.core.judgement import Anomaly, Window
from cac_align.data.record_video import open_record_video
from cac_align.data.records import read_records, write_records
from cac_align.data.synthesis.questions import RecordQuestion, expected_anomalies, question_conversation
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.synthesise import synthesise
from cac_align.data.synthesis.teacher_context import teacher_context
from cac_align.data.synthesis.verify import answer_faults
from cac_align.miniature.teacher.ground_truth import GroundTruth
from cac_align.miniature.world.settings import FULL, World
from cac_align.miniature.world.world import write_world


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_ground_truth_retells_a_finding_of_somebody_in_the_scene_and_keeps_its_words_elsewhere(tmp_path):
    path = write_world(2, 1_430_004, tmp_path, World(num_frames=(17,), length_weights=()))
    of = next(record for record in read_records(path) if record.status == "normal")
    video = open_record_video(of, tmp_path)
    frames = video.sample(4)
    donated = Anomaly(
        "Motion Anomalies", Window(0.25, 0.5), "the mauve ball, a red ball, suddenly disappears", "red ball"
    )
    answers = {}
    for prompt in (
        "a blue lamp stays lit and a green ball bounces on sand",
        "a blue lamp stays lit on sand",
        "people in a park",
    ):
        record = replace(of, prompt=prompt)
        alarm = RecordQuestion(record, "scan", suspected=(donated,), donor="d")
        asked = teacher_context(alarm, frames, video, close_ups=False) + question_conversation(
            alarm, frames, wording="brief"
        )
        (reply,) = GroundTruth([record]).answer([asked], max_new_tokens=400)
        assert answer_faults(reply.text, expected_anomalies(alarm, frames), frames, number=1, strict=True) == ()
        answers[prompt] = read_answer(reply.text, number=1, frames=frames.indices, times_s=frames.times_s)
    told_of = [(turn.anomalies[0].reason.split(", ")[1], turn.anomalies[0].region) for turn in answers.values()]
    assert told_of == [("a green ball", "green ball"), ("a blue lamp", "blue lamp"), ("a red ball", "red ball")]
    thoughts = [turn.chain_of_thought for turn in answers.values()]
    assert [f"Frame 1: {kind} gone. Frame 2: {kind} gone. Frame 3: fine." in text
            for kind, text in zip(("ball", "lamp", "ball"), thoughts, strict=True)] == [True] * 3  # fmt: skip


def test_places_come_from_the_clip_drawn_again_and_other_records_do_without(tmp_path):
    path = write_world(2, 1_440_000, tmp_path, FULL)  # the full world: its seeds can be drawn again
    records = list(read_records(path))
    settings = Synthesis(wording="brief", tasks=["scan"])
    synthesise(records, tmp_path, GroundTruth(records), tmp_path / "with", settings)
    others = [replace(record, extra={}) for record in records]
    write_records(tmp_path / "others.jsonl", others)
    synthesise(others, tmp_path, GroundTruth(others), tmp_path / "without", settings)
    (one, *_), (other, *_) = (rows(tmp_path / name / "chains.jsonl") for name in ("with", "without"))
    thoughts = [json.loads(sample["answer"])["COT"] for sample in (one, other)]
    assert thoughts[1].startswith("Step 1: Frame 0: fine.")
    assert thoughts[0].split("Frame 0: ")[1][0] in "abcd" and thoughts[0].split("Frame 0: ")[1][1] in "1234"
