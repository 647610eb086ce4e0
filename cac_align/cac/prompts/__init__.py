"""Every word sent to the judge: the two turns' instructions as text files, and the builders that fill them.

prompt, frames → turn_one_conversation → answer → turn_two_conversation (a fresh context, or the chat continued)
prompt, frames → single_turn_conversation: windows and boxes asked for at once

Qwen3-VL sees time stamps, never frame numbers, while answers name frames; so the instruction says which number stands at which
time, and ``read_answer`` converts back. Turn 2 numbers the frames of its clip anew, from 0 (Fig. S5). The wording is ours; its
structure (taxonomy, three steps, JSON) follows Figs. S4 and S5 of the paper.
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
_SLOT = re.compile(r"\{(prompt|num_frames|frame_list|turn_one|faults)\}")


@cache
def wording_text(wording: str, name: str) -> str:
    """The text of one instruction. ``wording`` is "full", "brief", or a folder of the user's own turn_one.md and turn_two.md
    (single_turn.md, where judging in a single turn is asked for).

    Raises ``ValueError`` when there is no such wording.
    """
    folder = files(__name__) if name == "retry" else files(__name__) / wording if wording in WORDINGS else Path(wording)
    source = folder / f"{name}.md"
    if not source.is_file():
        raise ValueError(
            f"wording {wording!r} has no {name}.md; expected one of {', '.join(WORDINGS)} or a folder with one"
        )
    return source.read_text(encoding="utf-8").strip()


def wording_hash(wording: str, names: Sequence[str] = ("turn_one", "turn_two", "retry")) -> str:
    """First 12 hex digits of the sha256 over these texts of a wording (the two turns'): it goes into the provenance."""
    text = "\0".join(wording_text(wording, name) for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fill(text: str, slots: Mapping[str, str]) -> str:
    """Fill ``{slot}``s in one pass, so that braces inside a prompt or an answer stay what they are."""
    return _SLOT.sub(lambda match: slots[match.group(1)] if match.group(1) in slots else match.group(0), text)


def frame_list(frames: Frames, wording: str) -> str:
    """Which number stands at which time. The brief wording gives first, last and step; every other one lists all frames."""
    if wording == "brief":
        return f"Frame 0-{len(frames) - 1} from {frames.times_s[0]:.2f} s at {frames.fps:g} fps"
    return ", ".join(f"Frame {number} at {time:.2f} s" for number, time in enumerate(frames.times_s))


def turn_one_conversation(prompt: str, frames: Frames, *, wording: str = "full") -> Conversation:
    """Turn 1 (Sec. 3.4): the whole video at 4 fps, asked for status, time regions and types."""
    return (Message("user", _instruction("turn_one", prompt, frames, wording), frames),)


def single_turn_conversation(prompt: str, frames: Frames, *, wording: str = "full") -> Conversation:
    """The single-turn formulation (Sec. 4.3): the whole video at 4 fps, asked for status, time regions, types and boxes at once."""
    return (Message("user", _instruction("single_turn", prompt, frames, wording), frames),)


def turn_two_conversation(
    prompt: str, clip: Frames, turn_one: Turn, *, wording: str = "full", before: Conversation | None = None
) -> Conversation:
    """Turn 2 (Sec. 3.4): the clip at 8 fps, asked for confirmation and boxes.

    By default a fresh context that carries the clip and what turn 1 wrote, as stage 2 trains it; with ``before`` (turn 1's
    conversation) the chat goes on and the whole video stays in view.
    """
    ask = Message("user", _instruction("turn_two", prompt, clip, wording, turn_one), clip)
    return (ask,) if before is None else (*before, Message("assistant", turn_one.text), ask)


def retry_conversation(asked: Conversation, answer: Turn) -> Conversation:
    """The same question again, with the unusable answer and its faults quoted."""
    text = fill(wording_text("", "retry"), {"faults": "; ".join(answer.faults[:5])[:600]})
    return (*asked, Message("assistant", answer.text[:4000]), Message("user", text))


def suspicion(turn: Turn, wording: str) -> str:
    """What turn 2 is told of turn 1: everything it wrote, or (brief) only kinds and reasons."""
    claims = "; ".join(f"{anomaly.type}: {anomaly.reason}" for anomaly in turn.anomalies)
    return claims if wording == "brief" else f"{turn.chain_of_thought}\nSuspected: {claims}"


def _instruction(name: str, prompt: str, frames: Frames, wording: str, turn_one: Turn | None = None) -> str:
    slots = {"prompt": prompt, "num_frames": str(len(frames)), "frame_list": frame_list(frames, wording)}
    if turn_one is not None:
        slots["turn_one"] = suspicion(turn_one, wording)
    return fill(wording_text(wording, name), slots)
