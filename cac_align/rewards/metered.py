"""What a reward's judges cost: a counter of their calls and tokens.

reward → ``metered`` → the same reward, ``UsageMeter``; before, after a call → ``UsageMeter.since`` → ``Usage``
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from cac_align.core.video import as_pairs
from cac_align.rewards.combine import Combined
from cac_align.rewards.normal_flow_speed import NormalFlowSpeed
from cac_align.rewards.reward import Reward, Score
from cac_align.rewards.wrapped import WrappedReward
from cac_align.vlm.dialogue import Dialogue, run_dialogues
from cac_align.vlm.protocol import Conversation, Readout, Reply, Vlm


@dataclass(frozen=True)
class Usage:
    """calls: answers asked of judges. tokens: read and written by them; None where one does not say."""

    calls: int = 0
    tokens: int | None = 0

    def __add__(self, other: Usage) -> Usage:
        unknown = self.tokens is None or other.tokens is None
        return Usage(self.calls + other.calls, None if unknown else self.tokens + other.tokens)  # pyright: ignore


class UsageMeter:
    """Counts what some judges cost; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = self._tokens = self._without_tokens = 0

    def add(self, calls: int, tokens: int | None) -> None:
        with self._lock:
            self._calls += calls
            self._tokens += tokens or 0
            self._without_tokens += tokens is None

    def reading(self) -> tuple[int, int, int]:
        """The present count, for ``since``."""
        with self._lock:
            return self._calls, self._tokens, self._without_tokens

    def since(self, before: tuple[int, int, int]) -> Usage:
        """What was used since a reading."""
        calls, tokens, unknown = (now - then for now, then in zip(self.reading(), before, strict=True))
        return Usage(calls, None if unknown else tokens)


@dataclass(frozen=True)
class MeteredVlm:
    """A vision-language model whose replies are counted; otherwise the model itself."""

    vlm: Vlm
    meter: UsageMeter

    @property
    def provenance(self) -> Mapping[str, str]:
        return self.vlm.provenance

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        replies = self.vlm.answer(conversations, max_new_tokens=max_new_tokens, schema=schema, readout=readout)
        self._count(replies)
        return replies

    def run_dialogues(self, dialogues: Sequence[Dialogue[Any]], done: Callable[[int, Any], None]) -> None:
        for number, result in enumerate(run_dialogues(self.vlm, [self._counted(each) for each in dialogues])):
            done(number, result)

    def _counted(self, dialogue: Dialogue[Any]) -> Dialogue[Any]:
        try:
            questions = next(dialogue)
            while True:
                replies = yield questions
                self._count(replies)
                questions = dialogue.send(replies)
        except StopIteration as end:
            return end.value

    def _count(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            tokens = reply.num_prompt_tokens + reply.num_tokens
            self.meter.add(1, tokens or (0 if reply.error is not None else None))


@dataclass(frozen=True)
class MeteredReward(WrappedReward):
    """A reward that shows no judge of its own, such as one behind a service: one call per video, of unknown tokens."""

    meter: UsageMeter

    def __call__(self, prompts: Any, videos: Any) -> list[Score]:
        prompts, videos = as_pairs(prompts, videos)
        for _ in videos:
            self.meter.add(1, None)
        return self.reward(prompts, videos)


def metered(reward: Reward, meter: UsageMeter) -> Reward:
    """The same reward, whose judges' calls and tokens ``meter`` counts. Arithmetic on pixels costs none."""
    if isinstance(reward, Combined):
        return reward.with_components({name: metered(each, meter) for name, each in reward.components.items()})
    if isinstance(reward, NormalFlowSpeed):
        return reward
    own: Any = reward
    if hasattr(own, "with_vlms"):
        return own.with_vlms(lambda vlm: MeteredVlm(vlm, meter))
    if hasattr(own, "vlm"):
        counted = MeteredVlm(own.vlm, meter)
        if is_dataclass(own):
            return replace(own, vlm=counted)  # pyright: ignore[reportArgumentType]
        own = copy.copy(own)
        own.vlm = counted
        return own
    return MeteredReward(reward, meter)
