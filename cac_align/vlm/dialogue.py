"""Dialogues with a vision-language model: what is asked next may depend on the last reply.

many dialogues → run_dialogues(vlm) → their results, in order

A dialogue is a generator that yields questions, is sent their replies, and returns its result.
Dialogues do not wait for each other. A backend that can keep itself busy has a ``run_dialogues`` of
its own: LocalVlm refills a slot as soon as an answer ends, and ServerVlm sends a dialogue's next
request as soon as its last one came back. Any other ``Vlm`` is asked in rounds.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from cac_align.vlm.protocol import Conversation, Readout, Reply, Vlm
from cac_align.vlm.replies import checked_replies

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Question:
    """A conversation to be answered, and how (the arguments of ``Vlm.answer``)."""

    conversation: Conversation
    max_new_tokens: int
    schema: Mapping[str, Any] | None = None
    readout: Readout | None = None


# Yields questions that may be asked at the same time, is sent one reply each in order, and returns its result.
Dialogue = Generator[list[Question], list[Reply], R]


@runtime_checkable
class DialogueRunner(Protocol):
    """A backend that runs many dialogues at once; ``done(number, result)`` is called when one ends."""

    def run_dialogues(self, dialogues: Sequence[Dialogue[Any]], done: Callable[[int, Any], None]) -> None: ...


def run_dialogues(
    vlm: Vlm, dialogues: Sequence[Dialogue[R]], *, progress: Callable[[int], None] | None = None
) -> list[R]:
    """Run all dialogues to their ends and return their results, in order.

    progress: called with 1 when a dialogue ends. An exception that a dialogue raises ends them all.
    Raises ``ValueError`` when the Vlm's own ``run_dialogues`` does not bring every one to its end.
    """
    results: dict[int, R] = {}

    def done(number: int, result: R) -> None:
        results[number] = result
        if progress is not None:
            progress(1)

    if isinstance(vlm, DialogueRunner):
        vlm.run_dialogues([_with_checked_replies(dialogue) for dialogue in dialogues], done)
        if results.keys() != set(range(len(dialogues))):
            raise ValueError(
                f"the Vlm's run_dialogues ended {len(results)} of {len(dialogues)} dialogues; expected done(number, "
                "result) once for each, with its place as number"
            )
    else:
        _run_in_rounds(vlm, dialogues, done)
    return [results[number] for number in range(len(dialogues))]


def _with_checked_replies(dialogue: Dialogue[R]) -> Dialogue[R]:
    """The same dialogue, which takes replies from a Vlm that may break the protocol."""
    try:
        questions = next(dialogue)
        while True:
            returned = yield questions
            replies = []
            for place, question in enumerate(questions):
                own = [returned[place]] if isinstance(returned, list) and len(returned) == len(questions) else [None]
                replies += checked_replies(own, 1, question.readout)
            questions = dialogue.send(replies)
    except StopIteration as end:
        return end.value


def _run_in_rounds(vlm: Vlm, dialogues: Sequence[Dialogue[R]], done: Callable[[int, R], None]) -> None:
    """Ask all open questions, one call of ``answer`` per different settings; then the questions
    that follow, and so on.
    """
    queue = DialogueQueue(dialogues, done)
    while pending := queue.take():
        by_settings: dict[tuple[Any, ...], list[PendingQuestion]] = {}
        for item in pending:
            asked = item.question
            key = (asked.max_new_tokens, json.dumps(asked.schema), asked.readout)
            by_settings.setdefault(key, []).append(item)
        for items in by_settings.values():
            asked = items[0].question
            conversations = [item.question.conversation for item in items]
            returned = vlm.answer(
                conversations, max_new_tokens=asked.max_new_tokens, schema=asked.schema, readout=asked.readout
            )
            replies = checked_replies(returned, len(items), asked.readout)
            for item, reply in zip(items, replies, strict=True):
                queue.deliver(item, reply)


def run_one_dialogue(dialogue: Dialogue[R], ask: Callable[[Question], Reply]) -> R:
    """Run a single dialogue to its end, one question at a time."""
    try:
        questions = next(dialogue)
        while True:
            questions = dialogue.send([ask(question) for question in questions])
    except StopIteration as end:
        return end.value


@dataclass(eq=False)
class PendingQuestion(Generic[R]):
    """A question that waits for its reply."""

    # Which dialogue asked it.
    number: int
    # Its position among the questions that this dialogue asked with it.
    place: int
    question: Question
    # The question whose reply led to this one, if any: an engine may still hold what it computed for it.
    after: PendingQuestion[R] | None = None


class DialogueQueue(Generic[R]):
    """The open questions of many dialogues: ``take`` returns some, ``deliver`` hands a reply to its
    dialogue.

    Dialogues are started only when their questions are needed. ``done(number, result)`` is called
    when one ends.
    """

    def __init__(self, dialogues: Sequence[Dialogue[R]], done: Callable[[int, R], None]) -> None:
        self._dialogues, self._done = dialogues, done
        self._num_started = 0
        self._pending: deque[PendingQuestion[R]] = deque()
        self._replies: dict[int, list[Reply | None]] = {}

    def take(self, count: int | None = None) -> list[PendingQuestion[R]]:
        """At most ``count`` open questions (None: all), those of started dialogues first; empty
        when none is open.
        """
        while self._num_started < len(self._dialogues) and (count is None or len(self._pending) < count):
            number, self._num_started = self._num_started, self._num_started + 1
            self._advance(number, None, None)
        size = len(self._pending) if count is None else min(count, len(self._pending))
        return [self._pending.popleft() for _ in range(size)]

    def deliver(self, item: PendingQuestion[R], reply: Reply) -> None:
        """Hand over the reply to a question that was taken. A dialogue goes on when all its replies
        are in.
        """
        replies = self._replies[item.number]
        replies[item.place] = reply
        if all(one is not None for one in replies):
            self._advance(item.number, replies, item)

    def _advance(self, number: int, replies: list[Any] | None, after: PendingQuestion[R] | None) -> None:
        dialogue = self._dialogues[number]
        try:
            questions: list[Question] = []
            while not questions:  # a dialogue may yield no question; then it goes on at once
                questions = next(dialogue) if replies is None else dialogue.send(replies)
                replies = []
        except StopIteration as end:
            self._done(number, end.value)
            return
        self._replies[number] = [None] * len(questions)
        self._pending.extend(
            PendingQuestion(number, place, question, after) for place, question in enumerate(questions)
        )
