"""TeleBoost's own loader of a reward function, with verl's own ``DataProto``."""

import sys

import numpy as np
import torch
from tensordict import TensorDict
from verl import DataProto  # pyright: ignore[reportMissingImports]

from tests.upstream.reward_contracts import tell, videos

url, home = sys.argv[1:]
frames = videos(240, 90).permute(0, 2, 1, 3, 4)
batch = TensorDict({"video_frames": frames, "pixel_weight_maps": torch.ones(2, 5, 4, 6)}, batch_size=2)
other = {"caption": np.array(["a", "a"], dtype=object), "uid": np.array(["x", "x"], dtype=object)}
data = DataProto(batch=batch, non_tensor_batch=other)
sys.path.insert(0, home)
from teleboost.reward.execution.custom import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    load_custom_reward_fn,
    normalize_custom_reward_output,
)

function = {"path": "pkg://cac_align.plugins.teleboost", "name": "step_rewards"}
function["reward_kwargs"] = {"reward": url, "weight_maps": True}  # pyright: ignore[reportArgumentType]
found = load_custom_reward_fn({"reward": {"custom_reward_function": function}})(data)
joined = data.union(normalize_custom_reward_output(found, data))
maps = joined.batch["pixel_weight_maps"]
tell(
    rewards=joined.batch["rewards"].tolist(),
    means=maps.mean((1, 2, 3)).tolist(),
    largest=[float(one.max() / one.min()) for one in maps],
)
