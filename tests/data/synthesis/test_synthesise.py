"""Generate, verify, again: who passes in which round is worked out by hand; every answer is kept,
and a killed run goes on.
"""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cac_align.cli.main import main
from cac_align.core.answer import read_answer
from cac_align.core.judgement import Window
from cac_align.core.video import Video
from cac_align.data.record_video import open_record_video
from cac_align.data.records import read_records
from cac_align.data.synthesis.attempts import Attempt, AttemptLog
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.synthesise import synthesise
from cac_align.miniature.teacher.ground_truth import GroundTruth
from cac_align.miniature.world.settings import World
from cac_align.miniature.world.world import write_world
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm

BRIEF = Synthesis(wording="brief", workers=3, frames_per_video=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(4, 1_430_004, tmp_path_factory.mktemp("world"), World(num_frames=(17,), length_weights=()))


@pytest.fixture
def records(world):
    return list(read_records(world))


class Pupil:
    """The ground truth's answers, spoiled in the first ``bad[record]`` rounds of the scan. Counts
    what it was asked.
    """

    def __init__(self, records, bad=None, spoil="no json", task="scan"):
        self.truth, self.bad, self.spoil, self.task = GroundTruth(records), bad or {}, spoil, task
        self.asked, self.lock = [], threading.Lock()

    def __call__(self, conversation):
        record, task = conversation[0].text.split("(sample ")[1].split(")")[0].rsplit(", ", 1)
        with self.lock:
            self.asked.append((record, task))
            count = self.asked.count((record, task))
        if task == self.task and count <= self.bad.get(record, 0):
            return self.spoil
        return self.truth.answer([conversation], max_new_tokens=400)[0]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_ground_truth_teacher_is_verified_in_the_first_round_and_its_samples_read_back(world, records, tmp_path):
    report = synthesise(records, world.parent, GroundTruth(records), tmp_path, BRIEF)
    assert (report["accepted"], report["rounds"], report["rejected"], report["discarded"]) == (4, {1: 4}, 0, 0)
    by_id = {record.id: record for record in records}
    for sample in rows(tmp_path / "chains.jsonl"):
        record = by_id[sample["record"]]
        video = open_record_video(record, world.parent)
        if sample["task"] == "frame":
            frames = video.frames((sample["frame"],))
        else:
            frames = video.sample(4) if sample["task"] == "scan" else video.clip(Window(*sample["window"]), 8)
        turn = read_answer(
            sample["answer"], number=1 if sample["task"] == "scan" else 2, frames=frames.indices, times_s=frames.times_s
        )
        assert turn.faults == () and turn.status == record.status
        if (
            sample["task"] == "look"
        ):  # what turn 2 is told is turn 1's answer in its own format, abnormal on either class
            scanned = video.sample(4)
            claim = read_answer(sample["claim"], number=1, frames=scanned.indices, times_s=scanned.times_s)
            assert claim.faults == () and claim.status == "abnormal"
    written = list(read_records(tmp_path / "records.jsonl"))
    assert [record.anomalies for record in written] == [
        record.anomalies for record in records
    ]  # the world's own saliency stays
    assert all((tmp_path / record.video).is_file() for record in written)


NORMAL = json.dumps({"COT": "Step 1: fine.", "status": "normal", "anomalies": []})


def test_an_alarm_is_asked_before_its_look_verified_against_what_it_supposes_and_no_sample_of_its_own(
    world, records, tmp_path
):
    pupil = Pupil(records)
    settings = replace(BRIEF, workers=1, false_alarm_share=1.0)
    report = synthesise(records, world.parent, ScriptedVlm(pupil), tmp_path, settings)
    assert [task for name, task in pupil.asked if name == records[0].id][:3] == ["scan", "alarm", "look"]
    assert report["samples"] == {"scan": 4, "look": 4, "frame": report["samples"]["frame"]} and report["rejected"] == 0
    attempts = {row["record"]: row["text"] for row in rows(tmp_path / "attempts.jsonl") if row["task"] == "alarm"}
    by_id = {record.id: record for record in records}
    looks = [row for row in rows(tmp_path / "chains.jsonl") if row["task"] == "look"]
    for look in looks:
        assert look["claim"] == attempts[look["record"]] and look["donor"] != look["record"]
        lent = [anomaly.type for anomaly in by_id[look["donor"]].anomalies]
        assert [item["Attributed Label"] for item in json.loads(look["claim"])["anomalies"]] == lent
        assert json.loads(look["answer"])["status"] == by_id[look["record"]].status  # the truth stays what it is
    for scan in (row for row in rows(tmp_path / "chains.jsonl") if row["task"] == "scan"):
        assert json.loads(scan["answer"])["status"] == by_id[scan["record"]].status and "donor" not in scan
        assert scan["answer"] not in attempts.values()
    again = Pupil(records)
    teacher = ScriptedVlm(again)
    before = (tmp_path / "chains.jsonl").read_text()
    assert synthesise(records, world.parent, teacher, tmp_path, settings) == report and again.asked == []
    assert (tmp_path / "chains.jsonl").read_text() == before


def test_an_alarm_that_tells_the_truth_is_rejected_with_the_reason_and_costs_at_most_the_look(world, records, tmp_path):
    normal = [record.id for record in records if record.status == "normal"]
    honest = dict.fromkeys((record.id for record in records), 99)
    pupil = Pupil(records, honest, spoil=NORMAL, task="alarm")
    settings = replace(BRIEF, workers=1, false_alarm_share=1.0, rounds=2, salient_rounds=1, saliency="all")
    report = synthesise(records, world.parent, ScriptedVlm(pupil), tmp_path, settings)
    assert (report["accepted"], report["samples"]["scan"], report["samples"]["look"], report["salient"]) == (4, 4, 2, 2)
    refused = [row for row in rows(tmp_path / "attempts.jsonl") if row["task"] == "alarm"]
    assert {tuple(row["reasons"]) for row in refused} == {("status: normal, expected abnormal",)}
    # two rounds of every donor's: two fit the normal videos (there are two), one each abnormal one
    assert {name: pupil.asked.count((name, "alarm")) for name in honest} == {n: 4 if n in normal else 2 for n in honest}
    lost = rows(tmp_path / "discarded.jsonl")
    assert sorted(row["record"] for row in lost) == sorted(normal) and report["reasons"] == {"no alarm": 2}
    assert {row["reason"] for row in lost} == {"no alarm: status: normal, expected abnormal (alarm, after 2 rounds)"}
    scans = {row["record"]: row["answer"] for row in rows(tmp_path / "chains.jsonl") if row["task"] == "scan"}
    told = {row["record"]: row for row in rows(tmp_path / "chains.jsonl") if row["task"] == "look"}
    assert all(row["claim"] == scans[name] and "donor" not in row for name, row in told.items())  # their own scans
    again = Pupil(records, honest, spoil=NORMAL, task="alarm")
    assert synthesise(records, world.parent, ScriptedVlm(again), tmp_path, settings) == report and again.asked == []


def test_the_next_donors_finding_is_borrowed_where_an_alarm_is_discarded(world, records, tmp_path):
    target = next(record.id for record in records if record.status == "normal")
    synthesise(records, world.parent, GroundTruth(records), tmp_path / "first", BRIEF)
    pupil = Pupil(records, {target: 5}, task="alarm")
    report = synthesise(records, world.parent, ScriptedVlm(pupil), tmp_path / "next", BRIEF)
    first, second = (
        next(row for row in rows(tmp_path / name / "chains.jsonl") if row["record"] == target and row["task"] == "look")
        for name in ("first", "next")
    )
    assert pupil.asked.count((target, "alarm")) == 6 and report["accepted"] == 4
    assert {first["donor"], second["donor"]} == {record.id for record in records if record.status == "abnormal"}
    assert first["window"] != second["window"] and second["rounds"] == 1  # looked at where the other donor is


def test_the_reviewer_of_an_alarm_is_not_told_that_people_found_it(world, records, tmp_path):
    teacher = ScriptedVlm(lambda conversation: GroundTruth(records).answer([conversation], max_new_tokens=400)[0])
    settings = replace(BRIEF, workers=1, review=True, tasks=["scan", "look"])
    assert synthesise(records, world.parent, teacher, tmp_path, settings)["accepted"] == 4
    alarms = sum(row["task"] == "alarm" for row in rows(tmp_path / "attempts.jsonl"))
    reviews = [asked[0].text for asked in teacher.asked if len(asked) == 1]
    assert alarms >= 2 and sum("who is mistaken" in text for text in reviews) == alarms
    assert sum("People found in this video" in text for text in reviews) == len(reviews) - alarms == 8


def test_the_round_decides_salience_and_five_failures_discard_with_the_reason(world, records, tmp_path):
    bad, worse, *_ = [record.id for record in records if record.status == "abnormal"]
    normal = next(record.id for record in records if record.status == "normal")
    pupil = Pupil(records, {bad: 2, worse: 3, normal: 5})
    settings = replace(BRIEF, saliency="all")
    report = synthesise(records, world.parent, ScriptedVlm(pupil), tmp_path, settings)
    assert (report["salient"], report["non_salient"], report["discarded"]) == (1, 1, 1)
    labels = {r.id: {a.saliency for a in r.anomalies} for r in read_records(tmp_path / "records.jsonl")}
    assert labels[bad] == {"salient"} and labels[worse] == {"non-salient"} and normal not in labels
    (lost,) = rows(tmp_path / "discarded.jsonl")
    assert lost["record"] == normal and "format: not json" in lost["reason"] and "after 5 rounds" in lost["reason"]
    assert (normal, "look") not in pupil.asked  # nothing more is spent on it
    kept = [row for row in rows(tmp_path / "attempts.jsonl") if row["reasons"]]
    assert len(kept) == 2 + 3 + 5 and all(row["text"] == "no json" for row in kept)
    assert report["rejected"] == 10 and report["answers"] == len(rows(tmp_path / "attempts.jsonl"))


def test_a_further_round_quotes_the_answer_and_what_was_wrong_with_it(world, records, tmp_path):
    target = records[1].id
    teacher = ScriptedVlm(Pupil(records, {target: 1}, spoil="The ground truth is that it melts."))
    synthesise(records[:2], world.parent, teacher, tmp_path, replace(BRIEF, workers=1))
    again = [asked for asked in teacher.asked if len(asked) > 3]
    assert len(again) == 1 and again[0][-2].text == "The ground truth is that it melts."
    assert "format: not json" in again[0][-1].text and "hint: the text says 'ground truth'" in again[0][-1].text


def test_a_frame_that_fails_costs_only_itself(world, records, tmp_path):
    target = next(record.id for record in records if record.status == "normal")
    report = synthesise(records, world.parent, ScriptedVlm(Pupil(records, {target: 5}, task="frame")), tmp_path, BRIEF)
    assert report["discarded"] == 0 and report["accepted"] == 4
    assert [(row["record"], row["task"]) for row in rows(tmp_path / "discarded.jsonl")] == [(target, "frame")]
    assert [s["task"] for s in rows(tmp_path / "chains.jsonl") if s["record"] == target] == ["scan", "look"]


def test_a_killed_run_goes_on_where_it_stopped_and_asks_nothing_twice(world, records, tmp_path):
    whole = tmp_path / "whole"
    target = records[1].id
    synthesise(records, world.parent, ScriptedVlm(Pupil(records, {target: 2})), whole, replace(BRIEF, workers=1))
    lines = (whole / "attempts.jsonl").read_bytes().splitlines(keepends=True)
    for cut in (2, len(lines) - 1):
        part = tmp_path / f"part{cut}"
        part.mkdir()
        (part / "attempts.jsonl").write_bytes(
            b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2]
        )  # torn in its middle
        before = [json.loads(line) for line in lines[:cut]]
        done = sum((row["record"], row["task"]) == (target, "scan") for row in before)
        pupil = Pupil(records, {target: 2 - min(done, 2)})
        synthesise(records, world.parent, ScriptedVlm(pupil), part, replace(BRIEF, workers=1))
        assert len(pupil.asked) == len(lines) - cut
        for name in ("chains.jsonl", "records.jsonl", "report.json", "attempts.jsonl"):
            mine, theirs = ((folder / name).read_text() for folder in (part, whole))
            assert mine == theirs or name == "report.json"
        assert (part / "attempts.jsonl.torn").read_bytes().strip() == lines[cut][: len(lines[cut]) // 2].strip()


def test_a_teacher_that_answers_garbage_stops_the_run_with_a_sentence_and_writes_no_chains(world, records, tmp_path):
    with pytest.raises(ValueError, match=r"gave up: 2 records in a row .* format: not json.*give_up_after=0") as told:
        synthesise(
            records, world.parent, ScriptedVlm(lambda _: "?"), tmp_path, replace(BRIEF, workers=1, give_up_after=2)
        )
    assert "attempts.jsonl" in str(told.value) and not (tmp_path / "chains.jsonl").exists()
    assert (
        len(rows(tmp_path / "attempts.jsonl")) == 10
    )  # two records, five rounds; the rejected answers are there to be read
    report = synthesise(records, world.parent, ScriptedVlm(lambda _: "?"), tmp_path, replace(BRIEF, give_up_after=0))
    assert report["discarded"] == 4 and report["accepted"] == 0  # or it goes on, counted, as the recipe says


@pytest.mark.parametrize("asked", ["(sample ", ", alarm)"])
def test_a_teacher_that_is_down_costs_no_round_and_the_same_call_resumes(world, records, tmp_path, asked):
    pupil, down = Pupil(records), {"down": True}

    def flaky(conversation):
        failed = down["down"] and asked in conversation[0].text
        return Reply("", error="connection refused") if failed else pupil(conversation)

    teacher, settings = ScriptedVlm(flaky), replace(BRIEF, false_alarm_share=1.0)
    report = synthesise(records, world.parent, teacher, tmp_path, settings)
    assert (report["unanswered"], report["failures"], report["accepted"]) == (4, 4, 0)
    down["down"] = False
    report = synthesise(records, world.parent, teacher, tmp_path, settings)
    assert (report["unanswered"], report["accepted"], report["rounds"]) == (0, 4, {1: 4})
    assert len(pupil.asked) == len(set(pupil.asked))


def test_several_records_are_asked_at_once_and_progress_counts_them(world, records, tmp_path):
    pupil, together = Pupil(records), threading.Barrier(3, timeout=60)
    shown = []

    def teacher(conversation):
        with pupil.lock:
            first = len(pupil.asked) < 3
            pupil.asked.append(None)
        if first:
            together.wait()  # comes back only when three questions are in flight
        return pupil.truth.answer([conversation], max_new_tokens=400)[0]

    settings = replace(BRIEF, tasks=["scan"], price_prompt=1.0, price_answer=1.0)
    synthesise(
        records, world.parent, ScriptedVlm(teacher), tmp_path, settings, progress=lambda *counts: shown.append(counts)
    )
    assert [(done, total) for done, total, _ in shown] == [(n, 4) for n in (1, 2, 3, 4)]
    last = shown[-1][2]
    assert last["accepted"] == last["answers"] == 4
    assert last["cost"] == pytest.approx((last["prompt_tokens"] + last["answer_tokens"]) / 1e6) and last["cost"] > 0


def test_a_real_model_and_a_server_take_the_conversation(world, records, tmp_path):
    from cac_align.vlm.local import LocalVlm
    from cac_align.vlm.server.chat import chat_fields
    from tests.support import tiny_qwen

    abnormal = [record for record in records if record.status == "abnormal"][:1]
    settings = replace(BRIEF, tasks=["scan"], rounds=2, salient_rounds=1, max_new_tokens=4)
    untaught = LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="untaught")
    report = synthesise(abnormal, world.parent, untaught, tmp_path / "local", settings)
    assert (report["failures"], report["answers"], report["discarded"]) == (
        0,
        2,
        1,
    )  # it answers garbage, and that twice
    assert report["prompt_tokens"] > 400 and report["answer_tokens"] == 8
    teacher = ScriptedVlm(lambda _: "<|video_pad|> no json")
    synthesise(abnormal, world.parent, teacher, tmp_path / "scripted", settings)
    first, second = teacher.asked
    roles = [message["role"] for message in chat_fields(second, as_video=False, quality=90)["messages"]]
    assert roles == ["system", "user", "user", "assistant", "user"] and len(first) == 3
    assert second[3].text == " no json"  # a control token would end the model's own prompt


def test_bad_records_are_discarded_by_name_and_the_others_go_on(world, records, tmp_path):
    broken = [replace(records[0], video="gone.mp4"), replace(records[1], num_frames=99), *records[2:]]
    report = synthesise(broken, world.parent, GroundTruth(broken), tmp_path, BRIEF)
    assert (report["discarded"], report["accepted"]) == (2, 2)
    reasons = {row["record"]: row["reason"] for row in rows(tmp_path / "discarded.jsonl")}
    assert "video missing" in reasons[records[0].id] and "states 99 frames" in reasons[records[1].id]
    with pytest.raises(ValueError, match="none of 4 records is accepted or audited"):
        synthesise(
            [replace(record, review="draft") for record in records], world.parent, GroundTruth(records), tmp_path / "d"
        )
    with pytest.raises(ValueError, match="occurs twice"):
        synthesise([records[0]] * 2, world.parent, GroundTruth(records), tmp_path / "e")


@pytest.mark.parametrize("status", ["normal", "abnormal"])
def test_a_video_damaged_behind_its_scan_is_discarded_by_name_and_the_others_go_on(
    world, records, tmp_path, monkeypatch, status
):
    """At 4 fps its frames can be read, the others not: an abnormal one fails in the close-up, a
    normal one in its look.
    """
    target = next(record for record in records if record.status == status)
    frames, seen = Video.frames, []

    def damaged(self, indices, *, fps=None):
        if self.path.name == Path(target.video).name:
            seen.append(tuple(indices))
            if any(index % 4 for index in indices):
                raise (ValueError if status == "normal" else OSError)(f"{self.name}: the file is damaged")
        return frames(self, indices, fps=fps)

    monkeypatch.setattr(Video, "frames", damaged)
    settings = replace(BRIEF, tasks=["scan", "look"])
    report = synthesise(records, world.parent, GroundTruth(records), tmp_path, settings)
    assert (report["discarded"], report["accepted"], report["reasons"]) == (1, 3, {f"{world.parent / target.video}": 1})
    (lost,) = rows(tmp_path / "discarded.jsonl")
    assert (
        (lost["record"], lost["task"]) == (target.id, "video")
        and "the file is damaged" in lost["reason"]
        and len(seen) > 1
    )
    assert len(rows(tmp_path / "chains.jsonl")) == 6
    again = synthesise(records, world.parent, GroundTruth(records), tmp_path, settings)
    assert again["accepted"] == 3  # a resume is no worse


def test_a_box_outside_the_video_costs_its_record_and_a_bug_is_not_taken_for_damage(world, records, tmp_path):
    target = next(record for record in records if record.status == "abnormal")
    (anomaly,) = target.anomalies
    away = replace(
        anomaly, type="Object Distortion", window=Window(0.25, 1.75), boxes={28: next(iter(anomaly.boxes.values()))}
    )
    changed = [replace(target, anomalies=(away,)), *(record for record in records if record is not target)]
    report = synthesise(changed, world.parent, GroundTruth(changed), tmp_path / "out", BRIEF)
    assert (report["accepted"], report["discarded"]) == (3, 1)
    (lost,) = [row for row in rows(tmp_path / "out" / "discarded.jsonl") if row["record"] == target.id]
    assert lost["task"] == "video" and "frame 28 is asked for, the last one is 16" in lost["reason"]

    class Buggy(GroundTruth):
        def answer(self, *asked, **options):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="^a bug$"):
        synthesise(records, world.parent, Buggy(records), tmp_path / "bug", BRIEF)


def test_the_answer_kept_ends_where_it_was_read_to_end(world, records, tmp_path):
    def talkative(conversation):
        reply = GroundTruth(records).answer([conversation], max_new_tokens=400)[0]
        return replace(reply, text=f"Here: {reply.text} So {{nothing}} else is wrong.")

    report = synthesise(records, world.parent, ScriptedVlm(talkative), tmp_path, replace(BRIEF, false_alarm_share=1.0))
    assert (report["accepted"], report["rejected"]) == (4, 0)
    for sample in rows(tmp_path / "chains.jsonl"):
        assert set(json.loads(sample["answer"])) == {"COT", "status", "anomalies"}
        assert "claim" not in sample or set(json.loads(sample["claim"])) == {"COT", "status", "anomalies"}


def test_what_the_scan_cannot_show_is_not_taught(tmp_path):
    path = write_world(2, 1_430_000, tmp_path, World(num_frames=(17,), length_weights=()))
    records = list(read_records(path))
    (window,) = (anomaly.window for anomaly in records[1].anomalies)
    assert not any(window.start_s <= n / 4 <= window.end_s for n in range(5))  # no frame of the 4-fps scan is inside
    teacher = ScriptedVlm(Pupil(records))
    report = synthesise(records, tmp_path, teacher, tmp_path / "out", BRIEF)
    assert report["reasons"] == {"not shown": 1, "no alarm": 1} and report["accepted"] == 1
    assert all("abnormal" not in conversation[0].text.split("(sample ")[1][:20] for conversation in teacher.asked)


def test_a_folder_belongs_to_one_teacher_and_one_way_of_asking(world, records, tmp_path):
    synthesise(records[:2], world.parent, GroundTruth(records), tmp_path, BRIEF)
    with pytest.raises(ValueError, match="was made with strict = False, now it is True"):
        synthesise(records[:2], world.parent, GroundTruth(records), tmp_path, replace(BRIEF, strict=True))
    with pytest.raises(ValueError, match="teacher/"):
        synthesise(records[:2], world.parent, ScriptedVlm(Pupil(records)), tmp_path, BRIEF)
    more = synthesise(records, world.parent, GroundTruth(records), tmp_path, replace(BRIEF, workers=1, rounds=4))
    assert more["accepted"] == 4  # more records, other workers: the same folder


def test_a_second_process_is_refused_and_a_damaged_line_is_named(tmp_path):
    log = AttemptLog(tmp_path / "attempts.jsonl")
    with pytest.raises(ValueError, match="another process is writing it"):
        AttemptLog(tmp_path / "attempts.jsonl")
    log.add(Attempt("k", "r", "scan", 1, "text \u2028 with a separator", ("time: IoU 0.1",), num_tokens=3))
    log.close()
    again = AttemptLog(tmp_path / "attempts.jsonl")
    assert again.rounds("k") == [
        Attempt("k", "r", "scan", 1, "text \u2028 with a separator", ("time: IoU 0.1",), num_tokens=3)
    ]
    again.close()
    path = tmp_path / "attempts.jsonl"
    path.write_bytes(b"{broken}\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"attempts.jsonl:1: not an attempt"):
        AttemptLog(path)


def test_a_reviewer_reads_what_was_verified_and_costs_are_counted(world, records, tmp_path):
    truth, verdicts = (
        GroundTruth(records),
        iter(['{"consistent": false, "why": "it says ball"}', '{"consistent": true, "why": ""}']),
    )

    def teacher(conversation):
        if len(conversation) == 1:
            return Reply(next(verdicts), num_prompt_tokens=1000, num_tokens=100)
        return replace(truth.answer([conversation], max_new_tokens=400)[0], num_prompt_tokens=2000, num_tokens=300)

    settings = Synthesis(
        wording="brief", review=True, tasks=["scan"], workers=1, price_prompt=1.0, price_answer=10.0
    )  # per million tokens
    report = synthesise(records[:1], world.parent, ScriptedVlm(teacher), tmp_path, settings)
    first, second = rows(tmp_path / "attempts.jsonl")
    assert first["reasons"] == ['review: {"consistent": false, "why": "it says ball"}'] and second["reasons"] == []
    assert report["cost"] == pytest.approx((6000 * 1.0 + 800 * 10.0) / 1e6)


def test_a_reviewer_who_is_down_costs_no_generation_and_one_without_a_verdict_a_round(world, records, tmp_path):
    pupil, reviewer = Pupil(records), {"says": Reply("", error="timeout")}
    reviewed = []

    def teacher(conversation):
        if len(conversation) == 1 and '"consistent"' in conversation[0].text:
            reviewed.append(conversation[0].text)
            return reviewer["says"]
        return replace(pupil(conversation), num_prompt_tokens=2000, num_tokens=300)

    settings = replace(BRIEF, review=True, tasks=["scan"], workers=1, rounds=3, salient_rounds=1)
    for failures in (2, 4):  # a second failure of the reviewer does not lose the answer either
        report = synthesise(records[:2], world.parent, ScriptedVlm(teacher), tmp_path, settings)
        assert (report["unanswered"], report["failures"], report["answers"]) == (2, failures, 0)
        assert pupil.asked == [(record.id, "scan") for record in records[:2]]  # generated, and paid for, once
    reviewer["says"] = Reply('{"consistent": true}', num_prompt_tokens=1000, num_tokens=100)
    report = synthesise(records[:2], world.parent, ScriptedVlm(teacher), tmp_path, settings)
    assert len(pupil.asked) == 2 and len(reviewed) == 6 and len(set(reviewed)) == 2
    assert (report["accepted"], report["rounds"], report["answers"], report["unanswered"]) == (2, {1: 2}, 2, 0)
    assert (report["prompt_tokens"], report["answer_tokens"]) == (
        2 * 3000,
        2 * 400,
    )  # each answer and each review counted once
    assert [row["unreviewed"] for row in rows(tmp_path / "attempts.jsonl")] == [True] * 4 + [False] * 2
    reviewer["says"] = Reply("It looks fine to me.")
    report = synthesise(records, world.parent, ScriptedVlm(teacher), tmp_path, settings)
    assert (report["accepted"], report["discarded"], report["unanswered"]) == (2, 2, 0) and len(
        pupil.asked
    ) == 2 + 2 * 3
    assert all(
        "review: no verdict in 'It looks fine to me.'" in row["reason"] for row in rows(tmp_path / "discarded.jsonl")
    )


def test_a_finished_synthesis_decodes_nothing_again_and_counts_what_the_file_holds(
    world, records, tmp_path, monkeypatch
):
    settings = replace(BRIEF, false_alarm_share=1.0)
    pupil = Pupil(records, {records[0].id: 1})
    report = synthesise(records, world.parent, ScriptedVlm(pupil), tmp_path, settings)
    kept = rows(tmp_path / "attempts.jsonl")
    assert report["answers"] == len(kept) and report["rejected"] == 1 == sum(bool(row["reasons"]) for row in kept)
    assert report["answer_tokens"] == sum(row["num_tokens"] for row in kept) > 0
    monkeypatch.setattr(Video, "frames", lambda *_, **__: pytest.fail("decoded again"))
    before = (tmp_path / "chains.jsonl").read_text()
    assert synthesise(records, world.parent, ScriptedVlm(pupil), tmp_path, settings) == report
    assert (tmp_path / "chains.jsonl").read_text() == before


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"rounds": 2}, "salient_rounds <= rounds"),
        ({"tasks": ["look"]}, "look needs scan"),
        ({"tasks": ["scan", "listen"]}, "tasks must be some of scan, look, frame"),
        ({"saliency": "none"}, "saliency must be"),
        ({"false_alarm_share": 1.5}, r"false_alarm_share is a share in \[0, 1\], received 1.5"),
    ],
)
def test_settings_that_cannot_be_meant(wrong, told):
    with pytest.raises(ValueError, match=told):
        Synthesis(**wrong)


def test_the_verb_makes_chains_with_the_miniature_and_shows_the_report(world, tmp_path, capsys):
    out = tmp_path / "chains"
    command = [
        "data",
        "synthesise",
        str(world),
        "--teacher",
        "miniature",
        "--out",
        str(out),
        "--set",
        "workers=2",
        "--json",
    ]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["accepted"] == 4 and first["answers"] == len(rows(out / "attempts.jsonl"))
    assert main(command) == 0 and json.loads(capsys.readouterr().out) == first  # nothing is asked again
    assert json.loads((out / "synthesis.json").read_text())["wording"] == "brief"


def test_teachers_by_recipe_by_url_and_what_is_wrong_with_them(world, tmp_path, capsys):
    from cac_align.cli.data import load_teacher

    recipe = tmp_path / "teacher.yaml"
    recipe.write_text(
        "teacher: {model: 'http://127.0.0.1:9', served_model: t}\nsynthesis: {workers: 2, wording: brief}\n"
    )
    reward = tmp_path / "reward.yaml"
    reward.write_text(
        "components: {a: {kind: unified}, b: {kind: cac, model: 'http://127.0.0.1:9', served_model: t}}\n"
    )
    by_url = load_teacher("http://127.0.0.1:9", None, ["served_model=t"], [])
    assert [load_teacher(None, recipe, [], []).provenance, load_teacher(str(reward), None, [], []).provenance] == [
        by_url.provenance
    ] * 2
    base = ["data", "synthesise", str(world), "--out", str(tmp_path / "x")]
    for more, told in (
        ([], "pass --teacher"),
        (["--teacher", "miniature", "--set", "round=3"], "unknown key 'round'; did you mean 'rounds'"),
        (["--teacher", "http://127.0.0.1:9"], "is a server: pass served_model="),
        (["--teacher", "nowhere.yaml"], "nowhere.yaml: no such recipe file"),
    ):
        assert main([*base, *more]) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_the_recipes_that_ship_are_read():
    from cac_align.cli.data import load_teacher
    from cac_align.config import read_recipe
    from cac_align.data.splits import Splits

    folder = Path(__file__).parents[3] / "recipes" / "data"
    full = read_recipe(Synthesis, folder / "synthesise.yaml", section="synthesis")
    assert (full.rounds, full.salient_rounds, full.review, full.wording) == (5, 3, True, "full")
    assert load_teacher(None, folder / "synthesise.yaml", ["served_model=other"], []).provenance["model"] == "other"
    assert read_recipe(Synthesis, folder / "miniature.yaml", section="synthesis").wording == "brief"
    assert (
        read_recipe(Splits, folder / "splits.yaml", section="splits") == Splits()
    )  # the paper's sizes are the defaults
