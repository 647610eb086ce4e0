"""verl-omni: ``compute_score`` by path, one video per call, every option of ``HostOptions`` as a
key beside it.

    +reward.reward_functions.cac.path=pkg://cac_align.plugins.verl_omni
    +reward.reward_functions.cac.name=compute_score
    +reward.reward_functions.cac.required=true
    +reward.reward_functions.cac.reward=http://127.0.0.1:8000

Every part of the score becomes a metric ``reward/cac/<part>``. A call holds one video, so that the
policy "neutral", which needs a group, is not offered.

Without ``required`` verl-omni catches every ``Exception`` and trains on 0.0, a score that no judge
gave. Therefore everything that stops a call is raised as ``RunStopped``, which is not an
``Exception``.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from cac_align.plugins.common.host import HostOptions, host_reward
from cac_align.plugins.common.missing_scores import RunStopped


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
    reasks: int = 1,
    ledger: str | None = None,
    timeout_s: float = 600.0,
    retries: int = 15,
    backoff_s: float = 0.25,
    token_env: str | None = None,
    send: str = "frames",
    quality: int = 90,
) -> dict[str, float]:
    """{"score": value, part: value, …} of one video.

    solution_image: uint8 (T, C, H, W) or (C, T, H, W), a batch axis of one allowed; where both T
    and C are 3, ``layout`` is needed. The prompt is extra_info["prompt"] where there is one,
    otherwise ground_truth.

    Raises ``RunStopped`` when there is no score, for pixels that are not uint8, and for wrong
    options, with the cause.
    """
    try:
        if not str(solution_image.dtype).endswith("uint8"):
            raise ValueError(f"verl-omni hands over uint8 pixels in [0, 255], received {solution_image.dtype}")
        options = {"reward": reward, "component": component, "fps": float(fps), "layout": layout, "ledger": ledger}
        options |= {"reasks": reasks, "timeout_s": float(timeout_s), "retries": retries, "backoff_s": float(backoff_s)}
        options |= {"token_env": token_env, "send": send, "quality": quality, "on_missing": "raise"}
        prompt = str((extra_info or {}).get("prompt") or ground_truth)
        # In threads, because reaching and asking the reward block, and the event loop has to go on with other samples.
        ours = await asyncio.to_thread(host_reward, HostOptions.read(options), "verl-omni")
        scores = await asyncio.to_thread(ours.scores, [prompt], [solution_image], data_source=data_source)
        value = ours.apply_policy([prompt], scores, over_ranks=False)[0]
    except Exception as error:
        raise RunStopped(f"{type(error).__name__}: {error}") from error
    return {"score": value, **{name: part for name, part in scores[0].parts.items() if math.isfinite(part)}}
