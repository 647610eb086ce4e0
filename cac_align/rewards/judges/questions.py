"""One question per video to a vision-language model, and its answer as a Score.

prompts, videos → conversations → answers, several videos at once → read → one Score per video
"""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cac_align.core.judgement import Judgement
from cac_align.core.text import quoted_excerpt
from cac_align.core.video import Video
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Conversation, Readout, Reply, Vlm, checkpoint_uncertainty
from cac_align.vlm.replies import checked_replies

_ANSWERS_COMPARED = 50
_TOO_EQUAL = 0.95


def ask_each(
    vlm: Vlm,
    question: Callable[[str, Video], Conversation],
    read: Callable[[Reply], tuple[float, Mapping[str, float]]],
    prompts: Sequence[str],
    videos: Sequence[Video],
    *,
    provenance: Callable[[], Mapping[str, str]],
    max_new_tokens: int,
    readout: Readout | None = None,
    evidence: Callable[[str, Video], Judgement] | None = None,
    videos_at_once: int = 16,
) -> list[Score]:
    """One Score per video, in order; a failure affects its own video only.

    question: the conversation about a video; may raise ``ValueError`` or ``OSError``. read: an
    answer's value and parts; raises ``ValueError`` that says why it has none. It is called for
    complete answers only. evidence: what an answer's text says as a judgement; where that has an error,
    there is no score. videos_at_once: how many are asked about together; it limits decoded frames in
    memory.
    """
    scores: list[Score] = []
    for start in range(0, len(videos), videos_at_once):
        batch = slice(start, start + videos_at_once)
        before = dict(provenance())
        found: dict[int, Score] = {}
        conversations: dict[int, Conversation] = {}
        for index, (prompt, video) in enumerate(zip(prompts[batch], videos[batch], strict=True)):
            try:
                conversations[index] = question(prompt, video)
            except (ValueError, OSError) as error:
                found[index] = Score.missing(f"the video cannot be read: {error}", provenance=before)
        if conversations:
            returned = vlm.answer(list(conversations.values()), max_new_tokens=max_new_tokens, readout=readout)
            replies = checked_replies(returned, len(conversations), readout)
            for index, reply in zip(conversations, replies, strict=True):
                found[index] = _score(reply, videos[batch][index], read, evidence, before)
        if reason := checkpoint_uncertainty(before, provenance()):
            found = {
                index: replace(one, value=math.nan, error=reason, provenance=before) if one.scored else one
                for index, one in found.items()
            }
        scores += [found[index] for index in range(len(found))]
    return scores


def _score(
    reply: Reply,
    video: Video,
    read: Callable[[Reply], tuple[float, Mapping[str, float]]],
    evidence: Callable[[str, Video], Judgement] | None,
    provenance: Mapping[str, str],
) -> Score:
    if reply.error is not None:
        return Score.missing(f"the model gave no answer: {reply.error}", provenance=provenance)
    if reply.truncated:
        reason = f"the answer was cut off at the token limit: {quoted_excerpt(reply.text)}"
        return Score.missing(reason, provenance=provenance)
    judgement = None if evidence is None else evidence(reply.text, video)
    if judgement is not None and judgement.error is not None:
        return Score.missing(judgement.error, evidence=judgement, provenance=provenance)
    try:
        value, parts = read(reply)
    except ValueError as error:
        return Score.missing(str(error), evidence=judgement, provenance=provenance)
    return Score(value, parts, judgement, provenance=provenance)


def model_entries(provenance: Mapping[str, str]) -> dict[str, str]:
    """A model's provenance as entries of its judge's."""
    return {f"vlm/{key}": value for key, value in provenance.items()}


class SamenessAlarm:
    """Says once on stderr that a judge gives nearly always the same answer.

    It compares the last 50 values; 95 % of them equal is the alarm. Thread-safe; a copy in another
    process counts for itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.raised = False
        self._values: list[float] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return (SamenessAlarm, (self.name,))

    def see(self, scores: Sequence[Score]) -> None:
        """Count these scores; those without value are left out."""
        with self._lock:
            self._values = [*self._values, *(score.value for score in scores if score.scored)][-_ANSWERS_COMPARED:]
            if self.raised or len(self._values) < _ANSWERS_COMPARED:
                return
            ((value, count),) = Counter(self._values).most_common(1)
            if count >= _TOO_EQUAL * _ANSWERS_COMPARED:
                self.raised = True
                print(
                    f"{self.name}: {count} of its last {_ANSWERS_COMPARED} scores are {value:g}. A judge that always "
                    "says the same orders nothing: look at its answers, and at how its videos and prompt reach it.",
                    file=sys.stderr,
                )
