"""What every host adapter shares: one reward per process, videos from whatever the host holds, scores, and the failure policy.

host options → Wiring → reward (built once, cached) → Hosted(prompts, pixels) → scores → numbers by the policy, evidence in the ledger

Adapters only translate names. ``reward`` of a wiring is a recipe file, "module:Name", the URL of our service, or None (the shipped
miniature). Pixels are brought to uint8 on the device where they are and copied to the CPU at once, so that no host tensor is held.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from cac_align.core.video import Layout, Video
from cac_align.plugins.failure import Policy, Tally, numbers, optional
from cac_align.rewards.reward import Reward, Score, check_pairs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wiring:
    """Everything a host's config may say about our reward.

    reward: recipe file, "module:Name", "http://…" of our service, or None (the shipped miniature). component: "cac", "unified", or
    None for the whole. fps: true frames per second of the host's videos (Wan: 16). layout: where the axes leave two readings.
    on_missing, max_unscored_share, min_seen, group_size: see ``Policy``. ledger: JSONL file for evidence. For a service:
    timeout_s per call, token_env (environment variable that holds its token), send and quality as in ``RemoteReward``.
    """

    reward: str | None = None
    component: str | None = None
    fps: float = 16.0
    layout: Layout | None = None
    on_missing: Literal["raise", "neutral"] = "raise"
    max_unscored_share: float = 0.1
    min_seen: int = 32
    group_size: int | None = None
    ledger: str | None = None
    timeout_s: float = 600.0
    token_env: str | None = None
    send: Literal["frames", "file", "path"] = "frames"
    quality: int = 90

    @classmethod
    def read(cls, options: Mapping[str, Any], **defaults: Any) -> Wiring:
        """From a host's free-form options. Raises ``ValueError`` for an unknown one, naming the nearest."""
        known = [item.name for item in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown reward option {name!r}; did you mean {near!r}? Options: {', '.join(known)}")
        return cls(**{**defaults, **options})

    @property
    def policy(self) -> Policy:
        """Raises ``ValueError`` for one that cannot work."""
        return Policy(self.on_missing, self.max_unscored_share, self.min_seen, self.group_size)


class Hosted:
    """Our reward as one host sees it: pixels in; scores, or numbers by the wiring's policy, out. Thread-safe."""

    def __init__(self, reward: Reward, wiring: Wiring, host: str) -> None:
        self.wiring, self.policy, self.host, self.tally, self.ledger = wiring, wiring.policy, host, Tally(), None
        self.reward = reward
        if wiring.ledger is not None:
            from cac_align.rewards.ledger import Ledger

            self.ledger = Ledger(wiring.ledger)
            self.reward = self.ledger.wrap(reward)

    def scores(
        self,
        prompts: Sequence[str],
        videos: Sequence[Any],
        *,
        each: Sequence[Mapping[str, Any]] | None = None,
        **facts: Any,
    ) -> list[Score]:
        """One Score per video, in order; ``facts`` of the call (host step, …) and of ``each`` video (group, …) go to the ledger.

        videos: (T, C, H, W) or any other layout ``Video.open`` reads, tensors, arrays, PIL lists or file paths.
        Raises ``ValueError`` when the lengths differ or the reward as a whole cannot work.
        """
        return self._scored(prompts, videos, facts, each)[0]

    def numbers(self, prompts: Sequence[str], videos: Sequence[Any], **facts: Any) -> list[float]:
        """One finite float per video. Raises ``Unscored`` as the policy says; otherwise like ``scores``."""
        return self.values(prompts, *self._scored(prompts, videos, facts))

    def values(
        self, prompts: Sequence[str], scores: Sequence[Score], keys: Sequence[str | None] | None = None
    ) -> list[float]:
        """The policy applied to scores of one call."""
        sent = numbers(prompts, scores, self.policy, self.tally)
        for value, score, key in zip(sent, scores, keys or [None] * len(sent), strict=True):
            if not score.scored and self.ledger is not None and key is not None:
                self.ledger.annotate(key, host=self.host, unscored=True, policy=str(self.policy), sent=value)
        return sent

    def optional(self, prompts: Sequence[str], scores: Sequence[Score]) -> list[float | None]:
        """Scores of one call, None for the missing ones. Raises ``Unscored`` when the policy's budget is used up."""
        return optional(prompts, scores, self.policy, self.tally)

    def _scored(
        self,
        prompts: Sequence[str],
        videos: Sequence[Any],
        facts: Mapping[str, Any],
        each: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[list[Score], list[str | None]]:
        check_pairs(prompts, videos)
        if each is not None and len(each) != len(videos):
            raise ValueError(f"expected one set of facts per video, received {len(each)} for {len(videos)} videos")
        scores: list[Score | None] = [None] * len(videos)
        opened: dict[int, Video] = {}
        for index, pixels in enumerate(videos):
            try:
                opened[index] = open_pixels(pixels, self.wiring.fps, self.wiring.layout, f"{self.host} video {index}")
            except ValueError as error:
                scores[index] = Score.missing(f"{self.host} video {index}: {error}")
        if opened:
            fresh = self.reward([prompts[index] for index in opened], list(opened.values()))
            for index, score in zip(opened, fresh, strict=True):
                scores[index] = score
        keys: list[str | None] = [None] * len(videos)
        if self.ledger is not None and opened:
            told = {
                "host": self.host,
                "fps": self.wiring.fps,
                **facts,
            }  # a file may say another rate than it was judged at
            for index, video in opened.items():
                try:
                    keys[index] = self.reward.filed_under(prompts[index], video, scores[index])
                except ValueError as error:
                    log.warning("%s: what is known of it is not in the ledger: %s", video.name, error)
                    continue
                self.ledger.annotate(keys[index], **told, **(each[index] if each is not None else {}))
        return [score for score in scores if score is not None], keys


# ---- building, once per process ------------------------------------------------------------------------------------

_lock = threading.Lock()
_rewards: dict[tuple[Any, ...], Reward] = {}
_hosted: dict[tuple[Any, ...], Hosted] = {}


def hosted(wiring: Wiring, host: str) -> Hosted:
    """The process's one ``Hosted`` for this wiring: hosts build their rewards several times and call from many threads.

    Raises ``ValueError`` when the reward cannot be built, has no such component, or normalises within a prompt's group, which no
    host hands over whole.
    """
    with _lock:
        key = (os.getpid(), wiring, host)
        if key not in _hosted:
            _hosted[key] = Hosted(_built(wiring), wiring, host)
        return _hosted[key]


def _built(wiring: Wiring) -> Reward:
    if wiring.reward is not None and wiring.reward.startswith(("http://", "https://")):
        from cac_align.serving.client import RemoteReward

        token = os.environ.get(wiring.token_env) if wiring.token_env else None
        if wiring.token_env and not token:
            raise ValueError(f"token_env names {wiring.token_env}, which is not set in the environment")
        options = {"timeout_s": wiring.timeout_s, "send": wiring.send, "quality": wiring.quality}
        return RemoteReward(wiring.reward, wiring.component, token=token, **options)
    key = (os.getpid(), wiring.reward)
    if key not in _rewards:
        from cac_align.rewards.build import load_reward

        _rewards[key] = load_reward(wiring.reward)
    from cac_align.rewards.build import offered

    choices = offered(_rewards[key])
    name = wiring.component or next(iter(choices))
    if name not in choices:
        raise ValueError(f"reward {_rewards[key].name!r} has no component {name!r}; it offers {', '.join(choices)}")
    return choices[name]


# ---- pixels --------------------------------------------------------------------------------------------------------


def open_pixels(pixels: Any, fps: float, layout: Layout | None, name: str) -> Video:
    """A host's video as a Video at ``fps``; a leading batch axis of one is dropped. Raises ``ValueError`` as ``Video.open`` does."""
    if getattr(pixels, "ndim", 0) == 5 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if hasattr(pixels, "detach") and pixels.is_floating_point() and pixels.ndim == 4:
        channels = ["THWC", "TCHW", "CTHW"] if layout is None else [layout]
        axes = [order.index("C") for order in channels if pixels.shape[order.index("C")] == 3]
        if len(axes) == 1:  # else Video.open says what is wrong with the shape
            pixels, layout = _to_uint8(pixels, axes[0]), "THWC"
    return Video.open(pixels, fps=fps, layout=layout, name=None if isinstance(pixels, str) else name)


def _to_uint8(pixels: Any, channel_axis: int) -> Any:
    """A float tensor in [0, 1] as uint8 (T, H, W, 3) on the CPU, frame by frame on the tensor's own device: a quarter of the bytes
    cross the bus, and there is never a second float copy of the whole video."""
    import torch

    channels = pixels.detach().movedim(channel_axis, 0)  # (3, T, H, W)
    if channels.numel() == 0:
        raise ValueError(f"pixels are empty, shape {tuple(pixels.shape)}")
    low, high = (float(end) for end in torch.aminmax(channels))  # NaN comes through both
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("pixels hold NaN or infinite values; the generator diverged")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"float pixels must lie in [0, 1], received [{low:.3g}, {high:.3g}]; rescale, or pass uint8 for [0, 255]"
        )
    out = torch.empty((*channels.shape[1:], 3), dtype=torch.uint8)
    for index in range(len(out)):
        frame = channels[:, index].float().mul(255).round_().clamp_(0, 255).to(torch.uint8)
        out[index] = torch.stack(list(frame), dim=-1)
    return out
