"""Chains of thought from annotations: a teacher that knows the annotation explains it, and only
verified answers are kept.

A rejected answer is asked for again with the reasons, five rounds at most; decoding is greedy, so
the reasons are what changes the answer. Only the question and the accepted answer become a sample.

A record is verified in the round in which the last of its scan and looks is. Within three rounds
its anomalies are salient, in the fourth or fifth non-salient; otherwise the record is discarded
with the reason (Sec. 3.1). A single frame or a single-turn answer that fails costs only that
sample.

A false alarm (see ``false_alarms``) is asked before the look that is given it, and verified like a
scan, against what it is to suspect. It is no sample, and its rounds say nothing about salience. If
it fails, the next donor is tried. Without donors, an abnormal record's look is given its own scan,
and a normal record's look is lost ("no alarm").

Files in ``out``:

    attempts.jsonl   every answer, rejected ones with their reasons: the resume point
    synthesis.json   how the folder is made
    chains.jsonl     accepted answers as samples
    records.jsonl    the records they belong to, with saliency
    discarded.jsonl  record, task, reason
    report.json      counts, tokens, cost

Source: CaC (arXiv 2605.11723) Sec. 3.1, Appendix B.2, Figs. S4 to S6.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cac_align.cac.answer_schema import answer_schema
from cac_align.cac.prompts import wording_hash
from cac_align.cac.single_turn import single_turn_hash
from cac_align.core.judgement import Turn
from cac_align.core.video import Frames, Video
from cac_align.data.record_video import open_record_video
from cac_align.data.records import Record, moved_record, write_records
from cac_align.data.synthesis.attempts import Attempt, AttemptLog, record_provenance
from cac_align.data.synthesis.plan import plan_questions
from cac_align.data.synthesis.prompts import filled, texts_hash
from cac_align.data.synthesis.questions import (
    ALL_TASKS,
    TASKS,
    RecordQuestion,
    UnreadableVideo,
    expected_anomalies,
    question_conversation,
    question_frames,
    read_first_turn,
    sample_row,
    scan_frames,
)
from cac_align.data.synthesis.teacher_context import expected_findings, teacher_context
from cac_align.data.synthesis.verify import answer_faults
from cac_align.runs.files import atomic_write
from cac_align.vlm.protocol import Conversation, Message, Vlm

ALONE = ("frame", "single")
"""Tasks whose failure costs only the sample and does not count for a record's saliency."""
_CONTROL = re.compile(r"<\|[^|<>]*\|>")
"""Control tokens in a teacher's answer; quoted back, they would break its own prompt."""


@dataclass
class Synthesis:
    """How chains of thought are made; also the recipe of `cac-align data synthesise`."""

    # Maximum number of answers per question (Sec. 3.1: five).
    rounds: int = 5
    # Anomalies verified within this many rounds are salient (Sec. 3.1: three).
    salient_rounds: int = 3
    # Also apply the stricter rule of the paper's prompt (Fig. S6): both ends within two frames, 85
    # % covered.
    strict: bool = False
    # The teacher also checks the reasoning of each verified chain against the annotation (Fig. S6).
    review: bool = False
    # Which wording of the judge's instructions the samples carry: full or brief.
    wording: str = "full"
    # Show the teacher enlarged frames of the anomaly with a scan.
    close_ups: bool = True
    # Set saliency where the annotation has none ("fill"), or always ("all").
    saliency: str = "fill"
    # Which questions are asked: scan, look, frame, single.
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    # Maximum number of single frames per video.
    frames_per_video: int = 2
    # Clips are shorter than this, in seconds (Sec. 3.2: one second).
    max_clip_s: float = 1.0
    # Share of looks at anomalous videos that are given a false alarm, in [0, 1]; at normal videos
    # all are.
    false_alarm_share: float = 0.5
    # Seed of every choice of questions.
    seed: int = 0
    # Records in progress at the same time.
    workers: int = 8
    # Maximum length of an answer, in tokens.
    max_new_tokens: int = 4096
    # Force answers into the answer's JSON schema while they are decoded.
    constrained: bool = False
    # Stop after this many records in a row without a chain; 0 never stops.
    give_up_after: int = 20
    # Price per million prompt tokens, for the cost in the report; None: not computed.
    price_prompt: float | None = None
    # Price per million answer tokens; None: not computed.
    price_answer: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.salient_rounds <= self.rounds or self.workers < 1 or self.max_clip_s <= 0:
            raise ValueError(
                f"expected 1 <= salient_rounds <= rounds, workers >= 1, max_clip_s > 0; received "
                f"{self.salient_rounds}, "
                f"{self.rounds}, {self.workers}, {self.max_clip_s}"
            )
        unknown = sorted(set(self.tasks) - set(ALL_TASKS))
        if unknown or not self.tasks or ("look" in self.tasks and "scan" not in self.tasks):
            raise ValueError(
                f"tasks must be some of {', '.join(ALL_TASKS)}, and look needs scan; received {self.tasks}"
            )
        if not 0 <= self.false_alarm_share <= 1:
            raise ValueError(f"false_alarm_share is a share in [0, 1], received {self.false_alarm_share}")
        if self.saliency not in ("fill", "all"):
            raise ValueError(f"saliency must be 'fill' or 'all', received {self.saliency!r}")

    def identity(self) -> dict[str, str]:
        """The settings that must not change between a run and its resumption."""
        free = {"workers", "give_up_after", "price_prompt", "price_answer", "rounds", "salient_rounds", "saliency"}
        fixed = {name: str(value) for name, value in asdict(self).items() if name not in free}
        single = {"single_turn_sha256": single_turn_hash(self.wording)} if "single" in self.tasks else {}
        return {**fixed, **single, "texts_sha256": texts_hash(), "wording_sha256": wording_hash(self.wording)}


@dataclass(frozen=True)
class RecordOutcome:
    """What became of one record.

    discarded: why it has no samples.
    unanswered: why the teacher gave no answer; run again.
    lost: (task, reason) of everything discarded: the record's reason, and samples that failed
        alone.
    """

    record: Record
    samples: tuple[dict[str, Any], ...] = ()
    rounds: int = 0
    discarded: str | None = None
    unanswered: str | None = None
    lost: tuple[tuple[str, str], ...] = ()


class _Unanswered(Exception):
    pass


class _Discarded(Exception):
    def __init__(self, task: str, reason: str, *, alone: bool = False) -> None:
        super().__init__(reason)
        self.task, self.alone = task, alone or task in ALONE  # alone: the sample is lost, not the record


def synthesise(
    records: Iterable[Record],
    root: str | os.PathLike[str],
    teacher: Vlm,
    out: str | os.PathLike[str],
    settings: Synthesis | None = None,
    *,
    progress: Callable[[int, int, Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Make chains of thought for the accepted records, whose videos are relative to ``root``;
    return the report.

    The same call resumes. progress: called with (records done, number of records, counts) after
    each record. Raises ``ValueError`` for no usable record, a folder made with another teacher
    or other settings, or after too many failures in a row.
    """
    settings, out, root = settings or Synthesis(), Path(out), Path(root)
    every = list(records)
    usable = [record for record in every if record.review in ("accepted", "audited")]
    if not usable:
        raise ValueError(
            f"none of {len(every)} records is accepted or audited; only reviewed annotations are learned from"
        )
    if twice := [name for name, count in Counter(record.id for record in usable).items() if count > 1]:
        raise ValueError(f"record {twice[0]} occurs twice; ids must be unique (see `cac-align data validate`)")
    questions = plan_questions(
        usable,
        tasks=settings.tasks,
        frames_per_video=settings.frames_per_video,
        max_clip_s=settings.max_clip_s,
        false_alarm_share=settings.false_alarm_share,
        seed=settings.seed,
    )
    log = AttemptLog(out / "attempts.jsonl")
    try:
        made = {f"teacher/{name}": value for name, value in teacher.provenance.items()}
        record_provenance(out / "synthesis.json", {**made, **settings.identity()})
        ask = _Asking(root, teacher, settings, log)
        outcomes = _all(ask, usable, questions, settings, progress)
        report = _report(outcomes, log, settings, len(every) - len(usable))
        _write(out, root, outcomes, report, settings)
    finally:
        log.close()
    return report


def _all(
    ask: _Asking,
    records: Sequence[Record],
    questions: Mapping[str, Sequence[RecordQuestion]],
    settings: Synthesis,
    progress: Callable[[int, int, Mapping[str, Any]], None] | None,
) -> list[RecordOutcome]:
    """Every record's outcome, in the order of the records, ``settings.workers`` at a time."""
    lock, tally, stop = threading.Lock(), Counter(), threading.Event()
    in_a_row: list[RecordOutcome] = []

    def one(record: Record) -> RecordOutcome | None:
        if stop.is_set():
            return None
        outcome = ask.record(record, questions[record.id])
        with lock:
            failed = outcome.discarded or outcome.unanswered
            tally["unanswered" if outcome.unanswered else "discarded" if outcome.discarded else "accepted"] += 1
            if failed and not (outcome.discarded or "").startswith(("video:", "not shown:")):
                in_a_row.append(outcome)
            elif not failed:
                in_a_row.clear()
            if settings.give_up_after and len(in_a_row) >= settings.give_up_after:
                stop.set()
            if progress is not None:
                progress(
                    sum(tally.values()), len(records), {**tally, **ask.log.totals(), "cost": _cost(ask.log, settings)}
                )
        return outcome

    pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="teacher")
    try:
        outcomes = [outcome for outcome in pool.map(one, records) if outcome is not None]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    if len(outcomes) < len(records) or (settings.give_up_after and len(in_a_row) >= settings.give_up_after):
        reasons = Counter((item.unanswered or item.discarded or "").split(";")[0] for item in in_a_row)
        raise ValueError(
            f"gave up: {len(in_a_row)} records in a row brought no chain of thought, most often because of: "
            f"{reasons.most_common(1)[0][0]}; look into {ask.log.path}, then change the teacher, or set give_up_after=0"
        )
    return outcomes


@dataclass(frozen=True)
class _Asking:
    """Asks the questions of one record."""

    root: Path
    teacher: Vlm
    settings: Synthesis
    log: AttemptLog

    def record(self, record: Record, questions: Sequence[RecordQuestion]) -> RecordOutcome:
        """The outcome of one record's questions."""
        try:
            video = open_record_video(record, self.root)
        except (ValueError, OSError) as error:
            return RecordOutcome(record, discarded=f"video: {error}", lost=(("video", str(error)),))
        scanned = scan_frames(video)
        samples, lost, rounds, scan_answer = [], [], 0, ""
        try:
            for planned in questions:
                question, suspicion = planned, {}
                try:
                    if planned.task == "look":
                        question, suspicion = self._suspicion(planned, scanned, video, scan_answer)
                    frames = scanned if question.shows_whole_video else question_frames(question, video)
                    claim = read_first_turn(suspicion["claim"], scanned) if suspicion else None
                    answer, needed = self._chain(question, frames, video, claim)
                except _Discarded as error:
                    if not error.alone:
                        raise
                    lost.append((question.task, str(error)))
                    continue
                if question.task == "scan":
                    scan_answer = answer
                if question.task not in ALONE:
                    rounds = max(rounds, needed)
                samples.append(sample_row(question, answer, **suspicion, rounds=needed))
        except UnreadableVideo as error:
            return RecordOutcome(record, discarded=f"video: {error}", lost=(("video", str(error)),))
        except _Unanswered as error:
            return RecordOutcome(record, unanswered=str(error))
        except _Discarded as error:
            return RecordOutcome(record, discarded=str(error), lost=((error.task, str(error)),))
        return RecordOutcome(record, tuple(samples), rounds, lost=tuple(lost))

    def _suspicion(
        self, look: RecordQuestion, scanned: Frames, video: Video, own: str
    ) -> tuple[RecordQuestion, dict[str, str]]:
        """The look as it is asked, and "claim" and "donor" for its sample.

        claim: the answer to turn 1 that the look is given (``own``, that to the record's scan, or a
        false alarm). donor: the record whose anomaly a false alarm suspects. Raises ``_Discarded``
        for a normal record without a verified alarm.
        """
        why = "no other record's finding fits this video"
        for alarm in look.alarms:
            try:
                claim, _ = self._chain(alarm, scanned, video)
            except _Discarded as error:
                why = str(error)
                continue
            return replace(look, window=alarm.window, alarms=(alarm,)), {"claim": claim, "donor": alarm.donor}
        if look.record.status == "normal":
            raise _Discarded("look", f"no alarm: {why}", alone=True)
        return replace(look, alarms=()), {"claim": own}

    def _chain(
        self, question: RecordQuestion, frames: Frames, video: Video, claim: Turn | None = None
    ) -> tuple[str, int]:
        """The verified answer and its round. Logged rounds are not asked again, and then nothing is
        decoded.

        Raises ``_Discarded``, ``UnreadableVideo``, or ``_Unanswered`` when teacher or reviewer
        fails.
        """
        settings = self.settings
        if not expected_anomalies(question, frames) and (question.suspected or question.record.status == "abnormal"):
            raise _Discarded(question.task, f"not shown: no frame of the {question.label} shows the anomaly")
        before, unreviewed = self.log.rounds(question.key), self.log.unreviewed(question.key)
        asked: Conversation = ()
        while not (before and before[-1].verified):
            if len(before) >= settings.rounds:
                why = "; ".join(before[-1].reasons) if before else "no round was asked for"
                raise _Discarded(question.task, f"{why} ({question.label}, after {len(before)} rounds)")
            if not asked:
                frames = replace(frames)  # decodes them: a damaged video is found here, not inside the teacher
                asked = teacher_context(question, frames, video, close_ups=settings.close_ups) + question_conversation(
                    question, frames, claim=claim, wording=settings.wording
                )
            again = (
                asked
                if not before
                else (
                    *asked,
                    Message("assistant", _CONTROL.sub("", before[-1].text)[:8000]),
                    Message("user", filled("again", reasons="; ".join(before[-1].reasons)[:800])),
                )
            )
            if unreviewed is None:
                attempt = self._attempt(question, frames, again, len(before) + 1)
            else:  # its tokens are counted already
                answered = replace(unreviewed, num_prompt_tokens=0, num_tokens=0)
                attempt, unreviewed = self._reviewed(answered, question, frames), None
            self.log.add(attempt)
            if attempt.error is not None:
                raise _Unanswered(f"{question.label}: the teacher gave no answer: {attempt.error}")
            before = [*before, attempt]
        return before[-1].answer, len(before)

    def _attempt(self, question: RecordQuestion, frames: Frames, asked: Conversation, number: int) -> Attempt:
        settings = self.settings
        schema = answer_schema(question.number, boxed=question.boxed) if settings.constrained else None
        reply = self.teacher.answer([asked], max_new_tokens=settings.max_new_tokens, schema=schema)[0]
        attempt = Attempt(
            question.key,
            question.record.id,
            question.label,
            number,
            reply.text,
            error=reply.error,
            num_prompt_tokens=reply.num_prompt_tokens,
            num_tokens=reply.num_tokens,
        )
        if reply.error is not None:
            return attempt
        meant = expected_anomalies(question, frames)
        against = answer_faults(
            reply.text, meant, frames, number=question.number, boxed=question.boxed, strict=settings.strict
        )
        if reply.truncated:
            against = (*against, "format: the answer hit the token limit")
        attempt = replace(attempt, reasons=against)
        return attempt if against or not settings.review else self._reviewed(attempt, question, frames)

    def _reviewed(self, attempt: Attempt, question: RecordQuestion, frames: Frames) -> Attempt:
        """The verified attempt after its review: rejected without a verdict, ``unreviewed`` without
        an answer.
        """
        text = filled(
            "review_mistaken" if question.suspected else "review",
            found=expected_findings(question, frames),
            answer=attempt.text,
        )
        verdict = self.teacher.answer([(Message("user", text, frames),)], max_new_tokens=self.settings.max_new_tokens)[
            0
        ]
        agreed = re.search(r'"consistent"\s*:\s*(true|false)', verdict.text)
        error, reasons = (None if verdict.error is None else f"review: {verdict.error}"), ()
        if error is None and agreed is None:
            reasons = (f"review: no verdict in {verdict.text[:80]!r}",)
        elif error is None and agreed is not None and agreed[1] == "false":
            reasons = (f"review: {verdict.text[:300]}",)
        tokens = (attempt.num_prompt_tokens + verdict.num_prompt_tokens, attempt.num_tokens + verdict.num_tokens)
        return replace(
            attempt,
            reasons=reasons,
            error=error,
            unreviewed=error is not None,
            num_prompt_tokens=tokens[0],
            num_tokens=tokens[1],
        )


# ---- what is written ----------------------------------------------------------------------------------------------


def _cost(log: AttemptLog, settings: Synthesis) -> float | None:
    if settings.price_prompt is None or settings.price_answer is None:
        return None
    used = log.totals()
    return (used["prompt_tokens"] * settings.price_prompt + used["answer_tokens"] * settings.price_answer) / 1e6


def _report(outcomes: Sequence[RecordOutcome], log: AttemptLog, settings: Synthesis, unreviewed: int) -> dict[str, Any]:
    accepted = [item for item in outcomes if not item.discarded and not item.unanswered]
    reasons = Counter(reason.split(":")[0] for item in outcomes for _, reason in item.lost)
    return {
        "records": len(outcomes),
        "accepted": len(accepted),
        "salient": sum(
            item.record.status == "abnormal" and item.rounds <= settings.salient_rounds for item in accepted
        ),
        "non_salient": sum(
            item.record.status == "abnormal" and item.rounds > settings.salient_rounds for item in accepted
        ),
        "discarded": sum(item.discarded is not None for item in outcomes),
        "unanswered": sum(item.unanswered is not None for item in outcomes),
        "unreviewed": unreviewed,
        "samples": dict(Counter(sample["task"] for item in accepted for sample in item.samples)),
        "rounds": dict(sorted(Counter(item.rounds for item in accepted).items())),
        "reasons": dict(reasons.most_common()),
        **log.totals(),
        "cost": _cost(log, settings),
    }


def _write(
    out: Path, root: Path, outcomes: Sequence[RecordOutcome], report: Mapping[str, Any], settings: Synthesis
) -> None:
    accepted = [item for item in outcomes if not item.discarded and not item.unanswered]
    atomic_write(
        out / "chains.jsonl", "".join(json.dumps(sample) + "\n" for item in accepted for sample in item.samples)
    )
    lost = [
        {"record": item.record.id, "task": task, "reason": reason} for item in outcomes for task, reason in item.lost
    ]
    atomic_write(out / "discarded.jsonl", "".join(json.dumps(row) + "\n" for row in lost))
    part = out / ".records.jsonl.part"
    write_records(part, (moved_record(_with_saliency(item, settings), root, out) for item in accepted))
    os.replace(part, out / "records.jsonl")
    atomic_write(out / "report.json", json.dumps(report, indent=1) + "\n")


def _with_saliency(item: RecordOutcome, settings: Synthesis) -> Record:
    label = "salient" if item.rounds <= settings.salient_rounds else "non-salient"
    labelled = tuple(
        anomaly if anomaly.saliency is not None and settings.saliency == "fill" else replace(anomaly, saliency=label)
        for anomaly in item.record.anomalies
    )
    return replace(item.record, anomalies=labelled)
