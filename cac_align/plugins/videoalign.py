"""VideoAlign's class ``VideoVLMRewardInference``, which DanceGRPO and others import, with our
reward in its keys.

    CAC_ALIGN_REWARD=http://127.0.0.1:8000 torchrun … -m cac_align.plugins.videoalign \\
        fastvideo/train_grpo_hunyuan.py … --use_videoalign

The script stays as it is: this launcher puts our class where the script imports VideoAlign's from.
In a script of one's own the import is replaced:

    from cac_align.plugins.videoalign import VideoVLMRewardInference

The checkpoint folder that the script passes ("./videoalign_ckpt") is not read; the reward comes from
the environment.

    VQ = MQ = TA = Overall = the whole reward

Which keys count differs between scripts: DanceGRPO's SkyReels script reads MQ only, its Hunyuan
script adds VQ and MQ with ``--vq_coef 1.0 --mq_coef 0.0``. With the same number under every key,
each of them trains on the whole reward; the components stand in the ledger.

DanceGRPO's trainer catches every ``Exception`` around ``reward`` and goes on with VQ = MQ = -1.0, a
score that no judge gave and the worst of its group. Therefore everything that stops a call (the
policy, a dead service, wrong use) is raised as ``RunStopped``, which is not an ``Exception``, so
that the run ends with the reason.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cac_align.plugins.common.host import HostOptions, environment_options, host_reward
from cac_align.plugins.common.missing_scores import RunStopped

REPLACED_MODULE = "fastvideo.models.videoalign.inference"
"""The module that DanceGRPO and its descendants import VideoAlign's class from."""


class VideoVLMRewardInference:
    """VideoAlign's interface to our reward.

    load_from_pretrained: our service's URL, a recipe file or "module:Name". Anything else is taken
    for the path of a VideoAlign checkpoint, which is not read: the option ``reward`` then names the
    reward, here or in the environment. Further keywords are options of ``HostOptions``, which go
    before those of the environment; ``fps`` (16) is the videos' true rate, whatever their files say.

    Raises ``ValueError`` for wrong options, and where no reward is named.
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
        given = environment_options() | options
        if load_from_pretrained is not None and _names_a_reward(load_from_pretrained):
            given["reward"] = load_from_pretrained
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
        """One {"VQ", "MQ", "TA", "Overall"} per file, all of them the whole reward.

        ``fps``, ``num_frames`` and ``max_pixels`` are VideoAlign's sampling, ``use_norm`` its
        statistics; they are ignored: the recipe decides how videos are sampled and how scores are
        normalised. Raises ``RunStopped`` for every failure, with its cause.
        """
        del fps, num_frames, max_pixels, use_norm
        try:
            values = self.host_reward.values(list(prompts), [str(path) for path in video_paths])
        except Exception as error:
            raise RunStopped(f"{type(error).__name__}: {error}") from error
        return [dict.fromkeys(("VQ", "MQ", "TA", "Overall"), value) for value in values]


def _names_a_reward(text: str) -> bool:
    """Whether this is a URL, a recipe or "module:Name", and not the path of a checkpoint folder."""
    return ("/" not in text.partition(":")[0] and ":" in text) or text.endswith((".yaml", ".yml"))


def run_script(inference: type, arguments: Sequence[str]) -> None:
    """Put a class where scripts import VideoAlign's from, and run the script that the arguments begin with."""
    module = ModuleType(REPLACED_MODULE)
    module.__dict__["VideoVLMRewardInference"] = inference
    sys.modules[REPLACED_MODULE] = module
    script = Path(arguments[0])
    sys.argv = list(arguments)
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")


def main(arguments: Sequence[str]) -> None:
    """Run a script of DanceGRPO with our reward.

    Raises ``SystemExit`` when no script is named, or its arguments do not ask for VideoAlign.
    """
    if not arguments:
        raise SystemExit("usage: python -m cac_align.plugins.videoalign fastvideo/train_grpo_hunyuan.py …")
    if "--use_videoalign" not in arguments:
        raise SystemExit("the script is not asked for our reward: add --use_videoalign")
    run_script(VideoVLMRewardInference, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
