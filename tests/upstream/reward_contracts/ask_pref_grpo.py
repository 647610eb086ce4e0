"""Pref-GRPO's ``RewardDispatcher`` and its advantages, started through our launcher as its training script is."""

import sys
import tempfile
from pathlib import Path

from tests.support.hosting import clip
from tests.upstream.reward_contracts import empty, tell

if __name__ == "__main__" and sys.argv[0] == __file__ and "--reward_spec=videoalign:1.0" not in sys.argv:
    import os

    from cac_align.plugins.pref_grpo import main

    url, home = sys.argv[1:]
    os.environ["CAC_ALIGN_REWARD"] = url
    sys.path.insert(0, home)
    main([__file__, "--reward_spec=videoalign:1.0"])
else:  # now as the script that the launcher runs
    # HPS, CLIP and their tokenizers, which its dispatcher imports for rewards that are not asked for here.
    for name in ("clint", "hpsv2", "hpsv2.src", "hpsv2.src.open_clip"):
        empty(name)
    from fastvideo.rewards.dispatcher import (  # pyright: ignore[reportMissingImports]
        RewardDispatcher,
        compute_weighted_advantages,
        parse_reward_spec,
    )

    from cac_align.core.encoding import write_mp4

    weights = parse_reward_spec(sys.argv[1].partition("=")[2])
    dispatcher = RewardDispatcher(args=None, device="cpu", reward_weights=weights, modality="video")
    with tempfile.TemporaryDirectory() as folder:
        inputs = dispatcher.build_reward_inputs()
        for index, level in enumerate((240, 90)):
            write_mp4(path := Path(folder) / f"wan21_0_{index}.mp4", clip(level), 16)
            inputs["videoalign"].append({"path": str(path), "prompt": "a"})
        rewards, details = dispatcher.compute_rewards(inputs)
    advantages, _ = compute_weighted_advantages(
        rewards, weights, gather_tensor=lambda tensor: tensor, use_group=True, num_generations=2
    )
    tell(rewards=rewards["videoalign"].tolist(), logged=details["videoalign_vq"], advantages=advantages.tolist())
