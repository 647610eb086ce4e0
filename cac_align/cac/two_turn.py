"""CaC's method: sample the whole video at 4 fps, look again at 8 fps inside the suspicious window,
then decide.

videos → turn 1 (4 fps) → "normal": done, else window → clip (8 fps) → turn 2 → Judgement
         unusable answer → asked again with its faults quoted
    → still unusable: no verdict, but the reason

The deciding turn is turn 1 when it says "normal" and turn 2 otherwise; a turn 2 that does not
confirm means "normal". P(normal) and P(abnormal) of Eq. 7 are those of the deciding turn. Where the
paper (Sec. 3.4) leaves a decision open, it is a setting of ``TwoTurn``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from cac_align.cac.answer_schema import answer_schema
from cac_align.cac.per_type import joined_suspicions, per_type_conversations
from cac_align.cac.prompts import retry_conversation, turn_one_conversation, turn_two_conversation, wording_hash
from cac_align.cac.readout import STATUS_READOUT
from cac_align.core.answer import CONTRADICTS, read_answer
from cac_align.core.judgement import LENGTH_UNVERIFIED, Anomaly, Judgement, Turn, Window, hull
from cac_align.core.video import Frames, Video, check_pairs
from cac_align.vlm.dialogue import Dialogue, Question, run_dialogues
from cac_align.vlm.protocol import Conversation, Reply, Vlm
from cac_align.vlm.replies import checked_provenance


@dataclass(frozen=True)
class TwoTurn:
    """How the two turns are asked. Every field is part of the reward's provenance."""

    # Frames per second of turn 1; 4 in the paper.
    scan_fps: float = 4.0
    # Frames per second of turn 2; 8 in the paper.
    look_fps: float = 8.0
    # What turn 2 is given: "fresh" is its clip and turn 1's text alone, as stage 2 trains it; "continued" is the
    # whole chat so far, with turn 1's frames.
    context: Literal["fresh", "continued"] = "fresh"
    # What turn 2 looks at when turn 1 named several anomalies: the "hull" of their windows, or "each" disjoint window
    # in a question of its own, where the worst verdict decides.
    windows: Literal["hull", "each"] = "hull"
    # The instructions: "full", "brief", or a folder of your own texts.
    wording: str = "full"
    # Whether decoding is constrained to the answer's JSON schema.
    constrained: bool = False
    # Limit of tokens per answer.
    max_new_tokens: int = 4096
    # How often an unusable answer is asked for again, with its faults quoted.
    retries: int = 1
    # Seconds by which turn 2's clip extends beyond the window on either side; 0 in the paper. What happens between two
    # frames of turn 1 started up to 1 / scan_fps before the first frame that shows it, and a jump cannot be seen in a
    # clip that starts after it.
    margin_s: float = 0.0
    # Whether P(normal) and P(abnormal) are read. Without them a judgement has its written verdict and no R: for
    # servers that give no log-probabilities, whose verdicts are counted (``rewards.judges.votes``).
    probabilities: bool = True
    # How turn 1 scans: "whole" asks about all types at once, as in the paper; "per_type" asks once for each type and
    # turn 2 once for each window of their union (``cac.per_type``). ``windows`` is not read then.
    scan: Literal["whole", "per_type"] = "whole"

    def __post_init__(self) -> None:
        check_rates(scan_fps=self.scan_fps, look_fps=self.look_fps)
        if not (math.isfinite(self.margin_s) and self.margin_s >= 0):
            raise ValueError(f"margin_s must be seconds, 0 or more, received {self.margin_s}")
        if self.context not in ("fresh", "continued"):
            raise ValueError(f"context must be 'fresh' or 'continued', received {self.context!r}")
        if self.windows not in ("hull", "each"):
            raise ValueError(f"windows must be 'hull' or 'each', received {self.windows!r}")
        if self.scan not in ("whole", "per_type"):
            raise ValueError(f"scan must be 'whole' or 'per_type', received {self.scan!r}")
        if self.scan == "per_type" and self.context == "continued":
            raise ValueError("scan: per_type has five scans and no one chat to continue; use context: fresh")
        if self.max_new_tokens < 1 or self.retries < 0:
            raise ValueError(
                f"expected max_new_tokens >= 1 and retries >= 0, received {self.max_new_tokens} and {self.retries}"
            )

    def provenance(self) -> dict[str, str]:
        # The paper's settings are left out where they were not always settings.
        usual = {"margin_s": 0.0, "probabilities": True, "scan": "whole"}
        left_out = {name for name, value in usual.items() if getattr(self, name) == value}
        fields = {name: str(getattr(self, name)) for name in self.__dataclass_fields__ if name not in left_out}
        texts = ("turn_one", "turn_two", "retry", *(["per_type"] if self.scan == "per_type" else []))
        return {**fields, "prompt_sha256": wording_hash(self.wording, texts)}


def check_rates(**rates: float) -> None:
    """Raise ``ValueError`` for a frame rate that is not a positive, finite number."""
    for name, fps in rates.items():
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"{name} must be a positive number of frames per second, received {fps}")


@dataclass(frozen=True)
class TurnState:
    """One question of one turn and its answers so far."""

    number: Literal[1, 2]
    conversation: Conversation
    frames: Frames
    # One answer per attempt, in order.
    turns: tuple[Turn, ...] = ()
    # Why there is no usable answer.
    error: str | None = None
    # Whether no other turn follows (``cac.single_turn``).
    single: bool = False

    @property
    def turn(self) -> Turn:
        return self.turns[-1]


class HasScanFps(Protocol):
    """Settings that say at how many frames per second the whole video is sampled."""

    @property
    def scan_fps(self) -> float: ...


class DecodingSettings(Protocol):
    """Settings that say how an answer is decoded."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def retries(self) -> int: ...
    @property
    def constrained(self) -> bool: ...
    @property
    def probabilities(self) -> bool: ...


class JudgeSettings(HasScanFps, Protocol):
    """The settings of any way of judging."""

    def provenance(self) -> dict[str, str]: ...


S = TypeVar("S", bound=HasScanFps)


def judge(
    vlm: Vlm,
    prompts: Sequence[str],
    videos: Sequence[Video],
    settings: TwoTurn = TwoTurn(),
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """Judge videos in two turns, many at once: turn 2 of a video does not wait for the other
    videos.

    Returns one Judgement per video, in order. A video that cannot be read or judged gets a
    Judgement with ``error`` and does not affect the others. ``progress`` is called with the number
    of videos that were finished since the last call. Raises ``ValueError`` when ``prompts`` and
    ``videos`` differ in length.
    """
    return judge_each(two_turn_dialogue, vlm, prompts, videos, settings, progress=progress)


def judge_each(
    make_dialogue: Callable[[str, Video, Frames, S], Dialogue[Judgement]],
    vlm: Vlm,
    prompts: Sequence[str],
    videos: Sequence[Video],
    settings: S,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """``judge`` for any way of judging.

    ``make_dialogue`` takes a prompt, its video, the video's frames at ``settings.scan_fps`` and the
    settings, and returns the dialogue that judges this video.
    """

    def sample_and_judge(prompt: str, video: Video) -> Dialogue[Judgement]:
        try:
            frames = video.sample(settings.scan_fps)
        except ValueError as error:
            return Judgement(None, error=f"video: {error}")
        judgement = yield from make_dialogue(prompt, video, frames, settings)
        return judgement if video.length_verified else replace(judgement, warnings=(LENGTH_UNVERIFIED,))

    check_pairs(prompts, videos)
    return run_dialogues(
        vlm, [sample_and_judge(*pair) for pair in zip(prompts, videos, strict=True)], progress=progress
    )


def two_turn_dialogue(prompt: str, video: Video, frames: Frames, settings: TwoTurn) -> Dialogue[Judgement]:
    """The dialogue that judges one video in two turns."""
    if settings.scan == "per_type":
        return (yield from _per_type_dialogue(prompt, video, frames, settings))
    conversation = turn_one_conversation(prompt, frames, wording=settings.wording)
    (scan,) = yield from ask_turns([TurnState(1, conversation, frames)], settings)
    if scan.error is not None:
        return Judgement(None, turns=scan.turns, error=f"turn 1: {scan.error}")
    if scan.turn.status == "normal":
        return decide([scan], (), ())
    looks = yield from ask_turns(_turn_two_states(scan, prompt, video, settings), settings)
    return _decide_looks(looks, scan.turns, scan.turn.anomalies)


def _per_type_dialogue(prompt: str, video: Video, frames: Frames, settings: TwoTurn) -> Dialogue[Judgement]:
    """Turn 1 once per type, then turn 2 once per window of their union.

    One scan without a usable answer leaves the video without a verdict: what it would have found is not known.
    """
    conversations = per_type_conversations(prompt, frames, wording=settings.wording)
    scans = yield from ask_turns([TurnState(1, each, frames) for each in conversations], settings)
    turns = tuple(turn for scan in scans for turn in scan.turns)
    failed = next((scan for scan in scans if scan.error is not None), None)
    if failed is not None:
        return Judgement(None, turns=turns, error=f"turn 1: {failed.error}")
    alarms = [scan.turn for scan in scans if scan.turn.status == "abnormal"]
    if not alarms:
        return decide(scans, (), ())
    states = [_look_state(*each, prompt, video, frames, settings) for each in joined_suspicions(alarms)]
    looks = yield from ask_turns(states, settings)
    return _decide_looks(looks, turns, [anomaly for turn in alarms for anomaly in turn.anomalies])


def _decide_looks(looks: Sequence[TurnState], before: tuple[Turn, ...], claimed: Sequence[Anomaly]) -> Judgement:
    """``decide``, or no verdict where one of the looks has no usable answer."""
    failed = next((look for look in looks if look.error is not None), None)
    if failed is not None:
        turns = before + tuple(turn for look in looks for turn in look.turns)
        return Judgement(None, turns=turns, error=f"turn 2: {failed.error}")
    return decide(looks, before, claimed)


def _turn_two_states(scan: TurnState, prompt: str, video: Video, settings: TwoTurn) -> list[TurnState]:
    """Turn 2's questions, one per clip: crop(f, y1) of Sec. 3.2."""
    windows = [anomaly.window for anomaly in scan.turn.anomalies if anomaly.window is not None]
    before = scan.conversation if settings.context == "continued" else None
    looks = []
    for window in [hull(windows)] if settings.windows == "hull" else merge_windows(windows):
        inside = tuple(
            a for a in scan.turn.anomalies if a.window and window.start_s <= a.window.start_s <= window.end_s
        )
        turn_one = replace(scan.turn, anomalies=inside) if settings.windows == "each" else scan.turn
        looks.append(_look_state(window, turn_one, prompt, video, scan.frames, settings, before))
    return looks


def _look_state(
    window: Window,
    turn_one: Turn,
    prompt: str,
    video: Video,
    scanned: Frames,
    settings: TwoTurn,
    before: Conversation | None = None,
) -> TurnState:
    """Turn 2's question about one window."""
    try:
        clip = video.clip(window, settings.look_fps, settings.margin_s)
    except ValueError as error:
        return TurnState(2, (), scanned, error=f"clip {window.start_s:.2f}-{window.end_s:.2f} s: {error}")
    asked = turn_two_conversation(prompt, clip, turn_one, wording=settings.wording, before=before)
    return TurnState(2, asked, clip)


def merge_windows(windows: Sequence[Window]) -> list[Window]:
    """Disjoint windows in order of time, made by merging those that touch or overlap."""
    merged: list[Window] = []
    for window in sorted(windows):
        if merged and window.start_s <= merged[-1].end_s:
            merged[-1] = hull([merged[-1], window])
        else:
            merged.append(window)
    return merged


def ask_turns(states: Sequence[TurnState], settings: DecodingSettings) -> Dialogue[list[TurnState]]:
    """The dialogue that asks these questions, and again up to ``settings.retries`` times those
    without usable answer.
    """
    results = list(states)
    open_questions = [position for position, item in enumerate(results) if item.error is None]
    for attempt in range(settings.retries + 1):
        if not open_questions:
            break
        replies = yield [_question(results[position], settings) for position in open_questions]
        again = []
        for position, reply in zip(open_questions, replies, strict=True):
            last = attempt == settings.retries
            results[position], retry = _read(results[position], reply, last=last, probabilities=settings.probabilities)
            if retry:
                again.append(position)
        open_questions = again
    return results


def _question(item: TurnState, settings: DecodingSettings) -> Question:
    conversation = retry_conversation(item.conversation, item.turn) if item.turns else item.conversation
    schema = answer_schema(item.number, boxed=item.single) if settings.constrained else None
    return Question(conversation, settings.max_new_tokens, schema, STATUS_READOUT if settings.probabilities else None)


def _read(item: TurnState, reply: Reply, *, last: bool, probabilities: bool) -> tuple[TurnState, bool]:
    """The state with this reply, and whether to ask again. A backend's failure is final: backends
    retry by themselves.
    """
    if reply.error is not None:
        return replace(item, error=reply.error), False
    indices, times_s = item.frames.indices, item.frames.times_s
    turn = read_answer(reply.text, number=item.number, frames=indices, times_s=times_s, boxed=item.single)
    if reply.log_p is not None:
        turn = replace(
            turn, log_p_normal=reply.log_p["normal"], log_p_abnormal=reply.log_p["abnormal"], bounded=reply.bounded
        )
    if reply.truncated:
        turn = replace(turn, faults=(*turn.faults, "truncated: the answer hit the token limit"))
    item = replace(item, turns=(*item.turns, turn))
    reason = unusable_reason(turn, single=item.single)
    if reason is None:
        unread = probabilities and (turn.log_p_normal is None or turn.log_p_abnormal is None)
        why = f": {reply.readout_error}" if reply.readout_error else ""
        return (
            replace(item, error=f"the backend gave no probabilities for the verdict{why}") if unread else item
        ), False
    return (replace(item, error=reason), False) if last else (item, True)


def unusable_reason(turn: Turn, *, single: bool = False) -> str | None:
    """Why the method cannot go on with this answer, or None when it can.

    An answer needs a status that its anomalies do not contradict, and an abnormal turn 1 must name
    a window, unless it is the only turn. Other faults (a missing region, a box out of range) are
    kept as evidence and do not stop the verdict. An answer that states its verdict but was cut off
    afterwards is not used, because the rest of it is unknown.
    """
    if turn.status is None or any(fault.startswith(CONTRADICTS) for fault in turn.faults):
        return _with_faults(turn, "no usable status")
    if (
        turn.status == "abnormal"
        and turn.number == 1
        and not single
        and not any(anomaly.window for anomaly in turn.anomalies)
    ):
        return _with_faults(turn, "abnormal without a usable window")
    return None


def _with_faults(turn: Turn, reason: str) -> str:
    return f"{reason} ({'; '.join(turn.faults[:3])})" if turn.faults else reason


def decide(deciding: Sequence[TurnState], before: tuple[Turn, ...], claimed: Sequence[Anomaly]) -> Judgement:
    """The judgement of the deciding turn; of several turn 2s, the one with the lowest log-odds
    decides.

    before: the turns that led to the deciding one. claimed: the anomalies that turn 1 named.
    """
    worst = min(deciding, key=lambda item: _log_odds(item.turn))
    confirmed = tuple(anomaly for item in deciding if item.turn.status == "abnormal" for anomaly in item.turn.anomalies)
    status = "abnormal" if any(item.turn.status == "abnormal" for item in deciding) else "normal"
    turns = before + tuple(turn for item in deciding for turn in item.turns)
    # When turn 2 confirmed but none of its anomalies could be read, turn 1's anomalies stand.
    anomalies = (confirmed or tuple(claimed)) if status == "abnormal" else ()
    return Judgement(status, anomalies, turns, worst.turn.log_p_normal, worst.turn.log_p_abnormal)


def _log_odds(turn: Turn) -> float:
    if turn.log_p_normal is None or turn.log_p_abnormal is None:  # settings.probabilities is off
        return math.inf if turn.status == "normal" else -math.inf
    return turn.log_p_normal - turn.log_p_abnormal


def judge_provenance(settings: JudgeSettings, vlm: Vlm) -> Mapping[str, str]:
    """What identifies a judgement: the settings, the hash of the prompts and the model's
    provenance.
    """
    of_vlm = checked_provenance(vlm.provenance, "the Vlm")
    return {**settings.provenance(), **{f"vlm/{name}": value for name, value in of_vlm.items()}}
