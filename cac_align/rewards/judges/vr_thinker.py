"""VR-Thinker: a judge that compares two videos and asks for further frames while it thinks.

prompt, two videos → 4 + 4 frames → answer: <tool_call> for frames | <Recommend Answer> | <Answer>
    → the frames it asked for → next answer, up to six → OA: 1, 2 or 0 (a tie) → Comparison

Both videos are one pool of N frames, numbered from 1: the first N/2 are video 1's. The frames of an answer stay
visible for one turn, the eight at the beginning always: the paper's memory window of 1.

Source: VR-Thinker (arXiv 2510.10518), Qwen2.5-VL-7B, its Appendix D and the model's card (qunwang13/vrthinker, MIT).
The card's texts were not available here, so their hashes are unknown; neither is how upstream words the message that
returns frames. Ours is part of the provenance.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.text import quoted_excerpt
from cac_align.core.video import Frames, Video
from cac_align.rewards.judges.frames import even_indices, joined_frames
from cac_align.rewards.judges.questions import model_entries
from cac_align.rewards.judges.upstream_prompt import fill_slots
from cac_align.rewards.pairwise.comparison import Comparison
from cac_align.vlm.dialogue import Dialogue, Question, run_dialogues
from cac_align.vlm.protocol import Conversation, Message, Readout, Reply, Vlm

POOL_PER_VIDEO = 128
FIRST_PER_VIDEO = 4
MAX_ANSWERS = 6
MAX_FRAMES_PER_CALL = 12
SEPARATOR = "=== user ==="
_SHOWN_BEFORE = "<tool_response>\nThese frames are no longer shown.\n</tool_response>"
_PAIRS_AT_ONCE = 16  # limits decoded frames in memory

_BLOCK = re.compile(r"<(recommend[ _]answer|final[ _]answer|answer)>([^<>]*)</\1>", re.IGNORECASE)
_CALL = re.compile(r"<tool_call>([^<]*)</tool_call>", re.IGNORECASE)
_BEFORE_KEY = re.compile(r"\s(?=(?:TA|VQ|MQ|OA|CF)\b)", re.IGNORECASE)
_ENTRY = re.compile(r"(TA|VQ|MQ|OA|CF)\s*=\s*([0-9])", re.IGNORECASE)
_OVERALL = re.compile(r"\bOA\s{0,9}=\s{0,9}(?=[012](?![\d.]))", re.IGNORECASE)
_ALLOWED = {"TA": "012", "VQ": "012", "MQ": "012", "OA": "012", "CF": "123"}
_P_FIRST = {"1": 1.0, "2": 0.0, "0": 0.5}
# Of P(0) + P(1) + P(2): below it the model wanted to write something else.
_LEAST_MASS = 0.01


@dataclass(frozen=True)
class ThinkerTurn:
    """What one answer says. Exactly one of ``overall`` and ``frames`` is what counts: the verdict is final where no
    further frames are asked for.
    """

    # "1", "2" or "0"; None where no verdict was given.
    overall: str | None
    # The numbers of the frames that are asked for, increasing; empty: none.
    frames: tuple[int, ...] = ()
    # Whether the verdict stands in <Answer>, not in <Recommend Answer>.
    final: bool = False


def read_dimensions(block: str) -> dict[str, str]:
    """The digits of ``TA=1, VQ=0, MQ=2, OA=1`` by their names, in any order and case.

    Raises ``ValueError`` for anything else in it ("OA=1.5", "OA=1 or 2", a name twice), and without OA.
    """
    found: dict[str, str] = {}
    for entry in re.split(r"[,;\n]", _BEFORE_KEY.sub(",", block)):
        if not (entry := entry.strip(" \t\r*.")):
            continue
        match = _ENTRY.fullmatch(entry)
        name = match[1].upper() if match else ""
        if match is None or name in found or match[2] not in _ALLOWED[name]:
            raise ValueError(f"{quoted_excerpt(entry)} is no verdict such as OA=1; 1, 2 and 0 (a tie) are")
        found[name] = match[2]
    if "OA" not in found:
        raise ValueError(f"no OA in the verdict {quoted_excerpt(block)}")
    return found


def read_thinker_turn(text: str, num_frames: int) -> ThinkerTurn:
    """The last verdict in an answer, and the frames that it asks for.

    num_frames: N, the largest number that may be asked for. More than 12 frames are cut to the first 12,
    as upstream's card does. A recommended verdict counts only where it can be read. Raises ``ValueError``
    for a final verdict or a call that cannot be read, and where there is neither.
    """
    blocks, calls = _BLOCK.findall(text), _CALL.findall(text)
    final = bool(blocks) and not blocks[-1][0].lower().startswith("recommend")
    overall = None
    if blocks:
        try:
            overall = read_dimensions(blocks[-1][1])["OA"]
        except ValueError:
            if final or not calls:
                raise
    if final or not calls:
        if overall is None:
            raise ValueError(f"neither a verdict nor a <tool_call> in the answer {quoted_excerpt(text)}")
        return ThinkerTurn(overall, final=final)
    return ThinkerTurn(overall, _asked_frames(calls[-1], num_frames))


def _asked_frames(call: str, num_frames: int) -> tuple[int, ...]:
    try:
        row = json.loads(call)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tool call is not JSON ({error}): {quoted_excerpt(call)}") from error
    arguments = row.get("arguments", row) if isinstance(row, dict) else None
    numbers = arguments.get("target_frames") if isinstance(arguments, dict) else None
    if not isinstance(numbers, list) or not numbers or not all(type(number) is int for number in numbers):
        raise ValueError(f"the tool call names no frames: {quoted_excerpt(call)}")
    if wrong := [number for number in numbers if not 1 <= number <= num_frames]:
        raise ValueError(f"the tool call asks for frame {wrong[0]}, and there are {num_frames}")
    return tuple(sorted(dict.fromkeys(numbers[:MAX_FRAMES_PER_CALL])))


def _after_overall(text: str) -> int | None:
    """Where the digit of OA stands in a final answer; None in any other text."""
    blocks = list(_BLOCK.finditer(text))
    if not blocks or blocks[-1][1].lower().startswith("recommend"):
        return None
    return max((match.end() for match in _OVERALL.finditer(text, blocks[-1].start(2), blocks[-1].end(2))), default=None)


_READOUT = Readout(("0", "1", "2"), _after_overall)


@dataclass(frozen=True)
class ThinkerPrompt:
    """The two texts of the question, with the slots {prompt} and {N} open."""

    system: str
    user: str
    # The provenance's entry.
    entry: str


def read_thinker_prompt(path: str | Path | None, *, allow_other_prompt: bool) -> ThinkerPrompt:
    """The texts in the user's file: the system message, a line ``=== user ===``, and the user's message.

    Raises ``ValueError`` that says how to write the file where it is not given, lacks a slot or the line,
    or is not allowed to be a text without known hash.
    """
    how = (
        "copy the system prompt and the user prompt from the model's card (qunwang13/vrthinker) into a text file, "
        f"with a line {SEPARATOR!r} between them and the slots {{prompt}} and {{N}}, and name it as prompt_file"
    )
    if path is None:
        raise ValueError(f"VR-Thinker: prompt_file is not given; {how}")
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the prompt file cannot be read as UTF-8 text ({error}); {how}") from error
    if not allow_other_prompt:
        raise ValueError(
            f"{path}: no hash of VR-Thinker's prompts is known, so the text cannot be checked; compare it with the "
            "card yourself and set allow_other_prompt=true"
        )
    system, line, user = text.partition(f"\n{SEPARATOR}\n")
    if not line:
        raise ValueError(f"{path}: no line {SEPARATOR!r} in the prompt file; {how}")
    if missing := [slot for slot in ("{prompt}", "{N}") if slot not in system + user]:
        raise ValueError(f"{path}: the text lacks the slot {missing[0]}; write it where that belongs")
    if left := re.search(r"\{(?:dim_name_|dim_explain_)[1-3]\}", system + user):
        raise ValueError(f"{path}: write the dimension's name or explanation in the place of {left[0]}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return ThinkerPrompt(system, user.removesuffix("\n"), f"text not checked ({Path(path).name}), sha256 {digest}")


class VrThinker:
    """VR-Thinker behind a server, a Comparator.

    prompt_file, allow_other_prompt: see ``read_thinker_prompt``. Raises ``ValueError`` when the file is
    not usable.
    """

    name = "vr_thinker"

    def __init__(
        self,
        vlm: Vlm,
        *,
        prompt_file: str | Path | None,
        allow_other_prompt: bool = False,
        max_new_tokens: int = 4096,
    ) -> None:
        self.vlm = vlm
        self.max_new_tokens = max_new_tokens
        self.prompt = read_thinker_prompt(prompt_file, allow_other_prompt=allow_other_prompt)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "prompt": self.prompt.entry,
            "frames": f"{FIRST_PER_VIDEO} + {FIRST_PER_VIDEO} of a pool of up to {POOL_PER_VIDEO} + {POOL_PER_VIDEO}, "
            f"as images; up to {MAX_FRAMES_PER_CALL} more per call, behind 'Frame n:', visible for one turn",
            "answers": f"up to {MAX_ANSWERS}",
            "max_new_tokens": str(self.max_new_tokens),
        } | model_entries(self.vlm.provenance)

    def compare(self, prompts: Sequence[str], firsts: Sequence[Video], seconds: Sequence[Video]) -> list[Comparison]:
        """One Comparison per (prompt, first, second), in order; a failure is its own pair's.

        Two files of equal bytes are a tie, about which nothing is asked.
        """
        questions = list(zip(prompts, firsts, seconds, strict=True))
        found: list[Comparison] = []
        for start in range(0, len(questions), _PAIRS_AT_ONCE):
            batch = questions[start : start + _PAIRS_AT_ONCE]
            found += run_dialogues(self.vlm, [self._dialogue(*question) for question in batch])
        return found

    def _dialogue(self, prompt: str, first: Video, second: Video) -> Dialogue[Comparison]:
        try:
            if first.content_hash == second.content_hash:
                return Comparison(0.5, text="equal files")
            pool = FramePool.of(first, second)
            conversation = self._begin(prompt, pool)
        except (ValueError, OSError) as error:
            return Comparison.missing(f"a video cannot be shown: {error}")
        texts: list[str] = []
        tokens = {"read": 0, "written": 0}
        for number in range(1, MAX_ANSWERS + 1):
            (reply,) = yield [Question(conversation, self.max_new_tokens, None, _READOUT)]
            texts.append(reply.text)
            tokens = {
                "read": tokens["read"] + reply.num_prompt_tokens,
                "written": tokens["written"] + reply.num_tokens,
            }
            text = "\n\n".join(texts)
            if reply.error is not None:
                return Comparison.missing(f"the model gave no answer {number}: {reply.error}", text)
            if reply.truncated:
                return Comparison.missing(f"answer {number} was cut off at the token limit", text)
            try:
                turn = read_thinker_turn(reply.text, pool.size)
                if not turn.frames or (number == MAX_ANSWERS and turn.overall is not None):
                    return Comparison(_p_first(turn, reply), None, text, tokens)
                if number < MAX_ANSWERS:
                    conversation = _continued(conversation, reply.text, pool, turn.frames)
            except (ValueError, OSError) as error:
                return Comparison.missing(f"answer {number}: {error}", text)
        return Comparison.missing(f"{MAX_ANSWERS} answers ask for frames, and the last one has no verdict", text)

    def _begin(self, prompt: str, pool: FramePool) -> Conversation:
        half = pool.size // 2
        shown = even_indices(half, FIRST_PER_VIDEO)
        numbers = [*(index + 1 for index in shown), *(half + index + 1 for index in shown)]
        slots = {"{prompt}": prompt, "{N}": str(pool.size)}
        user = Message("user", fill_slots(self.prompt.user, slots), pool.frames(numbers), as_images=True)
        return (Message("system", fill_slots(self.prompt.system, slots)), user)


@dataclass(frozen=True)
class FramePool:
    """The frames of two videos that may be asked for: numbers 1 to ``size``, the first half of the first video."""

    first: Video
    second: Video
    # The source index of each number of the first and of the second video.
    indices: tuple[tuple[int, ...], tuple[int, ...]]

    @classmethod
    def of(cls, first: Video, second: Video) -> FramePool:
        """The pool of a pair. Raises ``ValueError`` for a video of fewer than 4 frames."""
        count = min(POOL_PER_VIDEO, len(first), len(second))
        if count < FIRST_PER_VIDEO:
            raise ValueError(f"a pair needs at least {FIRST_PER_VIDEO} frames per video, received {count}")
        return cls(first, second, (even_indices(len(first), count), even_indices(len(second), count)))

    @property
    def size(self) -> int:
        return len(self.indices[0]) + len(self.indices[1])

    def frames(self, numbers: Sequence[int]) -> Frames:
        """The frames with these increasing numbers as one row of images.

        Raises ``ValueError`` when a video cannot be decoded, or the two differ in size.
        """
        half = len(self.indices[0])
        picked = [
            video.frames([indices[number - 1 - offset] for number in own])
            for video, indices, offset in ((self.first, self.indices[0], 0), (self.second, self.indices[1], half))
            if (own := [number for number in numbers if offset < number <= offset + half])
        ]
        if len(picked) == 2:
            return joined_frames(*picked)
        count = len(picked[0])
        order = tuple(range(count))
        return Frames(np.asarray(picked[0].pixels), order, tuple(map(float, order)), 1.0, count)


def _continued(conversation: Conversation, answer: str, pool: FramePool, numbers: Sequence[int]) -> Conversation:
    """The conversation with an answer and the frames that it asked for; frames of earlier answers are taken out."""
    system, first, *later = conversation
    forgotten = (
        Message("user", _SHOWN_BEFORE) if message.frames is not None and message.captions else message
        for message in later
    )
    captions = [f"\nFrame {number}: " for number in numbers]
    captions[0] = f"<tool_response>{captions[0]}"
    returned = Message("user", "\n</tool_response>", pool.frames(numbers), as_images=True, captions=tuple(captions))
    return (system, first, *forgotten, Message("assistant", answer), returned)


def _p_first(turn: ThinkerTurn, reply: Reply) -> float:
    """P(the first video is better): from the three digits' probabilities where they agree with the written one."""
    assert turn.overall is not None
    log_p: Mapping[str, Any] | None = None if reply.bounded else reply.log_p
    if not turn.final or log_p is None:
        return _P_FIRST[turn.overall]
    p = {digit: math.exp(log_p[digit]) for digit in _P_FIRST}
    mass = math.fsum(p.values())
    if mass < _LEAST_MASS or max(p, key=lambda digit: p[digit]) != turn.overall:
        return _P_FIRST[turn.overall]
    return min(max((p["1"] + p["0"] / 2) / mass, 0.0), 1.0)
