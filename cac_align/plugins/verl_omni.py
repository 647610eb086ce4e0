"""verl-omni: ``compute_score`` by path, one video per call, every option of ``HostOptions`` as a
key beside it.

    +reward.reward_functions.cac.path=pkg://cac_align.plugins.verl_omni
    +reward.reward_functions.cac.name=compute_score
    +reward.reward_functions.cac.required=true          (otherwise verl-omni turns our error into a silent 0.0)
    +reward.reward_functions.cac.reward=http://127.0.0.1:8000

Every part of the score becomes a metric ``reward/cac/<part>``. A call holds one video, so that the
policy "neutral", which needs a group, is not offered.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from cac_align.plugins.host import HostOptions, host_reward


async def compute_score(
    data_source: str,
    solution_image: Any,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    reward: str | None = None,
    component: str | None = None,
    fps: float = 16.0,
    layout: str | None = None,
    max_unscored_share: float = 0.1,
    min_seen: int = 32,
    ledger: str | None = None,
    timeout_s: float = 600.0,
    token_env: str | None = None,
    send: str = "frames",
    quality: int = 90,
) -> dict[str, float]:
    """{"score": value, part: value, …} of one video.

    solution_image: uint8 (T, C, H, W) or (C, T, H, W), a batch axis of one allowed; where both T
    and C are 3, ``layout`` is needed. The prompt is extra_info["prompt"] where there is one,
    otherwise ground_truth.

    Raises ``MissingScoreError`` when there is no score, ``ValueError`` for pixels that are not
    uint8.
    """
    if not str(solution_image.dtype).endswith("uint8"):
        raise ValueError(f"verl-omni hands over uint8 pixels in [0, 255], received {solution_image.dtype}")
    options = {"reward": reward, "component": component, "fps": float(fps), "layout": layout, "ledger": ledger}
    options |= {"max_unscored_share": max_unscored_share, "min_seen": min_seen, "timeout_s": float(timeout_s)}
    options |= {"token_env": token_env, "send": send, "quality": quality}
    prompt = str((extra_info or {}).get("prompt") or ground_truth)
    ours = host_reward(HostOptions.read(options), "verl-omni")
    # In a thread, because the reward blocks and the event loop has to go on with other samples.
    scores = await asyncio.to_thread(ours.scores, [prompt], [solution_image], data_source=data_source)
    value = ours.apply_policy([prompt], scores)[0]
    return {"score": value, **{name: part for name, part in scores[0].parts.items() if math.isfinite(part)}}
