"""Pref-GRPO (CodeGoat24, Wan 2.1 and 2.2): our reward in place of its ``videoalign`` reward.

    CAC_ALIGN_REWARD=http://127.0.0.1:8000 torchrun … -m cac_align.plugins.pref_grpo \\
        fastvideo/train_wan21.py … --use_group --reward_spec videoalign:1.0

Pref-GRPO has a fixed list of reward names. For ``videoalign`` it imports the class
``VideoVLMRewardInference`` when its trainer starts, builds it with a fixed checkpoint path, and
trains on "Overall". This launcher puts our class where that import looks, and runs the unmodified
script; options come from the environment (``environment_options``). The checkpoint is not read.

One call holds a rank's videos of a step, files of 16 frames per second. With ``--use_group`` those
are whole groups, which the policy "neutral" needs.

Read at CodeGoat24/Pref-GRPO 3e787f6 (``fastvideo/rewards/dispatcher.py``, ``fastvideo/train_wan21.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from cac_align.plugins.common.host import HostOptions, environment_options, host_reward
from cac_align.plugins.videoalign import run_script


class StepReward:
    """What Pref-GRPO builds for its reward ``videoalign``; every argument of it is ignored."""

    def __init__(self, load_from_pretrained: str, device: Any = None, dtype: Any = None) -> None:
        del load_from_pretrained, device, dtype  # the reward that the options name says which weights, where and how
        self.host_reward = host_reward(HostOptions.read(environment_options()), "pref_grpo")

    def reward(
        self, video_paths: Sequence[str], prompts: Sequence[str], use_norm: bool = True
    ) -> list[dict[str, float]]:
        """One {"VQ", "MQ", "TA", "Overall"} per file, all of them the whole reward.

        Raises ``MissingScoreError`` as the policy says, which ends the run.
        """
        del use_norm  # the recipe says how scores are normalised
        values = self.host_reward.values(list(prompts), [str(path) for path in video_paths], over_ranks=False)
        return [dict.fromkeys(("VQ", "MQ", "TA", "Overall"), value) for value in values]


def main(arguments: Sequence[str]) -> None:
    """Put our class where Pref-GRPO imports VideoAlign's from, and run the script with its arguments.

    Raises ``SystemExit`` when no script is named, or its arguments do not ask for ``videoalign``.
    """
    if not arguments:
        raise SystemExit("usage: python -m cac_align.plugins.pref_grpo fastvideo/train_wan21.py …")
    if not any("videoalign" in argument for argument in arguments[1:]):
        raise SystemExit("the script is not asked for our reward: add --reward_spec videoalign:1.0")
    run_script(StepReward, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
