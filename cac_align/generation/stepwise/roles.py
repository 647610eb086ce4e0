"""Planner and verifier: any vision-language model by contract, or a judge such as CaC by its evidence.

``VlmPlanner``, ``VlmVerifier``: vlm → JSON by contract.  ``JudgeVerifier``: reward with a judgement → ``Verdict``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cac_align.core.video import Frames, Video
from cac_align.generation.stepwise.contracts import (
    CLIP_VERDICT_SCHEMA,
    PLAN_SCHEMA,
    Plan,
    Verdict,
    again_conversation,
    plan_conversation,
    read_plan,
    read_verdict,
    verify_conversation,
)
from cac_align.rewards.checked import checked_scores
from cac_align.rewards.metered import MeteredVlm, UsageMeter, metered
from cac_align.rewards.reward import Reward
from cac_align.vlm.protocol import Conversation, Vlm
from cac_align.vlm.replies import checked_replies

_T = TypeVar("_T")


class NoAnswer(ValueError):
    """Planner or verifier gave no usable answer; the message says why."""


class Planner(Protocol):
    """Plans the next step. Raises ``NoAnswer`` when it cannot."""

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def __call__(
        self,
        task: str,
        steps: Sequence[tuple[str, bool]],
        number: int,
        limit: int,
        seconds: float,
        frame: Frames | None,
    ) -> Plan: ...

    def counted_by(self, meter: UsageMeter) -> Planner: ...


class Verifier(Protocol):
    """Checks a clip against its plan. Raises ``NoAnswer`` when it cannot, which is no verdict and no accept."""

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def __call__(self, task: str, plan: Plan, clip: Video) -> Verdict: ...

    def counted_by(self, meter: UsageMeter) -> Verifier: ...


def _ask(
    vlm: Vlm, asked: Conversation, schema: Mapping[str, Any], read: Callable[[str], _T], tokens: int, retries: int
) -> _T:
    """The answer as a value; an unusable one is asked for again with its fault. Raises ``NoAnswer``."""
    conversation = asked
    for attempt in range(retries + 1):
        replies = vlm.answer([conversation], max_new_tokens=tokens, schema=schema)
        (reply,) = checked_replies(replies, 1, None)
        if reply.error is not None:
            raise NoAnswer(reply.error)
        try:
            if reply.truncated:
                raise ValueError("it was cut off at the token limit")
            return read(reply.text)
        except ValueError as fault:
            if attempt == retries:
                raise NoAnswer(f"the answer cannot be used: {fault}") from fault
            conversation = again_conversation(asked, reply.text, str(fault))
    raise AssertionError


@dataclass(frozen=True)
class VlmPlanner:
    """A planner on any vision-language model. retries: how often an unusable answer is asked for again."""

    vlm: Vlm
    max_new_tokens: int = 512
    retries: int = 1

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"planner": "vlm", **{f"vlm/{name}": value for name, value in self.vlm.provenance.items()}}

    def __call__(
        self,
        task: str,
        steps: Sequence[tuple[str, bool]],
        number: int,
        limit: int,
        seconds: float,
        frame: Frames | None,
    ) -> Plan:
        asked = plan_conversation(task, steps, number, limit, seconds, frame)
        return _ask(self.vlm, asked, PLAN_SCHEMA, read_plan, self.max_new_tokens, self.retries)

    def counted_by(self, meter: UsageMeter) -> VlmPlanner:
        """The same planner, whose calls and tokens ``meter`` counts."""
        return VlmPlanner(MeteredVlm(self.vlm, meter), self.max_new_tokens, self.retries)


@dataclass(frozen=True)
class VlmVerifier:
    """A verifier on any vision-language model, which sees the clip at ``fps`` frames per second."""

    vlm: Vlm
    fps: float = 8.0
    max_new_tokens: int = 512
    retries: int = 1

    @property
    def provenance(self) -> Mapping[str, Any]:
        model = {f"vlm/{name}": value for name, value in self.vlm.provenance.items()}
        return {"verifier": "vlm", "fps": self.fps, **model}

    def __call__(self, task: str, plan: Plan, clip: Video) -> Verdict:
        asked = verify_conversation(task, plan, clip.sample(self.fps))
        return _ask(self.vlm, asked, CLIP_VERDICT_SCHEMA, read_verdict, self.max_new_tokens, self.retries)

    def counted_by(self, meter: UsageMeter) -> VlmVerifier:
        """The same verifier, whose calls and tokens ``meter`` counts."""
        return VlmVerifier(MeteredVlm(self.vlm, meter), self.fps, self.max_new_tokens, self.retries)


@dataclass(frozen=True)
class JudgeVerifier:
    """A judge with windows and boxes, such as CaC, as the verifier: a clip that it calls normal is accepted.

    The reasons of its anomalies are the diagnosis, and the clip is good up to where the first window
    begins. It knows nothing of the task, so it never says that the task is complete.
    """

    judge: Reward

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"verifier": "judge", **self.judge.provenance}

    def __call__(self, task: str, plan: Plan, clip: Video) -> Verdict:
        (score,) = checked_scores(self.judge.name, self.judge([plan.action], [clip]), 1)
        if not score.scored:
            raise NoAnswer(score.error or "no score")
        if score.evidence is None or score.evidence.status is None:
            raise NoAnswer(f"{self.judge.name} gives a number without a judgement")
        anomalies = score.evidence.anomalies
        if score.evidence.status == "normal":
            return Verdict(True, "", "", 1.0, False)
        starts = [anomaly.window.start_s for anomaly in anomalies if anomaly.window is not None]
        reasons = [anomaly.reason or anomaly.type for anomaly in anomalies]
        diagnosis = "; ".join(reasons) or "judged abnormal"
        return Verdict(
            False, diagnosis, f"without this: {diagnosis}", min(starts, default=0.0) / clip.duration_s, False
        )

    def counted_by(self, meter: UsageMeter) -> JudgeVerifier:
        """The same verifier, whose calls and tokens ``meter`` counts."""
        return JudgeVerifier(metered(self.judge, meter))
