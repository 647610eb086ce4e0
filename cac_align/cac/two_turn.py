"""The method: scan the whole video coarsely, look again densely inside the suspicious window, and only then decide.

videos → turn 1 (4 fps) → normal? done : window → clip (8 fps) → turn 2 → Judgement
         unusable answer → one retry with its faults quoted → still unusable: no verdict, and why

Decisions where the paper (Sec. 3.4) is silent are named settings of ``TwoTurn``. The deciding turn is turn 1 when it says normal and
turn 2 otherwise; turn 2 not confirming means normal. P(normal) and P(abnormal) of Eq. 7 are those of the deciding turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from cac_align.cac.answer_schema import answer_schema
from cac_align.cac.prompts import retry_conversation, turn_one_conversation, turn_two_conversation, wording_hash
from cac_align.cac.readout import STATUS
from cac_align.core.answer import CONTRADICTS, read_answer
from cac_align.core.judgement import Anomaly, Judgement, Turn, Window, hull
from cac_align.core.video import Frames, Video, check_pairs
from cac_align.vlm.dialogue import Dialogue, Question, hold
from cac_align.vlm.protocol import Conversation, Reply, Vlm


@dataclass(frozen=True)
class TwoTurn:
    """How the two turns are asked. Every field is part of the reward's provenance.

    scan_fps, look_fps: frames per second of turn 1 and turn 2 (4 and 8 in the paper).
    context: turn 2 sees its clip and turn 1's text in a "fresh" context (as stage 2 trains it), or the chat is "continued".
    windows: several anomalies: turn 2 looks at the "hull" of their windows, or at "each" disjoint window, the worst verdict deciding.
    wording: instructions: "full", "brief", or a folder. constrained: decode inside the answer's JSON schema.
    margin_s: seconds by which turn 2's clip is wider than the window, on either side (0 in the paper). What happens between two frames of
    the scan began up to 1 / scan_fps before the first frame that shows it: a jump cannot be seen in a clip that begins behind it.
    max_new_tokens: per turn. retries: how often an unusable answer is asked for again, with its faults quoted.
    """

    scan_fps: float = 4.0
    look_fps: float = 8.0
    context: Literal["fresh", "continued"] = "fresh"
    windows: Literal["hull", "each"] = "hull"
    wording: str = "full"
    constrained: bool = False
    max_new_tokens: int = 4096
    retries: int = 1
    margin_s: float = 0.0

    def __post_init__(self) -> None:
        check_rates(scan_fps=self.scan_fps, look_fps=self.look_fps)
        if not (math.isfinite(self.margin_s) and self.margin_s >= 0):
            raise ValueError(f"margin_s must be seconds, 0 or more, received {self.margin_s}")
        if self.context not in ("fresh", "continued"):
            raise ValueError(f"context must be 'fresh' or 'continued', received {self.context!r}")
        if self.windows not in ("hull", "each"):
            raise ValueError(f"windows must be 'hull' or 'each', received {self.windows!r}")
        if self.max_new_tokens < 1 or self.retries < 0:
            raise ValueError(
                f"expected max_new_tokens >= 1 and retries >= 0, received {self.max_new_tokens} and {self.retries}"
            )

    def provenance(self) -> dict[str, str]:
        # Without a margin the provenance is what it was before there were margins.
        fields = {
            name: str(getattr(self, name)) for name in self.__dataclass_fields__ if name != "margin_s" or self.margin_s
        }
        return {**fields, "prompt_sha256": wording_hash(self.wording)}


def check_rates(**rates: float) -> None:
    """Raise ``ValueError`` for a frame rate at which nothing could be shown."""
    for name, fps in rates.items():
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"{name} must be frames per second, more than 0, received {fps}")


@dataclass(frozen=True)
class TurnState:
    """One question of one turn: what was shown, what came back so far. single: no other turn follows (``cac.single_turn``)."""

    number: Literal[1, 2]
    conversation: Conversation
    shown: Frames
    turns: tuple[Turn, ...] = ()
    error: str | None = None
    single: bool = False

    @property
    def turn(self) -> Turn:
        return self.turns[-1]


class HasScanFps(Protocol):
    """What every judging setting says: how many frames per second it scans."""

    @property
    def scan_fps(self) -> float: ...


class DecodingSettings(Protocol):
    """What ``ask`` needs to know of a judging setting."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def constrained(self) -> bool: ...


S = TypeVar("S", bound=HasScanFps)


def judge(
    vlm: Vlm,
    prompts: Sequence[str],
    videos: Sequence[Video],
    settings: TwoTurn = TwoTurn(),
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """Judge every video in two turns, many at once; each goes on to turn 2 (or leaves) as soon as its own turn 1 is answered.

    One Judgement per video, in order. A video that cannot be read or judged gets a Judgement with ``error`` and touches no other.
    ``progress`` is called with the number of videos that were finished. Raises ``ValueError`` when ``prompts`` and ``videos`` differ
    in length.
    """
    return judge_each(judge_one, vlm, prompts, videos, settings, progress=progress)


def judge_each(
    one: Callable[[str, Video, Frames, S], Dialogue[Judgement]],
    vlm: Vlm,
    prompts: Sequence[str],
    videos: Sequence[Video],
    settings: S,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """What ``judge`` promises, for any way of judging. one: prompt, video, its frames at ``scan_fps``, settings → the video's dialogue."""

    def opened(prompt: str, video: Video) -> Dialogue[Judgement]:
        try:
            frames = video.sample(settings.scan_fps)
        except ValueError as error:
            return Judgement(None, error=f"video: {error}")
        return (yield from one(prompt, video, frames, settings))

    check_pairs(prompts, videos)
    return hold(vlm, [opened(*pair) for pair in zip(prompts, videos, strict=True)], progress=progress)


def judge_one(prompt: str, video: Video, frames: Frames, settings: TwoTurn) -> Dialogue[Judgement]:
    """The method, for one video: a dialogue that asks its questions and returns the Judgement."""
    conversation = turn_one_conversation(prompt, frames, wording=settings.wording)
    (scan,) = yield from ask([TurnState(1, conversation, frames)], settings)
    if scan.error is not None:
        return Judgement(None, turns=scan.turns, error=f"turn 1: {scan.error}")
    if scan.turn.status == "normal":
        return decide([scan], (), ())
    looks = yield from ask(_second_looks(scan, prompt, video, settings), settings)
    failed = next((look for look in looks if look.error is not None), None)
    if failed is not None:
        turns = scan.turns + tuple(turn for look in looks for turn in look.turns)
        return Judgement(None, turns=turns, error=f"turn 2: {failed.error}")
    return decide(looks, scan.turns, scan.turn.anomalies)


def _second_looks(scan: TurnState, prompt: str, video: Video, settings: TwoTurn) -> list[TurnState]:
    """The clips turn 2 has to look at: crop(f, y1) of Sec. 3.2."""
    windows = [anomaly.window for anomaly in scan.turn.anomalies if anomaly.window is not None]
    before = scan.conversation if settings.context == "continued" else None
    looks = []
    for window in [hull(windows)] if settings.windows == "hull" else disjoint(windows):
        inside = tuple(
            a for a in scan.turn.anomalies if a.window and window.start_s <= a.window.start_s <= window.end_s
        )
        turn_one = replace(scan.turn, anomalies=inside) if settings.windows == "each" else scan.turn
        try:
            clip = video.clip(window, settings.look_fps, settings.margin_s)
        except ValueError as error:
            looks.append(TurnState(2, (), scan.shown, error=f"clip {window.start_s:.2f}-{window.end_s:.2f} s: {error}"))
            continue
        asked = turn_two_conversation(prompt, clip, turn_one, wording=settings.wording, before=before)
        looks.append(TurnState(2, asked, clip))
    return looks


def disjoint(windows: Sequence[Window]) -> list[Window]:
    """Merge windows that touch or overlap; what is left is disjoint and in order of time."""
    merged: list[Window] = []
    for window in sorted(windows):
        if merged and window.start_s <= merged[-1].end_s:
            merged[-1] = hull([merged[-1], window])
        else:
            merged.append(window)
    return merged


def ask(asked: Sequence[TurnState], settings: DecodingSettings) -> Dialogue[list[TurnState]]:
    """Ask these questions; whatever cannot be used is asked again, ``settings.retries`` times."""
    results = list(asked)
    open_questions = [position for position, item in enumerate(results) if item.error is None]
    for attempt in range(settings.retries + 1):
        if not open_questions:
            break
        replies = yield [_question(results[position], settings) for position in open_questions]
        again = []
        for position, reply in zip(open_questions, replies, strict=True):
            results[position], retry = _read(results[position], reply, last=attempt == settings.retries)
            if retry:
                again.append(position)
        open_questions = again
    return results


def _question(item: TurnState, settings: DecodingSettings) -> Question:
    conversation = retry_conversation(item.conversation, item.turn) if item.turns else item.conversation
    schema = answer_schema(item.number, boxed=item.single) if settings.constrained else None
    return Question(conversation, settings.max_new_tokens, schema, STATUS)


def _read(item: TurnState, reply: Reply, *, last: bool) -> tuple[TurnState, bool]:
    """Read one reply; the second value says whether to ask again. A backend's failure is final: it has had its own retries."""
    if reply.error is not None:
        return replace(item, error=reply.error), False
    shown = item.shown
    turn = read_answer(reply.text, number=item.number, frames=shown.indices, times_s=shown.times_s, boxed=item.single)
    if reply.log_p is not None:
        turn = replace(turn, log_p_normal=reply.log_p["normal"], log_p_abnormal=reply.log_p["abnormal"])
    if reply.truncated:
        turn = replace(turn, faults=(*turn.faults, "truncated: the answer hit the token limit"))
    item = replace(item, turns=(*item.turns, turn))
    obstacle = unusable(turn, single=item.single)
    if obstacle is None:
        silent = turn.log_p_normal is None or turn.log_p_abnormal is None
        return (replace(item, error="the backend gave no probabilities for the verdict") if silent else item), False
    return (replace(item, error=obstacle), False) if last else (item, True)


def unusable(turn: Turn, *, single: bool = False) -> str | None:
    """Why this answer cannot be used to go on, or None.

    A status is always needed, one that the anomalies contradict is none, and an abnormal turn 1 must name a window, unless it is
    the single one. Other faults (a missing region, a box out of range) are kept as evidence but do not stop the verdict. An answer
    that says its verdict but was cut off or mangled afterwards is not used: what it would have gone on to say is unknown.
    """
    if turn.status is None or any(fault.startswith(CONTRADICTS) for fault in turn.faults):
        return _because(turn, "no usable status")
    if (
        turn.status == "abnormal"
        and turn.number == 1
        and not single
        and not any(anomaly.window for anomaly in turn.anomalies)
    ):
        return _because(turn, "abnormal without a usable window")
    return None


def _because(turn: Turn, what: str) -> str:
    return f"{what} ({'; '.join(turn.faults[:3])})" if turn.faults else what


def decide(deciding: Sequence[TurnState], before: tuple[Turn, ...], claimed: Sequence[Anomaly]) -> Judgement:
    """The verdict of the deciding turn; of several second looks, the one with the lowest odds for normal."""
    worst = min(deciding, key=lambda item: item.turn.log_p_normal - item.turn.log_p_abnormal)
    confirmed = tuple(anomaly for item in deciding if item.turn.status == "abnormal" for anomaly in item.turn.anomalies)
    status = "abnormal" if any(item.turn.status == "abnormal" for item in deciding) else "normal"
    turns = before + tuple(turn for item in deciding for turn in item.turns)
    # Where turn 2 confirmed but its details could not be read, what turn 1 had claimed stands.
    anomalies = (confirmed or tuple(claimed)) if status == "abnormal" else ()
    return Judgement(status, anomalies, turns, worst.turn.log_p_normal, worst.turn.log_p_abnormal)


def provenance(settings: Any, vlm: Vlm) -> Mapping[str, str]:
    """Everything that identifies a judgement: the settings, the prompt hash, and the model's own provenance."""
    return {**settings.provenance(), **{f"vlm/{name}": value for name, value in vlm.provenance.items()}}
