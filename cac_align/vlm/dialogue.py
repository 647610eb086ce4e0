"""Dialogues: what is asked next may depend on the last reply, so each video goes its own way and none waits for the others.

a dialogue (a generator: yields Questions, is sent their Replies, returns its result) × many → hold(vlm) → results, in order

A backend that can keep itself full has a ``hold`` of its own: LocalVlm refills a slot as soon as an answer ends, ServerVlm sends a
dialogue's next request as soon as its last one came back. Any other ``Vlm`` is asked in rounds.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from cac_align.vlm.protocol import Conversation, Readout, Reply, Vlm

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Question:
    """One conversation to be answered, and how (the arguments of ``Vlm.answer``)."""

    conversation: Conversation
    max_new_tokens: int
    schema: Mapping[str, Any] | None = None
    readout: Readout | None = None


Dialogue = Generator[list[Question], list[Reply], R]
"""Yields questions that may be asked at the same time, is sent one reply each, in order; returns its result."""


@runtime_checkable
class Holds(Protocol):
    """A backend that carries on many dialogues at once. ``done(number, result)`` is called as each of them ends."""

    def hold(self, dialogues: Sequence[Dialogue[Any]], done: Callable[[int, Any], None]) -> None: ...


def hold(vlm: Vlm, dialogues: Sequence[Dialogue[R]], *, progress: Callable[[int], None] | None = None) -> list[R]:
    """Carry on all dialogues until each has returned; their results, in order.

    progress: called with 1 as each of them ends. An exception that a dialogue raises ends them all.
    """
    results: dict[int, R] = {}

    def done(number: int, result: R) -> None:
        results[number] = result
        if progress is not None:
            progress(1)

    if isinstance(vlm, Holds):
        vlm.hold(dialogues, done)
    else:
        in_rounds(vlm, dialogues, done)
    return [results[number] for number in range(len(dialogues))]


def in_rounds(vlm: Vlm, dialogues: Sequence[Dialogue[R]], done: Callable[[int, R], None]) -> None:
    """Ask everything that is open, as few calls of ``answer`` as the questions' settings allow; then what follows from the replies."""
    floor = DialogueQueue(dialogues, done)
    while waiting := floor.take():
        alike: dict[tuple[Any, ...], list[Waiting]] = {}
        for item in waiting:
            asked = item.question
            alike.setdefault((asked.max_new_tokens, json.dumps(asked.schema), asked.readout), []).append(item)
        for items in alike.values():
            asked = items[0].question
            conversations = [item.question.conversation for item in items]
            replies = vlm.answer(
                conversations, max_new_tokens=asked.max_new_tokens, schema=asked.schema, readout=asked.readout
            )
            for item, reply in zip(items, replies, strict=True):
                floor.give(item, reply)


def converse(dialogue: Dialogue[R], ask: Callable[[Question], Reply]) -> R:
    """Carry on one dialogue by itself, one question at a time."""
    try:
        questions = next(dialogue)
        while True:
            questions = dialogue.send([ask(question) for question in questions])
    except StopIteration as end:
        return end.value


@dataclass(eq=False)
class Waiting(Generic[R]):
    """A question of dialogue ``number`` that waits for its reply; ``place`` among those asked with it.

    after: the question whose reply led to this one, if any: an engine may still hold what it computed for it.
    """

    number: int
    place: int
    question: Question
    after: Waiting[R] | None = None


class DialogueQueue(Generic[R]):
    """Who may speak next. ``take`` gives questions, starting dialogues only as they are needed; ``give`` hands a reply back."""

    def __init__(self, dialogues: Sequence[Dialogue[R]], done: Callable[[int, R], None]) -> None:
        self._dialogues, self._done = dialogues, done
        self._started = 0
        self._waiting: deque[Waiting[R]] = deque()
        self._replies: dict[int, list[Reply | None]] = {}

    def take(self, count: int | None = None) -> list[Waiting[R]]:
        """At most ``count`` questions (None: all), those of dialogues under way first; empty when nothing waits now."""
        while self._started < len(self._dialogues) and (count is None or len(self._waiting) < count):
            number, self._started = self._started, self._started + 1
            self._advance(number, None, None)
        size = len(self._waiting) if count is None else min(count, len(self._waiting))
        return [self._waiting.popleft() for _ in range(size)]

    def give(self, item: Waiting[R], reply: Reply) -> None:
        """The reply to a question that was taken. When all of a dialogue's replies are in, it goes on."""
        replies = self._replies[item.number]
        replies[item.place] = reply
        if all(one is not None for one in replies):
            self._advance(item.number, replies, item)

    def _advance(self, number: int, replies: list[Any] | None, after: Waiting[R] | None) -> None:
        dialogue = self._dialogues[number]
        try:
            questions: list[Question] = []
            while not questions:  # a dialogue that asks nothing is told so at once
                questions = next(dialogue) if replies is None else dialogue.send(replies)
                replies = []
        except StopIteration as end:
            self._done(number, end.value)
            return
        self._replies[number] = [None] * len(questions)
        self._waiting.extend(Waiting(number, place, question, after) for place, question in enumerate(questions))
