"""vbvr-rl's registry and the part of its trainer that submits rewards and waits for them."""

import os
import sys
from types import SimpleNamespace

import torch

from cac_align.plugins.flow_grpo import REWARD_NAMES
from cac_align.plugins.vbvr_rl import LatentReward
from tests.upstream.reward_contracts import empty, tell

url, home = sys.argv[1:]
os.environ["CAC_ALIGN_REWARD"] = url
sys.path.insert(0, home)
# Its own rewards need the EvalKit, EasyOCR and OpenCV.
for name in ("maze", "maze_line", "maze_tracker", "vbvr_rule", "vbvr_vlm"):
    empty(f"src.trainer.rewards.{name}")
from src.trainer.base_grpo_trainer import BaseGRPOTrainer  # noqa: E402 # pyright: ignore[reportMissingImports]
from src.trainer.rewards import build_reward, list_rewards, register_reward  # noqa: E402 # pyright: ignore[reportMissingImports]

for name in REWARD_NAMES:
    register_reward(name)(type(name, (LatentReward,), {"name": name}))


def wan_vae():
    """A small random Wan VAE: the real decoder that its ``decode_latents`` calls."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    torch.manual_seed(0)
    sizes = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "attn_scales": [], "patch_size": 2}
    return AutoencoderKLWan(**sizes, temperal_downsample=[True, True], in_channels=12, out_channels=12).eval()


from src.models.wan_i2v import WanI2VForTraining  # noqa: E402 # pyright: ignore[reportMissingImports]


class Model:
    """The three attributes that its ``WanI2VForTraining.decode_latents`` reads."""

    vae = wan_vae()
    decode_latents = WanI2VForTraining.decode_latents

    def _get_latent_stats(self, device, dtype):
        return torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)


cfg = SimpleNamespace(fps=16, grpo_offload_inference_models=False)
trainer = SimpleNamespace(model=Model(), cfg=cfg, tensor_parallel_enabled=False, device=torch.device("cpu"), rank=0)
trainer.reward_fn = build_reward("cac_unified", trainer, cfg)
latents = torch.randn(4, 16, 5, 4, 6)
latents[3] = torch.nan  # one rollout of the group diverged
submitted = [
    BaseGRPOTrainer._submit_reward(trainer, part, part, None, None, meta={"sample_prompt": ["a"] * len(part)})
    for part in latents.split(2)
]
rewards = torch.cat([BaseGRPOTrainer._resolve_reward(trainer, one) for one in submitted])
tell(
    names=sorted(set(list_rewards()) & set(REWARD_NAMES)),
    rewards=rewards.tolist(),
    needs_vae=trainer.reward_fn.requires_vae,
    shape=list(trainer.model.decode_latents(latents[:1]).shape),
)
