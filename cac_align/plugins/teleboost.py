"""TeleBoost (Tele-AI, on verl; Wan 2.1 and 2.2): one synchronous call per step with the whole batch.

    trainer.use_rm=false
    reward.custom_reward_function.path=pkg://cac_align.plugins.teleboost
    reward.custom_reward_function.name=step_rewards
    +reward.custom_reward_function.reward_kwargs.reward=http://127.0.0.1:8000

Every option of ``HostOptions`` is a key beside ``reward``. The driver calls us with all videos of the
step, so that groups are whole; TeleBoost's ``uid`` says which they are.

    actor_rollout_ref.pixel_weight.enable=true
    +reward.custom_reward_function.reward_kwargs.weight_maps=true

With ``weight_maps`` CaC's windows and boxes take the place of ViPO's saliency maps: the advantage of
a video is multiplied by a map of mean 1 over its latent positions (``weight_maps``). Try it only with
a judge whose localisation was measured (``cac-align evaluate reward``): boxes of an untuned judge are
close to chance, and the maps then add noise.

Read at Tele-AI/TeleBoost d4279ac (``teleboost/reward/execution/custom.py``,
``teleboost/training/core/trainer.py``, ``teleboost/programs/wan/vipo.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cac_align.plugins.common.host import HostOptions, HostReward, host_reward
from cac_align.plugins.common.pixels import open_pixels
from cac_align.rewards.reward import Score

MAPS = "pixel_weight_maps"
"""The key under which TeleBoost's ViPO trainer reads (B, t, h, w) weights."""


def step_rewards(data: Any, *, weight_maps: bool = False, contrast: float = 8.0, **options: Any) -> dict[str, Any]:
    """{"rewards": (B,) float32 tensor} of a step's ``DataProto``.

    data: ``batch["video_frames"]`` (B, C, T, H, W) in [0, 1], ``non_tensor_batch["caption"]``, and
    ``"uid"`` where the trainer has grouped the rows. weight_maps: write our maps over those of the
    rollout. contrast: of the maps, see ``weight_maps``.

    Raises ``ValueError`` for unknown options, and for weight_maps where TeleBoost would not read
    them; ``MissingScoreError`` as the policy says.
    """
    import torch

    ours = host_reward(HostOptions.read(options, layout="CTHW"), "teleboost")
    prompts = [str(caption) for caption in data.non_tensor_batch["caption"]]
    frames = data.batch["video_frames"]
    theirs = data.batch.get(MAPS, None)
    if weight_maps and theirs is None:
        raise ValueError(
            f"weight_maps: the batch has no {MAPS}, so that no advantage would be weighed; "
            "set actor_rollout_ref.pixel_weight.enable=true"
        )
    uid = data.non_tensor_batch.get("uid")
    scores = ours.scores(prompts, list(frames))
    # One process, the driver, holds the videos of all ranks.
    groups = None if uid is None else [str(each) for each in uid]
    values = ours.apply_policy(prompts, scores, groups=groups, over_ranks=False)
    if weight_maps:
        data.batch[MAPS] = _maps(ours, scores, frames, theirs, contrast)
    return {"rewards": torch.tensor(values, dtype=torch.float32)}


def _maps(ours: HostReward, scores: Sequence[Score], frames: Any, theirs: Any, contrast: float) -> Any:
    """Our maps, in the shape, kind and place of TeleBoost's own. Raises ``ValueError`` for a latent
    grid that is not Wan's.
    """
    import torch

    from cac_align.generation.latent_masks import LatentGrid
    from cac_align.generation.weight_maps import weight_maps

    num_frames, height, width = (int(size) for size in frames.shape[2:])
    t, h, _ = (int(size) for size in theirs.shape[1:])
    grid = LatentGrid(num_frames, height, width, (num_frames - 1) // max(t - 1, 1), height // h)
    if grid.shape != tuple(theirs.shape[1:]):
        raise ValueError(f"{MAPS} have latent shape {tuple(theirs.shape[1:])}; of Wan's videos it is {grid.shape}")
    videos = [open_pixels(video, ours.options.fps, "CTHW", "teleboost") for video in frames]
    maps = weight_maps([score.evidence for score in scores], videos, grid, contrast=contrast)
    return torch.from_numpy(maps).to(theirs)
