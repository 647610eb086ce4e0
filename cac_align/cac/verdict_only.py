"""The verdict without a chain of thought and without a second turn: much cheaper, and another
reward.

video → turn 1's question (4 fps) → P(normal), P(abnormal) at once → Judgement without anomalies

There are two forms. "readout" generates nothing: the answer is begun as {"COT": "", "status": " and
the distribution is read there. "json" lets the model write this object under a grammar and reads
the verdict that it wrote. The judge was trained to reason before it decides, so neither form is
what the paper's Eq. 7 measures, and the provenance says so. benchmarks/verdict_only.py measures how
far both agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cac_align.cac.prompts import turn_one_conversation, wording_hash
from cac_align.cac.readout import STATUS_READOUT, STATUS_WORDS
from cac_align.cac.two_turn import check_rates
from cac_align.core.judgement import Judgement, Turn
from cac_align.core.video import Frames, Video
from cac_align.vlm.dialogue import Dialogue, Question
from cac_align.vlm.protocol import Message, Reply

ANSWER_PREFIX = '{"COT": "", "status": "'
VERDICT_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"COT": {"const": ""}, "status": {"enum": list(STATUS_WORDS)}},
    "required": ["COT", "status"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class VerdictOnly:
    """How the verdict alone is asked for. Every field is part of the reward's provenance."""

    # "readout": nothing is generated; "json": the verdict is written under a grammar.
    form: Literal["readout", "json"] = "readout"
    # Frames per second.
    scan_fps: float = 4.0
    # Turn 1's instruction: "full", "brief", or a folder of your own texts.
    wording: str = "full"

    def __post_init__(self) -> None:
        check_rates(scan_fps=self.scan_fps)
        if self.form not in ("readout", "json"):
            raise ValueError(f"form must be 'readout' or 'json', received {self.form!r}")

    def provenance(self) -> dict[str, str]:
        fields = {name: str(getattr(self, name)) for name in self.__dataclass_fields__}
        return {
            "mode": "verdict only: no chain of thought, no second look",
            **fields,
            "prompt_sha256": wording_hash(self.wording),
        }


def verdict_only_dialogue(prompt: str, video: Video, frames: Frames, settings: VerdictOnly) -> Dialogue[Judgement]:
    """The dialogue that judges one video by one short question; its Judgement names no anomalies."""
    asked = turn_one_conversation(prompt, frames, wording=settings.wording)
    if settings.form == "readout":
        question = Question((*asked, Message("assistant", ANSWER_PREFIX)), 1, None, STATUS_READOUT)
    else:
        question = Question(asked, 64, VERDICT_SCHEMA, STATUS_READOUT)
    (reply,) = yield [question]
    return _read(reply, frames, settings)


def _read(reply: Reply, frames: Frames, settings: VerdictOnly) -> Judgement:
    if reply.error is not None:
        return Judgement(None, error=f"verdict: {reply.error}")
    if reply.log_p is None:
        why = f": {reply.readout_error}" if reply.readout_error else ""
        return Judgement(None, error=f"verdict: the backend gave no probabilities for it{why}")
    normal, abnormal = (reply.log_p[word] for word in STATUS_WORDS)
    if settings.form == "readout":
        text, status = ANSWER_PREFIX, "normal" if normal >= abnormal else "abnormal"
    else:
        text, status = reply.text, _written_status(reply.text)
        if status is None:
            return Judgement(None, error=f"verdict: not the JSON that was asked for: {reply.text[:120]!r}")
    turn = Turn(1, text, frames.indices, status, log_p_normal=normal, log_p_abnormal=abnormal, bounded=reply.bounded)
    return Judgement(status, (), (turn,), normal, abnormal)


def _written_status(text: str) -> Literal["normal", "abnormal"] | None:
    """The verdict in the object that was asked for; None for any other text.

    Two keys of one name, NaN or Infinity, which Python's reader lets pass, are no such object.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        status = json.loads(text, parse_constant=refuse, object_pairs_hook=once)["status"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return status if status in ("normal", "abnormal") else None
