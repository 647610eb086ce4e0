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
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from cac_align.data.records import Record, moved_record, write_records
from cac_align.data.synthesis.attempts import AttemptLog, record_provenance
from cac_align.data.synthesis.plan import plan_questions
from cac_align.data.synthesis.questions import (
    RecordQuestion,
)
from cac_align.data.synthesis.record_asker import RecordAsker, RecordOutcome
from cac_align.data.synthesis.settings import Synthesis
from cac_align.runs.files import atomic_write
from cac_align.vlm.protocol import Vlm


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
        ask = RecordAsker(root, teacher, settings, log)
        outcomes = _all(ask, usable, questions, settings, progress)
        report = _report(outcomes, log, settings, len(every) - len(usable))
        _write(out, root, outcomes, report, settings)
    finally:
        log.close()
    return report


def _all(
    ask: RecordAsker,
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
    write_records(out / "records.jsonl", (moved_record(_with_saliency(item, settings), root, out) for item in accepted))
    atomic_write(out / "report.json", json.dumps(report, indent=1) + "\n")


def _with_saliency(item: RecordOutcome, settings: Synthesis) -> Record:
    label = "salient" if item.rounds <= settings.salient_rounds else "non-salient"
    labelled = tuple(
        anomaly if anomaly.saliency is not None and settings.saliency == "fill" else replace(anomaly, saliency=label)
        for anomaly in item.record.anomalies
    )
    return replace(item.record, anomalies=labelled)
