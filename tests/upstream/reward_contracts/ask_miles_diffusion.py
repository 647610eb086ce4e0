"""miles_diffusion's own dispatch (``batched_async_rm``) with its own ``Sample`` and command line."""

import asyncio
import sys
from argparse import Namespace

import torch

from tests.upstream.reward_contracts import tell, videos

url, home = sys.argv[1:]
sys.path.insert(0, home)
from miles.rollout.rm_hub import batched_async_rm  # noqa: E402 # pyright: ignore[reportMissingImports]
from miles.utils.types import Sample  # noqa: E402 # pyright: ignore[reportMissingImports]

path = "cac_align.plugins.miles_diffusion.microgroup_rewards"
args = Namespace(custom_rm_path=path, rm_url=url, n_samples_per_prompt=2, rm_type=None)


def sample(video, trained=True):
    pixels = video.permute(1, 0, 2, 3)  # (C, T, H, W)
    return Sample(prompt="a", generated_output=pixels, rollout_log_probs=torch.zeros(3) if trained else None)


group = [sample(video) for video in videos(240, 90)]
evaluated = [sample(videos(240)[0], trained=False)]
try:
    asyncio.run(batched_async_rm(args, [sample(videos(240)[0][:1])] * 2))
    image = ""
except ValueError as error:
    image = str(error)
tell(
    group=asyncio.run(batched_async_rm(args, group)),
    evaluated=asyncio.run(batched_async_rm(args, evaluated)),
    image=image,
)
