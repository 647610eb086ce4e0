"""HPSv3: an image judge asked about every frame, as a reward and as a negative control.

prompt, frames → Qwen2-VL, upstream's text with one special token, per frame → mean μ of the preference
    → mean over the best share of frames

It sees one frame at a time, so it cannot see what is wrong between frames. A video judge that finds no more
defects than this one has not looked at time.

Source: HPSv3 (arXiv 2508.03789), weights MizzenAI/HPSv3, repository MizzenAI/HPSv3 (MIT) at d232ff8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.judges.questions import SamenessAlarm, model_entries
from cac_align.rewards.judges.reward_head import (
    HeadCheckpoint,
    RewardHeadModel,
    refuse_special_texts,
    resized_size,
)
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, fill_slots, read_upstream_prompt
from cac_align.rewards.reward import Score

_TOKEN = "<|Reward|>"
_PIXELS = 256 * 28 * 28
_BASE = "Qwen/Qwen2-VL-7B-Instruct"
_REPOSITORY, _FILE = "MizzenAI/HPSv3", "hpsv3/dataset/data_collator_qwen.py"
_PROMPTS = (
    UpstreamPrompt("HPSv3's instruction", _REPOSITORY, _FILE, "0393599dad45", ("{text_prompt}",)),
    UpstreamPrompt("HPSv3's last lines", _REPOSITORY, _FILE, "2471faca094a", ()),
)


def hpsv3_weights(source: str | Path) -> Path:
    """The checkpoint's file: the path itself, or the only .safetensors in the folder.

    Raises ``ValueError`` when there is none, or several.
    """
    path = Path(source)
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(
            f"{path}: {len(found)} .safetensors files in it; name HPSv3.safetensors of MizzenAI/HPSv3 as model"
        )
    return found[0]


def mean_of_best(values: Sequence[float], top_ratio: float) -> float:
    """The mean of the best ``top_ratio`` of the values, at least one. Raises ``ValueError`` for none."""
    if not values:
        raise ValueError("a mean needs at least one value, received none")
    best = sorted(values, reverse=True)[: max(1, math.ceil(top_ratio * len(values) - 1e-9))]
    return math.fsum(best) / len(best)


class HpsV3:
    """HPSv3 here, a Reward without bounds.

    model: the published file, or its folder. base: folder or hub id of Qwen2-VL-7B-Instruct. top_ratio: the
    share of the best frames that counts, in (0, 1]. frame_stride: every which frame is asked about.
    prompt_file: your copy of upstream's data_collator_qwen.py. Raises ``ValueError`` when one is not usable.
    """

    name = "hpsv3"
    bounds = None

    def __init__(
        self,
        model: str | Path,
        *,
        prompt_file: str | Path | None,
        base: str | None = None,
        top_ratio: float = 1.0,
        frame_stride: int = 1,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        if not 0 < top_ratio <= 1 or frame_stride < 1 or batch_size < 1:
            raise ValueError(
                "expected top_ratio above 0 and up to 1, frame_stride >= 1 and batch_size >= 1; "
                f"received {top_ratio}, {frame_stride} and {batch_size}"
            )
        self.top_ratio, self.frame_stride, self.batch_size = top_ratio, frame_stride, batch_size
        found = [read_upstream_prompt((known,), prompt_file) for known in _PROMPTS]
        self.template = "".join(text for text, _ in found)
        self._prompt_entry = "; ".join(entry for _, entry in found)
        checkpoint = HeadCheckpoint(hpsv3_weights(model), base or _BASE, (_TOKEN,), device=device, dtype=dtype)
        checkpoint.check()
        self.model = RewardHeadModel(checkpoint)
        self._alarm = SamenessAlarm(self.name)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "reward": f"HPSv3 per frame, mean of the best {self.top_ratio:g} of the frames",
            "prompt": self._prompt_entry,
            "frames": f"every {self.frame_stride}., one at a time, {_PIXELS} pixels",
        } | model_entries(self.model.provenance)

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order; parts ``frames``, ``mean``, ``lowest`` and ``highest``. A failure affects its
        own video only.
        """
        prompts, videos = as_pairs(prompts, videos)
        provenance = dict(self.provenance)
        scores = [self._score(prompt, video, provenance) for prompt, video in zip(prompts, videos, strict=True)]
        self._alarm.see(scores)
        return scores

    def _score(self, prompt: str, video: Video, provenance: Mapping[str, str]) -> Score:
        text = fill_slots(self.template, {"{text_prompt}": prompt})
        values: list[float] = []
        try:
            refuse_special_texts(prompt, self.model.special_texts())
            size = resized_size(video.height, video.width, _PIXELS, _PIXELS)
            indices = range(0, len(video), self.frame_stride)
            for start in range(0, len(indices), self.batch_size):
                images = _images(video, indices[start : start + self.batch_size], size)
                values += self.model.outputs(text, images=images)[:, 0, 0].tolist()
        except (ValueError, OSError) as error:
            return Score.missing(f"the video or its caption cannot be shown: {error}", provenance=provenance)
        if not all(map(math.isfinite, values)):
            return Score.missing("the model's score of a frame is not finite", provenance=provenance)
        parts = {
            "frames": float(len(values)),
            "mean": math.fsum(values) / len(values),
            "lowest": min(values),
            "highest": max(values),
        }
        return Score(mean_of_best(values, self.top_ratio), parts, provenance=provenance)


def _images(video: Video, indices: Sequence[int], size: tuple[int, int]) -> list[Any]:
    """The frames as PIL images of this height and width."""
    from PIL import Image

    return [
        Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        for pixels in video.frames(indices).pixels
    ]
