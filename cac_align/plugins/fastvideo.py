"""FastVideo's PromptRL: our reward behind its reward protocol over HTTP.

    CAC_ALIGN_REWARD=http://127.0.0.1:8000 python -m cac_align.plugins.fastvideo --port 8100

    method: {_target_: fastvideo.train.methods.rl.promptrl.PromptRLMethod,
             reward: {endpoint_url: "http://127.0.0.1:8100", fps: 16}}

FastVideo's own service collects a group's uploads, answers repeated requests alike, and asks a judge
for the whole group; this module is such a judge, and starts that service around it, in FastVideo's
environment. Options come from the environment (``environment_options``). A group of one is an
evaluation. A failure is an HTTP error, which ends the step on every rank after FastVideo's retries;
its own VideoScore2 judge gives a whole group 3.0 where one answer cannot be read.

FastVideo's main branch has no way to add a reward: its DiffusionNFT accepts ``pickscore`` and
``clipscore`` only. PromptRL is pull request 1653, not merged when it was read.

Read at aryan5v/FastVideo 3127dc4 (the pull request: ``promptrl/rewards/service.py``, ``provider.py``)
and hao-ai-lab/FastVideo 2f3d407 (main).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cac_align.plugins.common.host import HostOptions, environment_options, host_reward


class CaCJudge:
    """A ``VideoJudge`` of FastVideo's reward service."""

    def __init__(self) -> None:
        """Raises ``ValueError`` for wrong options in the environment, and where no reward is named."""
        self.host_reward = host_reward(HostOptions.read(environment_options()), "fastvideo")

    def score_batch(self, videos: Sequence[bytes], prompts: Sequence[str], *, fps: int) -> list[dict[str, float]]:
        """One {"composite": score} per mp4 of a group.

        fps: what the trainer's config says. Raises ``ValueError`` where our option says another
        rate, and ``MissingScoreError`` as the policy says.
        """
        ours = self.host_reward
        if float(fps) != ours.options.fps:
            raise ValueError(
                f"method.reward.fps is {fps}, and the reward takes the videos for {ours.options.fps:g} frames per "
                f"second; set CAC_ALIGN_FPS={fps}"
            )
        with tempfile.TemporaryDirectory(prefix="cac_align_") as folder:
            paths = [Path(folder) / f"{index}.mp4" for index in range(len(videos))]
            for path, data in zip(paths, videos, strict=True):
                path.write_bytes(data)
            files = [str(path) for path in paths]
            # The service holds the videos of all ranks.
            values = ours.values(list(prompts), files, evaluation=len(files) == 1, over_ranks=False)
        return [{"composite": value} for value in values]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve FastVideo's reward protocol until stopped."""
    parser = argparse.ArgumentParser(
        prog="cac_align.plugins.fastvideo", description="FastVideo's reward service with our reward"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8100, help="port to listen on (%(default)s)")
    parser.add_argument(
        "--max-wait-s", type=float, default=600.0, help="seconds that an upload waits for its group (%(default)s)"
    )
    given = parser.parse_args(arguments)
    import uvicorn
    from fastvideo.train.methods.rl.promptrl.rewards.service import (  # pyright: ignore[reportMissingImports]
        create_reward_app,
    )

    uvicorn.run(create_reward_app(CaCJudge(), max_wait_sec=given.max_wait_s), host=given.host, port=given.port)


if __name__ == "__main__":
    main()
