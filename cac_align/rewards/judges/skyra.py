"""Skyra: is this video real or fake, with the artefacts that it found, as a reward.

16 frames, each behind its time → system prompt, question → <think> findings </think><answer>Fake</answer>
    → P(real) at the verdict as the value, the findings as a judgement → Score in [0, 1]

A detector's "Fake" says that a video was generated, which is known beforehand. What can be used are its findings:
"abnormal" needs at least one whose category is a visible defect (``core.skyra``) and which names a place; blur,
colour and light concern the whole picture and are none. A "Fake" without such a finding, or with findings that
cannot be read, is no verdict about anomalies and no score; it never becomes "normal".

Source: Skyra (arXiv 2512.15693), Qwen2.5-VL-7B, weights CC BY 4.0; repository JoeLeelyf/Skyra at 808e10d, which has
no licence for its code. That its boxes are fractions of the frame is inferred from upstream's examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cac_align.core.judgement import Anomaly, Box, Judgement, Turn, Window, shown_frames
from cac_align.core.skyra import FINDING, SKYRA_LABELS, anomaly_type, finding_sentence
from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.judges.frames import even_indices
from cac_align.rewards.judges.questions import SamenessAlarm, ask_each, model_entries
from cac_align.rewards.judges.real_or_fake import VERDICT, p_real, read_real_or_fake
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, read_upstream_prompt
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Conversation, Message, Reply, Vlm

SKYRA_FRAMES = 16
# How far a corner may leave the frame by rounding, as a share of it.
_OUTSIDE = 0.001

_REPOSITORY, _FILE = "JoeLeelyf/Skyra", "eval/utils/ViFBench.py"
_PROMPTS = (
    UpstreamPrompt("Skyra's system prompt", _REPOSITORY, _FILE, "b830157f7779", ()),
    UpstreamPrompt("Skyra's line before the frames", _REPOSITORY, _FILE, "cdbe66bf2f9f", ()),
    UpstreamPrompt("Skyra's question", _REPOSITORY, _FILE, "ead1ebdbf7ae", ()),
)


@dataclass(frozen=True)
class SkyraFindings:
    """What an answer lists. anomalies: of our types. placed: how many of them name a place in the picture.
    dropped: categories that are none of ours. faults: why the others cannot be read.
    """

    anomalies: tuple[Anomaly, ...] = ()
    placed: int = 0
    dropped: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def read_findings(text: str, video: Video) -> SkyraFindings:
    """The typed findings in an answer, on the clock and the grid of this video.

    A finding whose category or time is wrong is a fault; one whose box is wrong stays, without boxes, and
    is a fault as well. [0, 0, 0, 0] means "no box".
    """
    anomalies, dropped, faults = [], [], []
    matched = placed = 0
    for found in FINDING.finditer(text):
        label = found["label"]
        if label is None:
            continue  # a region that was looked at, not a defect
        matched += 1
        if label not in SKYRA_LABELS:
            faults.append(f"unknown category {label[:60]!r}")
            continue
        kind = SKYRA_LABELS[label]
        if kind is None:
            dropped.append(label)
            continue
        sentence = finding_sentence(text, found)
        try:
            window = _window(found["start"], found["end"], video)
        except ValueError as error:
            faults.append(f"{label}: {error}")
            continue
        box = None
        try:
            corners = _corners(found["box"])
            placed += corners is not None  # also where its units are not known
            box = None if corners is None else _box(*corners)
        except ValueError as error:
            faults.append(f"{label}: {error}")
        boxes = dict.fromkeys(shown_frames(window, video.times_s), (box,)) if box else {}
        anomalies.append(Anomaly(anomaly_type(kind, sentence), window, sentence, "", boxes))
    if (others := text.count("<type>") - matched) > 0:
        faults.append(f"{others} finding(s) without the form <type>…</type> in <t>[s, e]</t> at <bbox>[…]</bbox>")
    return SkyraFindings(tuple(anomalies), placed, tuple(dropped), tuple(faults))


def _window(start: str, end: str, video: Video) -> Window:
    start_s, end_s, last_s = float(start), float(end), video.times_s[-1]
    if end_s < start_s or start_s > last_s + 1:
        raise ValueError(f"[{start}, {end}] s does not lie in a video of {video.duration_s:.2f} s")
    return Window(min(start_s, last_s), min(end_s, last_s))


def _corners(text: str) -> tuple[float, float, float, float] | None:
    """The four numbers of a box; None for [0, 0, 0, 0]."""
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected four numbers in <bbox>, received [{text[:60]}]")
    left, top, right, bottom = numbers
    if any(numbers) and not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(f"the box [{text[:60]}] is empty or begins outside the frame")
    return (left, top, right, bottom) if any(numbers) else None


def _box(left: float, top: float, right: float, bottom: float) -> Box:
    if max(right, bottom) > 1 + _OUTSIDE:
        raise ValueError(f"the box {[left, top, right, bottom]} is not in fractions of the frame")
    return Box.from_pixels(left, top, right, bottom, 1, 1)


def judgement_of(text: str, video: Video) -> Judgement:
    """The judgement about anomalies in an answer, without probabilities.

    Its ``error`` says why there is none: the format is broken, or the answer is "Fake" and no
    visible defect can be read. SkyraFindings in a "Real" answer are regions that were cleared.
    """
    turn = Turn(1, text, even_indices(len(video), SKYRA_FRAMES))
    try:
        verdict = read_real_or_fake(text)
    except ValueError as error:
        return Judgement(None, turns=(replace(turn, faults=(str(error),)),), error=str(error))
    if verdict == "real":
        return Judgement("normal", turns=(replace(turn, status="normal"),))
    found = read_findings(text, video)
    turn = replace(turn, anomalies=found.anomalies, faults=found.faults)
    if found.placed:
        return Judgement("abnormal", found.anomalies, (replace(turn, status="abnormal"),))
    reasons = [*found.faults, *(f"{anomaly.type} without a box" for anomaly in found.anomalies)]
    reasons += [f"{label} concerns the whole picture" for label in found.dropped]
    reason = "; ".join(reasons[:3]) or "it lists no finding"
    error = f"the answer is Fake, but names no visible defect with its place: {reason}"
    return Judgement(None, turns=(turn,), error=error)


class Skyra:
    """Skyra behind a server, a Reward in [0, 1]; the caption is not shown to it.

    prompt_file: your copy of upstream's ViFBench.py. Raises ``ValueError`` when it is not usable.
    """

    name = "skyra"
    bounds = (0.0, 1.0)

    def __init__(self, vlm: Vlm, *, prompt_file: str | Path | None, max_new_tokens: int = 8192) -> None:
        self.vlm = vlm
        self.max_new_tokens = max_new_tokens
        found = [read_upstream_prompt((known,), prompt_file) for known in _PROMPTS]
        self._system, self._lead, self._question = (text for text, _ in found)
        self._prompt_entry = "; ".join(entry for _, entry in found)
        self._alarm = SamenessAlarm(self.name)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "reward": "Skyra, P(real) at the verdict; no score for a Fake without a visible defect",
            "prompt": self._prompt_entry,
            "frames": f"{SKYRA_FRAMES} at linspace(0, N-1, {SKYRA_FRAMES}), as images, each behind its time",
            "max_new_tokens": str(self.max_new_tokens),
        } | model_entries(self.vlm.provenance)

    def conversation(self, prompt: str, video: Video) -> Conversation:
        """The question about one video. Raises ``ValueError`` when the video cannot be decoded."""
        frames = video.frames(even_indices(len(video), SKYRA_FRAMES))
        stamps = [f"\n[T={time_s:.2f}s] " for time_s in frames.times_s]
        captions = (self._lead + stamps[0], *stamps[1:])
        user = Message("user", f"\n{self._question}", frames, as_images=True, captions=captions)
        return (Message("system", self._system), user)

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order, with the parts ``p_real`` and ``p_fake``. The evidence is the judgement about
        anomalies.
        """
        prompts, videos = as_pairs(prompts, videos)
        scores = ask_each(
            self.vlm,
            self.conversation,
            _read,
            prompts,
            videos,
            provenance=lambda: self.provenance,
            max_new_tokens=self.max_new_tokens,
            readout=VERDICT,
            evidence=judgement_of,
        )
        self._alarm.see(scores)
        return scores


def _read(reply: Reply) -> tuple[float, dict[str, float]]:
    return p_real(reply, read_real_or_fake(reply.text))
