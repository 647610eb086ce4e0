"""Stage files: reading, balance, draws that depend on (seed, step) alone, prompts of inference, and bad input."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cac_align.cac.prompts import turn_two_conversation
from cac_align.cac.two_turn import TwoTurn
from cac_align.core.answer import read_answer
from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.core.video import Video
from cac_align.data.records import Record, read_records, write_records
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.synthesise import synthesise
from cac_align.data.visibility import window_duration_s
from cac_align.miniature.teacher.ground_truth import GroundTruth
from cac_align.miniature.world.grammar import COLOURS, KINDS, parse_prompt
from cac_align.miniature.world.settings import World
from cac_align.miniature.world.world import write_world
from cac_align.training.samples import (
    CLASSES,
    DataRecipe,
    Sample,
    _first_turn,
    conversation,
    draw,
    read_stage,
    segment,
    usable_segment,
)
from tests.support import tiny_qwen, tiny_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_stage.data_folder(tmp_path_factory.mktemp("data"), clips=8)


def stage(folder, number=2, **changes):
    recipe = DataRecipe(
        folder=str(folder), samples=f"stage{number}.jsonl", **{"wording": "brief", "held_out": 0.0, **changes}
    )
    return read_stage(recipe, {1: ("frame",), 2: ("scan", "look"), 3: ("scan",)}[number], 0)


def test_every_batch_is_half_normal_and_looks_keep_their_share(folder):
    found = stage(folder, look_share=0.25)
    drawn = [sample for step in range(8) for sample in draw(found, step, 4)]
    statuses = [found.records[sample.record].status for sample in drawn]
    assert statuses == ["normal", "abnormal"] * 16
    assert [sample.task for sample in drawn[::2]] == [sample.task for sample in drawn[1::2]]
    assert sum(sample.task == "look" for sample in drawn) == 8  # a quarter of 32
    # every sample of a class comes once before any comes twice
    scans = [
        sample.record for sample in drawn if sample.task == "scan" and found.records[sample.record].status == "normal"
    ]
    assert len(set(scans[:4])) == 4 and len(set(scans[4:8])) == 4


def test_a_step_does_not_depend_on_the_steps_before(folder):
    assert draw(stage(folder), 5, 4) == draw(stage(folder), 5, 4)
    found = stage(folder)
    for step in range(5):
        draw(found, step, 4)
    assert draw(found, 5, 4) == draw(stage(folder), 5, 4)


def test_held_out_records_are_of_both_classes_and_never_trained_on(folder):
    found = stage(folder, held_out=0.25)
    kept = {sample.record for sample in found.held_out}
    assert {found.records[name].status for name in kept} == {"normal", "abnormal"} and len(kept) == 2
    assert not kept & {sample.record for pool in found.training.values() for sample in pool}


def test_held_out_samples_take_tasks_and_classes_in_turn_so_that_the_first_ones_are_balanced(tmp_path):
    folder = tiny_stage.data_folder(tmp_path)
    records = [Record(f"{status}{n}", "clip0.mp4", "a ball", 16.0, 17, 32, 32, status, (tiny_stage.TRUE,) * (status == "abnormal"))
               for status in ("abnormal", "normal") for n in range(40)]  # fmt: skip
    write_records(folder / "records.jsonl", records)
    rows = [
        {"record": record.id, "task": task, "window": [0.25, 0.625], "frame": None, "answer": "x"}
        for task in ("scan", "look")
        for record in records
    ]  # in the order in which `cac-align data split` writes them
    rewrite(folder, rows)
    kept = stage(folder, held_out=0.25).held_out
    assert len(kept) == len(set(kept)) == 4 * 10
    for first in range(0, 40, 4):
        assert [(sample.task, sample.record[:2]) for sample in kept[first : first + 4]] == [
            ("scan", "no"), ("scan", "ab"), ("look", "no"), ("look", "ab")
        ]  # fmt: skip
    rewrite(folder, rows[::-1])
    assert stage(folder, held_out=0.25).held_out == kept
    rewrite(folder, [row for row in rows if row["task"] == "scan" or row["record"][-1] in "02468"])
    tasks = [
        sample.task for sample in stage(folder, held_out=0.25).held_out
    ]  # fewer looks than scans: the rest comes last
    looks = tasks.count("look")
    assert 0 < looks < 20 == tasks.count("scan") and set(tasks[2 * looks + 2 :]) == {"scan"}


def test_prompts_are_those_of_inference(folder):
    found = stage(folder)
    (scan,) = (s for s in found.training["scan", "abnormal"] if s.record == "clip1")
    asked, frames = conversation(found, scan)
    assert frames.indices == (0, 4, 8, 12, 16) and "a ball 1" in asked[0].text and "5 frames" in asked[0].text
    (look,) = (s for s in found.training["look", "normal"] if s.record == "clip0")
    asked, frames = conversation(found, look)
    assert frames.indices == (4, 6, 8, 10) and "Suspicion: Object Distortion: the ball melts" in asked[0].text
    own = Sample("clip0", "look", "", look.window, suspicion=(tiny_stage.TRUE,))
    assert "the ball melts" in conversation(found, own)[0][0].text
    # turn 1's whole answer, where the file carries it, is told as at inference (the full wording quotes its chain of thought)
    answer = tiny_stage.WINDOW.replace('"COT": ""', '"COT": "it sags at frame 2"')
    full = stage(folder, wording="full")
    claimed = Sample("clip0", "look", "", look.window, claim=answer)
    scanned = full.video(full.records["clip0"]).sample(4.0)
    first = read_answer(answer, number=1, frames=scanned.indices, times_s=scanned.times_s)
    asked, frames = conversation(full, claimed)
    told = turn_two_conversation(full.records["clip0"].prompt, frames, first, wording="full")
    assert [message.text for message in asked] == [message.text for message in told]
    assert "it sags at frame 2" in asked[0].text
    single = stage(folder, 1)
    asked, frames = conversation(single, single.training["frame", "abnormal"][0])
    assert frames.indices == (6,) and len(asked) == 1 and "the ball melts" not in asked[0].text


def first_looks(folder, records):
    """What looks shorter than a second are told of turn 1, by class, with the window that is shown."""
    stage = read_stage(DataRecipe(str(folder), "chains.jsonl", wording="full", held_out=0.0), ("scan", "look"), 0)
    fps = {record.id: record.fps for record in records}
    return {
        status: [
            (conversation(stage, sample)[0][0].text.split("first_look>")[1], sample)
            for sample in stage.training["look", status]
            if window_duration_s(sample.window, fps[sample.record]) < 1.0
        ]
        for status in ("normal", "abnormal")
    }


def told_apart(normal, abnormal):
    """Balanced accuracy of the best threshold on a number: 0.5 where it says nothing, 1 where it says everything."""
    below = [
        (sum(x <= t for x in normal) / len(normal), sum(x <= t for x in abnormal) / len(abnormal))
        for t in (*normal, *abnormal)
    ]
    return max(0.5 + abs(a - b) / 2 for a, b in below)


def guessed(normal, abnormal):
    """Balanced accuracy with which naive Bayes tells a text's class from the words of all the others: 0.5 is chance."""
    bags = [
        (set(re.findall(r"[a-z]+", text.lower())), side)
        for side, texts in enumerate((normal, abnormal))
        for text in texts
    ]
    seen, right = [Counter(word for bag, of in bags if of == side for word in bag) for side in (0, 1)], [0.0, 0.0]
    for bag, side in bags:
        left = [len(texts) - (side == of) for of, texts in enumerate((normal, abnormal))]
        odds = [sum(math.log((seen[of][word] - (of == side) + 1) / (left[of] + 2)) for word in bag) for of in (0, 1)]
        right[side] += 0.5 if odds[0] == odds[1] else float(odds[side] > odds[1 - side])
    return (right[0] / len(normal) + right[1] / len(abnormal)) / 2


def test_what_a_look_is_told_is_about_its_own_scene_and_does_not_tell_the_classes_apart(tmp_path):
    path = write_world(120, 1_430_004, tmp_path, World(num_frames=(33,), length_weights=()))
    records = list(read_records(path))
    settings = Synthesis(tasks=["scan", "look"], close_ups=False)
    assert synthesise(records, tmp_path, GroundTruth(records), tmp_path / "chains", settings)["accepted"] >= 110
    of = {record.id: record for record in records}
    rows = [json.loads(line) for line in (tmp_path / "chains" / "chains.jsonl").read_text().splitlines()]
    scans = {row["record"]: row["answer"] for row in rows if row["task"] == "scan"}
    looks = [row for row in rows if row["task"] == "look"]
    for row in looks:
        actors = {(actor.colour, actor.kind) for actor in parse_prompt(of[row["record"]].prompt).actors}
        claim = json.loads(row["claim"])
        for item in claim["anomalies"]:
            named = set(re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b", item["Reason for Anomaly"]))
            assert named and named <= actors
        frames = claim["COT"].split("Step 2")[0]
        assert set(re.findall(rf"\b(?:{'|'.join(KINDS)})\b", frames)) <= {kind for _, kind in actors}
        if "donor" in row:  # a finding of another record, told of this one
            lent = [anomaly.type for anomaly in of[row["donor"]].anomalies]
            assert row["donor"] != row["record"] and [item["Attributed Label"] for item in claim["anomalies"]] == lent
            assert not set(lent) & {anomaly.type for anomaly in of[row["record"]].anomalies}
        else:
            assert row["claim"] == scans[row["record"]] and of[row["record"]].status == "abnormal"
    lent = {status: ["donor" in row for row in looks if of[row["record"]].status == status] for status in CLASSES}
    assert all(lent["normal"]) and 0.3 < sum(lent["abnormal"]) / len(lent["abnormal"]) < 0.7
    told = first_looks(tmp_path / "chains", records)
    assert min(map(len, told.values())) >= 30
    for text, sample in (each for side in told.values() for each in side):
        assert "\nStep 1: Frame 0: " in text  # the template that normal looks once had says so in none
        wrong = [
            int(n) / 4
            for n, seen in re.findall(r"Frame (\d+): (?:[a-d][1-4] |away )?([^.]*)\.", text)
            if seen != "fine"
        ]
        assert any(sample.window.start_s <= t <= sample.window.end_s for t in wrong)  # what it says fits the clip
    texts = {status: [text for text, _ in told[status]] for status in CLASSES}
    counts = [lambda text, part=part: text.count(part) for part in ("Frame", " fine", ",", *ANOMALY_TYPES)]
    for measure in (len, *counts):
        assert told_apart(*([measure(text) for text in texts[status]] for status in CLASSES)) < 0.67
    assert 0.35 < guessed(*texts.values()) < 0.65
    # Both see what there is to see: a template, or a kind of anomaly that one class alone is told.
    short = ["Step 1: something looks wrong. Step 2: the ball melts. Step 3: Object Distortion."] * len(texts["normal"])
    assert (
        told_apart(list(map(len, short)), list(map(len, texts["abnormal"]))) == guessed(short, texts["abnormal"]) == 1.0
    )
    every = [text for status in CLASSES for text in texts[status]]
    kinds = [[text for text in every if (ANOMALY_TYPES[0] in text) == at] for at in (False, True)]
    assert guessed(*kinds) > 0.8


def test_a_segment_ends_with_the_end_token_and_holds_the_answer(folder):
    processor = tiny_qwen.processor(tiny_stage.tokenizer())
    found, store = stage(folder), {}
    sample = found.training["scan", "abnormal"][0]
    made = segment(found, sample, processor, store)
    ids = processor.tokenizer.convert_tokens_to_ids
    assert made.answer == (ids(sample.answer), ids("<|im_end|>")) and len(store) == 1
    with pytest.raises(ValueError, match="holds a special token"):
        segment(found, Sample(sample.record, "scan", "<|im_end|>"), processor, store)


def test_a_look_decodes_its_clip_and_not_the_scan_whose_claim_it_repeats(folder, monkeypatch):
    claim = '{"COT": "Frame 1 melts.", "status": "abnormal", "anomalies": [{"Attributed Label": "Object Distortion", '
    claim += '"Reason for Anomaly": "melts", "Attributed Time Region": "Frame 1-2"}]}'
    found, asked, frames = stage(folder), [], Video.frames
    sample = replace(found.training["look", "abnormal"][0], claim=claim)
    monkeypatch.setattr(
        Video, "frames", lambda self, indices, **k: (asked.append(tuple(indices)), frames(self, indices, **k))[1]
    )
    _, clip = conversation(found, sample)
    assert asked == [clip.indices], "the clip's frames alone"
    video = found.video(found.records[sample.record])
    scan = video.sample(found.recipe.scan_fps)
    expected = read_answer(claim, number=1, frames=scan.indices, times_s=scan.times_s)
    assert _first_turn(found, sample, found.records[sample.record], video) == expected
    assert expected.anomalies[0].window is not None


def test_a_broken_video_is_replaced_by_one_of_its_class_and_counted(tmp_path):
    folder = tiny_stage.data_folder(tmp_path)
    (folder / "clip1.mp4").write_bytes(b"broken")
    processor = tiny_qwen.processor(tiny_stage.tokenizer())
    found = stage(folder, 3, max_unusable=0.5)
    bad = next(s for s in found.training["scan", "abnormal"] if s.record == "clip1")
    reasons = {}
    made = usable_segment(found, bad, processor, {}, reasons)
    assert made.videos[0][0] in ("clip3", "clip5") and list(reasons) == ["clip1/scan"]
    assert found.bad == {}, "it is counted when its step is taken, not when it is read ahead"
    with pytest.raises(ValueError, match="sample clip1/scan: .*data.unusable=skip"):
        usable_segment(stage(folder, 3, unusable="stop"), bad, processor, {}, {})
    with pytest.raises(ValueError, match="1 of 6 samples .* more than data.max_unusable=0.1 allows"):
        usable_segment(stage(folder, 3, max_unusable=0.1), bad, processor, {}, {})


def test_a_video_of_variable_frame_rate_is_left_out_by_name(tmp_path, monkeypatch):
    """The teacher saw it on its own clock, training would read it at index / fps: other frames, other times."""
    folder = tiny_stage.data_folder(tmp_path)
    opened = Video.open

    def uneven(source, **options):
        video = opened(source, **options)
        late = tuple(
            t if 2 * n < len(video) else t + 0.1 for n, t in enumerate(video.times_s)
        )  # 1.6 frames from the middle on
        return replace(video, times_s=late) if Path(source).name == "clip1.mp4" and "fps" not in options else video

    monkeypatch.setattr(Video, "open", uneven)
    found = stage(folder, 3, max_unusable=0.5)
    bad = next(s for s in found.training["scan", "abnormal"] if s.record == "clip1")
    reasons = {}
    usable_segment(found, bad, tiny_qwen.processor(tiny_stage.tokenizer()), {}, reasons)
    assert reasons == {"clip1/scan": "clip1: variable frame rate: re-encode at a constant rate"}
    other = found.records["clip3"]
    assert found.video(other).times_s == tuple(n / other.fps for n in range(other.num_frames))


def test_what_any_process_leaves_out_counts_once_towards_the_limit(folder):
    found = stage(folder, 3, max_unusable=0.25)  # 2 of 8
    sample = found.training["scan", "normal"][0]
    found.leave_out(sample, "broken")
    name = f"{sample.record}/scan"
    found.leave_out_all({name: "broken", "clip1/scan": "broken"})
    assert found.bad == {name: "broken", "clip1/scan": "broken"}
    with pytest.raises(
        ValueError, match=r"3 of 8 samples .* more than data.max_unusable=0.25 allows; the last one, clip3/scan: torn"
    ):
        found.leave_out_all({**found.bad, "clip3/scan": "torn"})


def test_missing_videos(tmp_path):
    folder = tiny_stage.data_folder(tmp_path)
    (folder / "clip1.mp4").unlink()
    found = stage(folder, 3, max_unusable=0.2)
    assert "does not exist" in found.bad["clip1/scan"]
    assert {s.record for s in found.training["scan", "abnormal"]} == {"clip3", "clip5"}
    with pytest.raises(ValueError, match="1 of 6 samples .* more than data.max_unusable=0.1 allows"):
        stage(folder, 3, max_unusable=0.1)
    with pytest.raises(ValueError, match="clip1.mp4 does not exist; mend it"):
        stage(folder, 3, unusable="stop")


def rewrite(folder, rows):
    (folder / "stage2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"record": "nobody"}, "stage2.jsonl:1: not a sample: record 'nobody' is not in records.jsonl"),
        ({"task": "glance"}, "task must be one of frame, scan, look, single, received 'glance'"),
        ({"task": "look", "window": None}, "a look needs its window"),
        ({"task": "look", "window": [2, 1]}, "Window is inverted"),
        ({"task": "frame", "frame": None}, "a frame sample needs its source index"),
        ({"answer": None}, "answer must be a string"),
    ],
)
def test_wrong_lines_are_named(folder, tmp_path, change, told):
    made = tiny_stage.data_folder(tmp_path)
    rewrite(made, [{"record": "clip0", "task": "scan", "window": None, "frame": None, "answer": "x", **change}])
    with pytest.raises(ValueError, match=told):
        stage(made)


def test_empty_splits_and_missing_classes(tmp_path):
    made = tiny_stage.data_folder(tmp_path)
    rewrite(made, [])
    with pytest.raises(ValueError, match="stage2.jsonl: the split is empty; expected samples of task scan or look"):
        stage(made)
    rows = [
        {"record": "clip0", "task": task, "window": [0, 0.5], "frame": None, "answer": "x"} for task in ("scan", "look")
    ]
    rewrite(made, rows)
    with pytest.raises(ValueError, match="no abnormal sample of task 'scan' is left"):
        stage(made)
    with pytest.raises(ValueError, match="records.jsonl does not exist"):
        stage(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="data.samples: .*nothing.jsonl does not exist"):
        read_stage(DataRecipe(folder=str(made), samples="nothing.jsonl"), ("scan",), 0)


@pytest.mark.parametrize("name", ["held_out", "max_unusable", "look_share", "false_alarm_share"])
def test_a_share_outside_zero_and_one_is_named(name):
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"data\.{name} is a share in \[0, 1\], received {wrong}"):
            DataRecipe(**{name: wrong})


def test_the_data_say_how_their_judge_is_asked(folder):
    recipe = DataRecipe(folder=str(folder), wording="brief", margin_s=0.25)
    assert recipe.two_turn == TwoTurn(wording="brief", margin_s=0.25) and DataRecipe().two_turn == TwoTurn()


def test_stage_three_needs_no_samples_file(folder):
    found = read_stage(DataRecipe(folder=str(folder), held_out=0.0), ("scan",), 0)
    assert sum(map(len, found.training.values())) == 8
