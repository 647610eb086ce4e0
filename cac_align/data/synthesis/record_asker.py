"""Ask a teacher one record's questions until each answer is verified, or the record is discarded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cac_align.cac.answer_schema import answer_schema
from cac_align.core.judgement import Turn
from cac_align.core.video import Frames, Video
from cac_align.data.record_video import open_record_video
from cac_align.data.records import Record
from cac_align.data.synthesis.attempts import Attempt, AttemptLog
from cac_align.data.synthesis.prompts import filled
from cac_align.data.synthesis.questions import (
    RecordQuestion,
    UnreadableVideo,
    expected_anomalies,
    question_conversation,
    question_frames,
    read_first_turn,
    sample_row,
    scan_frames,
)
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.teacher_context import expected_findings, teacher_context
from cac_align.data.synthesis.verify import answer_faults
from cac_align.vlm.protocol import Conversation, Message, Vlm

ALONE = ("frame", "single")
"""Tasks whose failure costs only the sample and does not count for a record's saliency."""


_CONTROL = re.compile(r"<\|[^|<>]*\|>")
"""Control tokens in a teacher's answer; quoted back, they would break its own prompt."""


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


@dataclass(frozen=True)
class RecordAsker:
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
