"""VideoScore2: three axes from 1 to 5, thought first, as a reward.

prompt, video at 2 fps → upstream's question → answer → three digits → their mean

Source: VideoScore2 (arXiv 2509.22799), Qwen2.5-VL-7B; the question as FastVideo's evaluator keeps it
(hao-ai-lab/FastVideo, Apache-2.0). Upstream's own pattern does not match what the released model
writes, because a descriptor stands between an axis and its colon; ours allows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.judges.questions import SamenessAlarm, ask_each, model_entries
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, fill_slots, read_upstream_prompt
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Conversation, Message, Reply, Vlm

FPS = 2.0
_PROMPT = UpstreamPrompt(
    "VideoScore2's question",
    "hao-ai-lab/FastVideo",
    "fastvideo/eval/metrics/videoscore2/metric.py",
    "e35029e823f2",
    ("$t2v_prompt",),
)
_HEADINGS = {
    "visual_quality": r"\(1\)\s{0,9}visual quality",
    "text_alignment": r"\(2\)\s{0,9}text-to-video alignment",
    "physical_consistency": r"\(3\)\s{0,9}physical/common-sense consistency",
}
_AXES = {
    name: re.compile(heading + r"[^\d\n]{0,80}(\d+(?:\.\d+)?)(?!\d)", re.IGNORECASE)
    for name, heading in _HEADINGS.items()
}


def read_axes_of_videoscore2(text: str) -> dict[str, float]:
    """The three axes after the last ``</think>``, each an integer from 1 to 5.

    Raises ``ValueError`` naming the axis that is missing or out of range.
    """
    answer = text.rpartition("</think>")[2]
    axes = {}
    for name, pattern in _AXES.items():
        found = pattern.findall(answer)
        if not found:
            raise ValueError(f"no {name.replace('_', ' ')} in the answer {answer[-160:]!r}")
        if found[-1] not in ("1", "2", "3", "4", "5"):
            raise ValueError(f"{name.replace('_', ' ')} is {found[-1]}, expected an integer from 1 to 5")
        axes[name] = float(found[-1])
    return axes


class VideoScore2:
    """VideoScore2 behind any vision-language model, a Reward. Values are the mean of the three axes,
    in [1, 5].

    prompt_file: your copy of the file that holds the question. Raises ``ValueError`` when it is not
    usable.
    """

    name = "videoscore2"
    bounds = (1.0, 5.0)

    def __init__(
        self,
        vlm: Vlm,
        *,
        prompt_file: str | Path | None,
        allow_other_prompt: bool = False,
        max_new_tokens: int = 1024,
    ) -> None:
        self.vlm = vlm
        self.max_new_tokens = max_new_tokens
        self.template, self._prompt_entry = read_upstream_prompt(
            (_PROMPT,), prompt_file, allow_other_prompt=allow_other_prompt
        )
        self._alarm = SamenessAlarm(self.name)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "reward": "VideoScore2 (visual quality, text alignment, physical consistency; mean, 1 to 5)",
            "prompt": self._prompt_entry,
            "frames": f"video at {FPS:g} fps",
            "max_new_tokens": str(self.max_new_tokens),
        } | model_entries(self.vlm.provenance)

    def _question(self, prompt: str, video: Video) -> Conversation:
        return (Message("user", fill_slots(self.template, {"$t2v_prompt": prompt}), video.sample(FPS)),)

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order; parts are the axes. A failure affects its own video only."""
        prompts, videos = as_pairs(prompts, videos)
        scores = ask_each(
            self.vlm,
            self._question,
            _read,
            prompts,
            videos,
            provenance=lambda: self.provenance,
            max_new_tokens=self.max_new_tokens,
        )
        self._alarm.see(scores)
        return scores


def _read(reply: Reply) -> tuple[float, dict[str, float]]:
    axes = read_axes_of_videoscore2(reply.text)
    return math.fsum(axes.values()) / len(axes), axes
