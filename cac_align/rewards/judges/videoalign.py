"""VideoAlign: visual quality, motion quality and text alignment by one forward pass, as a reward.

prompt, frames → Qwen2-VL, upstream's text with three special tokens → VQ, MQ, TA → (x − mean) / std each
    → their sum

Everything that decides the numbers (frames per second, pixels, LoRA, means and deviations) is read from the
checkpoint's model_config.json. Values have no bounds, and negative ones are ordinary.

Source: VideoAlign (arXiv 2501.13918), weights KwaiVGI/VideoReward, repository KwaiVGI/VideoAlign (MIT) at 219ab9d.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

VIDEOALIGN_AXES = ("VQ", "MQ", "TA")
_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
_PROMPT = UpstreamPrompt(
    "VideoAlign's question", "KwaiVGI/VideoAlign", "prompt_template.py", "fdb6309bac61", ("{text_prompt}",)
)
_LEAST_PIXELS = 128 * 28 * 28
_LEAST_FRAMES, _MOST_FRAMES = 4, 768


@dataclass(frozen=True)
class VideoAlignConfig:
    """What a checkpoint's model_config.json says that decides its scores."""

    # Frames per second that are shown; or, where given, how many frames.
    fps: float
    num_frames: float | None
    # Limit of pixels per frame.
    max_frame_pixels: int
    # The model it was made from, as its makers named it.
    base: str
    lora_scale: float
    # (mean, standard deviation) by axis; empty: scores are not normalised.
    norms: Mapping[str, tuple[float, float]]


def read_videoalign_config(folder: Path) -> VideoAlignConfig:
    """The settings in ``folder/model_config.json``.

    Raises ``ValueError`` when it cannot be read, or is of a judge that is asked in another way.
    """
    path = folder / "model_config.json"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        data, model, lora = row["data_config"], row["model_config"], row["peft_lora_config"]
        asked = {
            "data_config.prompt_template_type": (data["prompt_template_type"], "detailed_special"),
            "data_config.sample_type": (data["sample_type"], "uniform"),
            "data_config.eval_dim": (list(data["eval_dim"]), list(VIDEOALIGN_AXES)),
            "model_config.output_dim": (model["output_dim"], 3),
            "model_config.use_special_tokens": (model["use_special_tokens"], True),
        }
        norms = row.get("inference_config") or {}
        scale = float(lora["lora_alpha"]) / (
            math.sqrt(lora["lora_r"]) if lora.get("use_rslora") else float(lora["lora_r"])
        )
        config = VideoAlignConfig(
            fps=float(data["fps"]),
            num_frames=None if data["num_frames"] is None else float(data["num_frames"]),
            max_frame_pixels=int(data["max_frame_pixels"]),
            base=str(model["model_name_or_path"]),
            lora_scale=scale,
            norms={axis: (float(norms[f"{axis}_mean"]), float(norms[f"{axis}_std"])) for axis in VIDEOALIGN_AXES}
            if norms
            else {},
        )
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(
            f"{path}: is no VideoAlign configuration ({type(error).__name__}: {error}); name the folder of "
            "KwaiVGI/VideoReward as model"
        ) from error
    for key, (found, expected) in asked.items():
        if found != expected:
            raise ValueError(f"{path}: {key} is {found!r}, and only {expected!r} is known here")
    if config.fps <= 0 or any(not std > 0 for _, std in config.norms.values()):
        raise ValueError(f"{path}: fps and standard deviations must be above 0")
    return config


def checkpoint_weights(folder: Path) -> Path:
    """``model.pth`` of the latest checkpoint in the folder. Raises ``ValueError`` when there is none."""
    steps = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    if not steps:
        raise ValueError(f"{folder}: no checkpoint-<step> in it; name the folder of KwaiVGI/VideoReward as model")
    latest = max(steps, key=lambda path: int(path.name.rpartition("-")[2]))
    if not (latest / "model.pth").is_file():
        raise ValueError(f"{latest}: no model.pth in it; checkpoints that hold the LoRA alone are not read")
    return latest / "model.pth"


def videoalign_indices(num_frames: int, source_fps: float, config: VideoAlignConfig) -> tuple[int, ...]:
    """Upstream's source indices: an even number at ``linspace(0, N − 1)`` rounded. Raises ``ValueError`` for one
    frame.
    """
    most = min(_MOST_FRAMES, num_frames) // 2 * 2
    wanted = min(max(num_frames / source_fps * config.fps, _LEAST_FRAMES), most)
    if config.num_frames is not None:
        wanted = min(config.num_frames, most)
    count = round(wanted / 2) * 2
    if count < 2:
        raise ValueError(f"VideoAlign needs at least 2 frames, received {num_frames}")
    return tuple(int(value) for value in np.linspace(0, num_frames - 1, count).round())


class VideoAlign:
    """VideoAlign here, a Reward without bounds.

    folder: of the published checkpoint. base: folder or hub id of Qwen2-VL-2B-Instruct; None: the one that
    the checkpoint names. axes: whose sum is the value. prompt_file: your copy of upstream's
    prompt_template.py. Raises ``ValueError`` when one of them is not usable.
    """

    name = "videoalign"
    bounds = None

    def __init__(
        self,
        folder: str | Path,
        *,
        prompt_file: str | Path | None,
        base: str | None = None,
        axes: Sequence[str] = VIDEOALIGN_AXES,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        if not axes or any(axis not in VIDEOALIGN_AXES for axis in axes) or len(set(axes)) != len(axes):
            raise ValueError(f"axes must be some of {', '.join(VIDEOALIGN_AXES)}, each once; received {list(axes)}")
        self.axes = tuple(axis for axis in VIDEOALIGN_AXES if axis in axes)
        self.config = read_videoalign_config(Path(folder))
        self.template, self._prompt_entry = read_upstream_prompt((_PROMPT,), prompt_file)
        checkpoint = HeadCheckpoint(
            checkpoint_weights(Path(folder)), base or self.config.base, _TOKENS, self.config.lora_scale, device, dtype
        )
        checkpoint.check()
        self.model = RewardHeadModel(checkpoint)
        self._alarm = SamenessAlarm(self.name)

    @property
    def provenance(self) -> Mapping[str, str]:
        shown, norms = self.config, self.config.norms
        count = f"{shown.fps:g} fps" if shown.num_frames is None else f"{shown.num_frames:g} frames"
        return {
            "reward": f"VideoAlign, {' + '.join(self.axes)}",
            "prompt": self._prompt_entry,
            "frames": f"{count}, even, uniform, at most {shown.max_frame_pixels} pixels each",
            "norms": ", ".join(f"{axis} {norms[axis][0]!r} {norms[axis][1]!r}" for axis in norms) or "none",
        } | model_entries(self.model.provenance)

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order; parts ``VQ``, ``MQ``, ``TA`` and their ``raw/…``. A failure affects its own
        video only.
        """
        prompts, videos = as_pairs(prompts, videos)
        provenance = dict(self.provenance)
        scores = [self._score(prompt, video, provenance) for prompt, video in zip(prompts, videos, strict=True)]
        self._alarm.see(scores)
        return scores

    def _score(self, prompt: str, video: Video, provenance: Mapping[str, str]) -> Score:
        try:
            refuse_special_texts(prompt, self.model.special_texts())
            text = fill_slots(self.template, {"{text_prompt}": prompt})
            outputs = self.model.outputs(text, video=self._pixels(video))[0]
        except (ValueError, OSError) as error:
            return Score.missing(f"the video or its caption cannot be shown: {error}", provenance=provenance)
        raw = {axis: float(outputs[number, number]) for number, axis in enumerate(VIDEOALIGN_AXES)}
        norms = self.config.norms
        found = {axis: (raw[axis] - norms[axis][0]) / norms[axis][1] if norms else raw[axis] for axis in raw}
        value = math.fsum(found[axis] for axis in self.axes)
        if not math.isfinite(value):
            return Score.missing(f"the model's scores are {found}", provenance=provenance)
        return Score(value, found | {f"raw/{axis}": score for axis, score in raw.items()}, provenance=provenance)

    def _pixels(self, video: Video) -> Any:
        """The frames as upstream's torchvision 0.18 resizes them: (T, 3, H, W), whole values 0 to 255."""
        import torch

        frames = video.frames(videoalign_indices(len(video), video.fps, self.config))
        size = resized_size(video.height, video.width, _LEAST_PIXELS, self.config.max_frame_pixels)
        pixels = torch.from_numpy(np.ascontiguousarray(frames.pixels)).permute(0, 3, 1, 2).float()
        if size == (video.height, video.width):
            return pixels
        return torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)
