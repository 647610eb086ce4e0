"""VideoAlign-shaped: the class that DanceGRPO and other code import as ``VideoVLMRewardInference``, with our scores in its keys.

    from cac_align.plugins.videoalign import VideoVLMRewardInference          (was: fastvideo.models.videoalign.inference)

    VQ = CaC, MQ = TA = UnifiedReward, Overall = the whole reward (their mean, not VideoAlign's sum VQ + MQ + TA)

VQ and MQ with equal coefficients are therefore the paper's mean. ``use_norm=True`` gives normalised values, False raw ones.

DanceGRPO's trainer catches every ``Exception`` around ``reward`` and goes on with VQ = MQ = -1.0, a score that nobody gave and
the worst of its group. So whatever stops a call (the policy, its budget, a dead service, wrong use) leaves as ``RunStopped``,
which is no ``Exception``: the run ends with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cac_align.plugins.failure import Unscored
from cac_align.plugins.host import Wiring, hosted


class RunStopped(BaseException):
    """``reward`` has no scores to give. Not an ``Exception``, so that the host cannot take a number of its own for it."""


class VideoVLMRewardInference:
    """load_from_pretrained: here a recipe file, "module:Name" or our service's URL; None for the shipped miniature.

    Further keywords are options of ``Wiring``; ``fps`` (16) is the videos' true rate, whatever their files say.
    """

    def __init__(
        self,
        load_from_pretrained: str | None = None,
        load_from_pretrained_step: int = -1,
        device: Any = "cpu",
        dtype: Any = None,
        **options: Any,
    ) -> None:
        del load_from_pretrained_step, device, dtype  # the recipe says which weights, where and how
        self.hosted = hosted(Wiring.read({"reward": load_from_pretrained, **options}), "videoalign")

    def reward(
        self,
        video_paths: Sequence[str],
        prompts: Sequence[str],
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
        use_norm: bool = True,
    ) -> list[dict[str, float]]:
        """One {"VQ", "MQ", "TA", "Overall"} per file. ``fps``, ``num_frames`` and ``max_pixels`` are VideoAlign's own sampling; ours
        is the recipe's, and they are ignored. Raises ``RunStopped`` for every failure, with its cause."""
        del fps, num_frames, max_pixels
        try:
            return self._rows(video_paths, prompts, use_norm)
        except Exception as error:
            raise RunStopped(f"{type(error).__name__}: {error}") from error

    def _rows(self, video_paths: Sequence[str], prompts: Sequence[str], use_norm: bool) -> list[dict[str, float]]:
        scores = self.hosted.scores(list(prompts), [str(path) for path in video_paths])
        overall = self.hosted.values(list(prompts), scores)
        rows = []
        for score, value in zip(scores, overall, strict=True):
            prefix = "normalised/" if use_norm else ""
            if not score.scored:  # "neutral": the same value under every key says nothing about any of them
                rows.append({"VQ": value, "MQ": value, "TA": value, "Overall": value})
                continue
            try:
                cac, unified = score.parts[f"{prefix}cac"], score.parts[f"{prefix}unified"]
            except KeyError as error:
                raise Unscored(
                    f"reward {self.hosted.reward.name!r} has no part {error}; VQ and MQ need components cac and unified"
                ) from error
            rows.append({"VQ": cac, "MQ": unified, "TA": unified, "Overall": value})
        return rows
