"""Every text sent to the judge: the instructions of the turns as text files, and functions that
fill them.

prompt, frames → turn_one_conversation → answer
    → turn_two_conversation (fresh context or continued chat)
prompt, frames → single_turn_conversation (windows and boxes at once)

Qwen3-VL sees time stamps and never frame numbers, while answers name frames by number. So the
instruction says which number stands at which time, and ``read_answer`` converts back. Turn 2
numbers the frames of its clip from 0 again (Fig. S5). The texts are our own; their structure
(taxonomy, three steps, JSON) follows Figs. S4 and S5 of the paper.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from cac_align.core.judgement import Turn
from cac_align.core.video import Frames
from cac_align.vlm.protocol import Conversation, Message

WORDINGS = ("full", "brief")
_SLOT = re.compile(r"\{(prompt|num_frames|frame_list|turn_one|faults|type)\}")


@cache
def wording_text(wording: str, name: str) -> str:
    """The text of the instruction ``name``: turn_one, turn_two, single_turn, retry or per_type.

    wording: "full", "brief", or a folder with the user's own turn_one.md and turn_two.md
    (single_turn.md for the single turn). A folder without per_type.md takes that of "full". Raises
    ``ValueError`` when there is no such text.
    """
    if name == "per_type" and wording not in WORDINGS and not (Path(wording) / "per_type.md").is_file():
        wording = "full"
    folder = files(__name__) if name == "retry" else files(__name__) / wording if wording in WORDINGS else Path(wording)
    source = folder / f"{name}.md"
    if not source.is_file():
        raise ValueError(
            f"wording {wording!r} has no {name}.md; expected one of {', '.join(WORDINGS)} or a folder with one"
        )
    return source.read_text(encoding="utf-8").strip()


def wording_hash(wording: str, names: Sequence[str] = ("turn_one", "turn_two", "retry")) -> str:
    """First 12 hex digits of the sha256 over these texts of a wording, for the provenance."""
    text = "\0".join(wording_text(wording, name) for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fill(text: str, slots: Mapping[str, str]) -> str:
    """Fill every ``{slot}`` in one pass, so that braces inside a prompt or an answer are left
    alone.
    """
    return _SLOT.sub(lambda match: slots[match.group(1)] if match.group(1) in slots else match.group(0), text)


def frame_list(frames: Frames, wording: str) -> str:
    """Which frame number stands at which time: a range with a rate in the brief wording, else a
    list of all frames.
    """
    if wording == "brief":
        return f"Frame 0-{len(frames) - 1} from {frames.times_s[0]:.2f} s at {frames.fps:g} fps"
    return ", ".join(f"Frame {number} at {time:.2f} s" for number, time in enumerate(frames.times_s))


def turn_one_conversation(prompt: str, frames: Frames, *, wording: str = "full") -> Conversation:
    """Turn 1 (Sec. 3.4): the whole video at 4 fps, asked for status, time regions and types."""
    return (Message("user", _instruction("turn_one", prompt, frames, wording), frames),)


def single_turn_conversation(prompt: str, frames: Frames, *, wording: str = "full") -> Conversation:
    """The single turn (Sec. 4.3): the whole video at 4 fps, asked for status, time regions, types
    and boxes.
    """
    return (Message("user", _instruction("single_turn", prompt, frames, wording), frames),)


def turn_two_conversation(
    prompt: str, clip: Frames, turn_one: Turn, *, wording: str = "full", before: Conversation | None = None
) -> Conversation:
    """Turn 2 (Sec. 3.4): the clip at 8 fps, asked for confirmation and boxes.

    Without ``before`` it is a fresh context with the clip and what turn 1 wrote, as stage 2 trains
    it. With ``before``, turn 1's conversation, the chat continues and the whole video stays in
    context.
    """
    ask = Message("user", _instruction("turn_two", prompt, clip, wording, turn_one), clip)
    return (ask,) if before is None else (*before, Message("assistant", turn_one.text), ask)


def retry_conversation(asked: Conversation, answer: Turn) -> Conversation:
    """The same question again, after the unusable answer and its faults."""
    text = fill(wording_text("", "retry"), {"faults": "; ".join(answer.faults[:5])[:600]})
    return (*asked, Message("assistant", answer.text[:4000]), Message("user", text))


def turn_one_summary(turn: Turn, wording: str) -> str:
    """What turn 2 is told about turn 1: its reasoning and anomalies; in the brief wording the
    anomalies only.
    """
    claims = "; ".join(f"{anomaly.type}: {anomaly.reason}" for anomaly in turn.anomalies)
    return claims if wording == "brief" else f"{turn.chain_of_thought}\nSuspected: {claims}"


def _instruction(name: str, prompt: str, frames: Frames, wording: str, turn_one: Turn | None = None) -> str:
    slots = {"prompt": prompt, "num_frames": str(len(frames)), "frame_list": frame_list(frames, wording)}
    if turn_one is not None:
        slots["turn_one"] = turn_one_summary(turn_one, wording)
    return fill(wording_text(wording, name), slots)
