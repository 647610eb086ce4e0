"""VideoPhy-2's AutoEval: agreement with the caption (SA) and physical common sense (PC), 1 to 5 each.

prompt, video → 32 frames → one question for SA, one for PC → first digit of each answer
    → Score(mean, parts sa, pc, joint)

The checkpoint (videophysics/videophy_2_auto, an mPLUG-Owl of 2023) runs with transformers 4.28 only,
so it is asked behind a server of its own that speaks the OpenAI protocol. Upstream reads an answer
by searching for number words in the order zero to five, which finds "one" in "none"; here an answer
must begin with its digit.

Source: VideoPhy-2 (arXiv 2503.06800), repository Hritikbansal/videophy (MIT) at 01d366c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.judges.questions import SamenessAlarm, ask_each, model_entries
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, fill_slots, read_upstream_prompt
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Conversation, Message, Reply, Vlm

VIDEOPHY2_FRAMES = 32
# From this value on, an axis counts as fulfilled in the joint score of the paper.
JOINT_FROM = 4.0

_FILE = "VIDEOPHY2/template.py"
_REPOSITORY = "Hritikbansal/videophy"
_PROMPTS = {
    "sa": UpstreamPrompt("VideoPhy-2's caption question", _REPOSITORY, _FILE, "76de8b9aaa10", ("{caption}",)),
    "pc": UpstreamPrompt("VideoPhy-2's physics question", _REPOSITORY, _FILE, "253f1229a0c4", ()),
}
_RULE = UpstreamPrompt("VideoPhy-2's rule question", _REPOSITORY, _FILE, "304ee4008211", ("{rule}",))
_RATING = re.compile(r"\s{0,20}([1-5])(?![\w.,/]?\d)\b")
_VALIDITY = re.compile(r"\s{0,20}([0-2])(?![\w.,/]?\d)\b")


def middle_indices(num_frames: int) -> tuple[int, ...]:
    """Upstream's 32 source indices: ``int(s / 2) + round(s i)`` with s = (N − 1) / 32, each once."""
    step = (num_frames - 1) / VIDEOPHY2_FRAMES
    return tuple(sorted({min(int(step / 2) + round(step * i), num_frames - 1) for i in range(VIDEOPHY2_FRAMES)}))


def read_rating(text: str, *, rule: bool = False) -> float:
    """The digit that an answer begins with: 1 to 5, or for a rule 0 (broken), 1 (kept), 2 (cannot be
    told). Raises ``ValueError`` for anything else.
    """
    match = (_VALIDITY if rule else _RATING).match(text)
    if match is None:
        raise ValueError(f"the answer {text[:80]!r} does not begin with {'0, 1 or 2' if rule else 'a digit 1 to 5'}")
    return float(match.group(1))


class VideoPhy2:
    """VideoPhy-2's AutoEval behind a server, a Reward. Values are the mean of SA and PC, in [1, 5].

    prompt_file: your copy of upstream's template.py. Raises ``ValueError`` when it is not usable.
    """

    name = "videophy2"
    bounds = (1.0, 5.0)

    def __init__(self, vlm: Vlm, *, prompt_file: str | Path | None, max_new_tokens: int = 256) -> None:
        self.vlm = vlm
        self.max_new_tokens = max_new_tokens
        found = {axis: read_upstream_prompt((known,), prompt_file) for axis, known in _PROMPTS.items()}
        self._templates = {axis: text for axis, (text, _) in found.items()}
        self._rule = read_upstream_prompt((_RULE,), prompt_file)[0]
        self._alarm = SamenessAlarm(self.name)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "reward": "VideoPhy-2 AutoEval (SA, PC; mean, 1 to 5)",
            "prompt": ", ".join(f"{known.name} {known.sha256}" for known in _PROMPTS.values()),
            "frames": f"{VIDEOPHY2_FRAMES} at the middles of {VIDEOPHY2_FRAMES} stretches, as images",
            "max_new_tokens": str(self.max_new_tokens),
        } | model_entries(self.vlm.provenance)

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order; parts ``sa``, ``pc`` and ``joint`` (1 when both are at least
        4, else 0). A video that lacks one of the two has no score.
        """
        prompts, videos = as_pairs(prompts, videos)
        columns = {axis: self._ask(self._templates[axis], "{caption}", prompts, videos) for axis in _PROMPTS}
        scores = [_joined(sa, pc) for sa, pc in zip(columns["sa"], columns["pc"], strict=True)]
        self._alarm.see(scores)
        return scores

    def rules(self, rules: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """Whether each video keeps its rule: 1 kept, 0 broken; a video of which the judge cannot tell
        has no score.
        """
        scores = self._ask(self._rule, "{rule}", rules, videos, rule=True)
        return [
            Score.missing("the judge cannot tell whether the rule is kept", provenance=score.provenance)
            if score.value == 2
            else score
            for score in scores
        ]

    def _ask(
        self, template: str, slot: str, texts: Sequence[str], videos: Sequence[Video], *, rule: bool = False
    ) -> list[Score]:
        def question(text: str, video: Video) -> Conversation:
            frames = video.frames(middle_indices(len(video)))
            return (Message("user", fill_slots(template, {slot: text}), frames, as_images=True),)

        def read(reply: Reply) -> tuple[float, dict[str, float]]:
            return read_rating(reply.text, rule=rule), {}

        return ask_each(
            self.vlm,
            question,
            read,
            texts,
            videos,
            provenance=lambda: self.provenance,
            max_new_tokens=self.max_new_tokens,
        )


def _joined(sa: Score, pc: Score) -> Score:
    for axis, score in (("caption", sa), ("physics", pc)):
        if not score.scored:
            return replace(score, error=f"{axis} question: {score.error}")
    joint = float(sa.value >= JOINT_FROM and pc.value >= JOINT_FROM)
    return replace(sa, value=(sa.value + pc.value) / 2, parts={"sa": sa.value, "pc": pc.value, "joint": joint})
