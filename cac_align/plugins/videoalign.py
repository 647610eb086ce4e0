"""VideoAlign's class ``VideoVLMRewardInference``, which DanceGRPO and others import, with our
scores in its keys.

    from cac_align.plugins.videoalign import VideoVLMRewardInference

This line replaces the import from ``fastvideo.models.videoalign.inference``.

    VQ = CaC, MQ = TA = UnifiedReward, Overall = the whole reward (their mean, not VideoAlign's sum VQ + MQ + TA)

VQ and MQ with equal coefficients are therefore the paper's mean. ``use_norm=True`` gives normalised
values, False raw ones.

DanceGRPO's trainer catches every ``Exception`` around ``reward`` and goes on with VQ = MQ = -1.0, a
score that no judge gave and the worst of its group. Therefore everything that stops a call (the
policy, a dead service, wrong use) is raised as ``RunStopped``, which is not an ``Exception``, so
that the run ends with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cac_align.plugins.common.host import HostOptions, host_reward
from cac_align.plugins.common.missing_scores import MissingScoreError, RunStopped


class VideoVLMRewardInference:
    """VideoAlign's interface to our reward.

    load_from_pretrained: a recipe file, "module:Name" or our service's URL; None for the shipped
    miniature. Further keywords are options of ``HostOptions``; ``fps`` (16) is the videos' true
    rate, whatever their files say.
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
        given = {"reward": load_from_pretrained, **options}
        # DanceGRPO asks for one video per call, which holds no group.
        self.host_reward = host_reward(HostOptions.read(given, on_missing="raise"), "videoalign")

    def reward(
        self,
        video_paths: Sequence[str],
        prompts: Sequence[str],
        fps: float | None = None,
        num_frames: int | None = None,
        max_pixels: int | None = None,
        use_norm: bool = True,
    ) -> list[dict[str, float]]:
        """One {"VQ", "MQ", "TA", "Overall"} per file.

        ``fps``, ``num_frames`` and ``max_pixels`` are VideoAlign's sampling and are ignored: the
        recipe decides how videos are sampled. Raises ``RunStopped`` for every failure, with its
        cause.
        """
        del fps, num_frames, max_pixels
        try:
            return self._rows(video_paths, prompts, use_norm)
        except Exception as error:
            raise RunStopped(f"{type(error).__name__}: {error}") from error

    def _rows(self, video_paths: Sequence[str], prompts: Sequence[str], use_norm: bool) -> list[dict[str, float]]:
        scores = self.host_reward.scores(list(prompts), [str(path) for path in video_paths])
        overall = self.host_reward.apply_policy(list(prompts), scores)
        rows = []
        for score, value in zip(scores, overall, strict=True):
            prefix = "normalised/" if use_norm else ""
            if not score.scored:  # policy "neutral": the same value under every key
                rows.append({"VQ": value, "MQ": value, "TA": value, "Overall": value})
                continue
            try:
                cac, unified = score.parts[f"{prefix}cac"], score.parts[f"{prefix}unified"]
            except KeyError as error:
                raise MissingScoreError(
                    f"reward {self.host_reward.reward.name!r} has no part {error}; "
                    "VQ and MQ need components cac and unified"
                ) from error
            rows.append({"VQ": cac, "MQ": unified, "TA": unified, "Overall": value})
        return rows
