"""What every host adapter shares: one reward per process, videos from whatever the host holds, and
the ledger.

a host's options → HostOptions → host_reward (built once per process) → scores or numbers, evidence in the ledger

Adapters only translate names.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from cac_align.core.video import Layout, Video
from cac_align.plugins.common.missing_scores import (
    MissingScorePolicy,
    ScoreCount,
    evaluation_values,
    training_values,
    values_or_none,
)
from cac_align.plugins.common.pixels import open_pixels
from cac_align.plugins.common.ranks import Ranks
from cac_align.rewards.combine import bounds_of, compares_videos
from cac_align.rewards.reward import Reward, Score, check_pairs

if TYPE_CHECKING:
    from cac_align.rewards.cached import CachedCombination, CachedReward
    from cac_align.rewards.ledger import Ledger

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostOptions:
    """Everything that a host's config may say about our reward."""

    # "http://…" of our service, a recipe file, or "module:Name". It has to be stated: the shipped judge knows its own
    # small world only, so that no default is right for a real video model.
    reward: str | None = None
    # "cac", "unified", or None for the whole reward.
    component: str | None = None
    # True frames per second of the host's videos; 16 is Wan's. Hosts' files often state another rate.
    fps: float = 16.0
    # The order of a video's axes, needed only where the shape leaves two readings.
    layout: Layout | None = None
    # How often a video without a score is judged again before the policy below holds.
    reasks: int = 1
    # What to do about a missing score, see ``MissingScorePolicy``.
    on_missing: Literal["neutral", "raise"] = "neutral"
    on_missing_evaluation: Literal["leave_out", "raise"] = "leave_out"
    max_unscored_share: float = 0.02
    min_seen: int = 200
    group_size: int | None = None
    # JSONL file that keeps the scores and their evidence.
    ledger: str | None = None
    # For a service: seconds that one call may take; a rank waits as long for the others' scores.
    timeout_s: float = 600.0
    # For a service: how often a request is sent again, and the first pause in seconds before that, as in
    # ``RemoteReward``. The defaults bridge a restart of the service of about 60 s.
    retries: int = 15
    backoff_s: float = 0.25
    # For a service: the environment variable that holds its token (default: CAC_ALIGN_TOKEN, where that is set).
    token_env: str | None = None
    # For a service: how videos are sent, and the JPEG quality, as in ``RemoteReward``.
    send: Literal["frames", "file", "path"] = "frames"
    quality: int = 90

    @classmethod
    def read(cls, options: Mapping[str, Any], **defaults: Any) -> HostOptions:
        """The options in a host's config.

        Raises ``ValueError`` for an unknown one, naming the nearest.
        """
        known = [item.name for item in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown reward option {name!r}; did you mean {near!r}? Options: {', '.join(known)}")
        return cls(**{**defaults, **options})

    @property
    def policy(self) -> MissingScorePolicy:
        """Raises ``ValueError`` for a policy that cannot work."""
        return MissingScorePolicy(
            self.on_missing, self.max_unscored_share, self.min_seen, self.group_size, self.on_missing_evaluation
        )


def environment_options() -> dict[str, Any]:
    """The options in the environment, CAC_ALIGN_REWARD, CAC_ALIGN_LEDGER, …: for hosts whose config or script has no
    place for them.

    Raises ``ValueError`` for a value of the wrong kind.
    """
    given = {item.name: os.environ.get(f"CAC_ALIGN_{item.name.upper()}") for item in fields(HostOptions)}
    return typed_options({name: text for name, text in given.items() if text is not None})


def typed_options(texts: Mapping[str, str]) -> dict[str, Any]:
    """Options given as texts, as values of their kinds.

    Raises ``ValueError`` for a value of the wrong kind, naming it.
    """
    kinds = {item.name: type(item.default) for item in fields(HostOptions) if isinstance(item.default, (int, float))}
    kinds["group_size"] = int
    options: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            options[name] = kinds.get(name, str)(text)
        except ValueError:
            raise ValueError(f"option {name}: expected {kinds[name].__name__}, received {text!r}") from None
    return options


class HostReward:
    """Our reward as one host sees it: pixels in; scores, or numbers by the options' policy, out.

    Thread-safe.
    """

    def __init__(self, reward: Reward, options: HostOptions, host: str) -> None:
        self.options, self.policy, self.host = options, options.policy, host
        self.count, self.evaluation_count = ScoreCount(), ScoreCount()
        # Equal on all ranks; each rank may keep a ledger of its own.
        identity = hashlib.sha256(repr(replace(options, ledger=None)).encode()).hexdigest()[:16]
        self.ranks = Ranks(f"{host}/{identity}")
        self.reward = reward
        self.ledger: Ledger | None = None
        self._cached: CachedReward | CachedCombination | None = None
        self._compares = compares_videos(reward) is not None
        if options.ledger is not None:
            from cac_align.rewards.cached import cached
            from cac_align.rewards.ledger import Ledger

            self.ledger = Ledger(options.ledger)
            self.reward = self._cached = cached(reward, self.ledger)

    def scores(
        self,
        prompts: Sequence[str],
        videos: Sequence[Any],
        *,
        each: Sequence[Mapping[str, Any]] | None = None,
        **facts: Any,
    ) -> list[Score]:
        """One Score per video, in order.

        videos: (T, C, H, W), or whatever else ``Video.open`` reads: tensors, arrays, PIL lists,
        file paths. facts: what the ledger shall hold about all of them (the host's step, …). each:
        about one (its group, …). Raises ``ValueError`` when the lengths differ or the reward as a
        whole cannot work.
        """
        return self._scored(prompts, videos, facts, each)[0]

    def values(
        self,
        prompts: Sequence[str],
        videos: Sequence[Any],
        *,
        evaluation: bool = False,
        left_out: float | None = None,
        over_ranks: bool = True,
        **facts: Any,
    ) -> list[float]:
        """One float per video, by the policy for training, or with ``evaluation`` by that for evaluation.

        left_out: as in ``evaluation_values``. over_ranks: as in ``apply_policy``; an evaluation does
        not heed it. Raises ``MissingScoreError`` as the policy says; otherwise like ``scores``.
        """
        if not evaluation:
            call = self.ranks.begin_call()  # before judging, because calls end in any order
            scores, keys = self._scored(prompts, videos, facts)
            return self.apply_policy(prompts, scores, keys, call=call, over_ranks=over_ranks)
        scores, keys = self._scored(prompts, videos, {"evaluation": True, **facts})
        sent = evaluation_values(
            prompts, scores, self.policy, self.evaluation_count, left_out=left_out, ranks=self.ranks
        )
        self._note_substitutions(scores, keys, sent, self.policy.on_missing_evaluation)
        return sent

    def apply_policy(
        self,
        prompts: Sequence[str],
        scores: Sequence[Score],
        keys: Sequence[str | None] | None = None,
        *,
        groups: Sequence[str] | None = None,
        call: int | None = None,
        over_ranks: bool = True,
    ) -> list[float]:
        """One finite float per score of a call in training.

        keys: the scores' keys in the ledger, which notes substitutions. groups: which videos the
        host compares, equal prompts where it is None. call: the call's number on this rank; None
        where the host makes one call after another. over_ranks: False where this call holds the
        videos of all ranks.
        """
        sent = training_values(
            prompts,
            scores,
            self.policy,
            self.count,
            groups=groups,
            ranks=self.ranks if over_ranks else None,
            call=self.ranks.begin_call() if call is None else call,
            timeout_s=self.options.timeout_s,
            unscored_group=self._middle() if self._compares else None,
        )
        self._note_substitutions(scores, keys or [None] * len(sent), sent, str(self.policy))
        return sent

    def _note_substitutions(
        self, scores: Sequence[Score], keys: Sequence[str | None], sent: Sequence[float], policy: str
    ) -> None:
        """Write into the ledger what the host got in place of missing scores."""
        for value, score, key in zip(sent, scores, keys, strict=True):
            if not score.scored and self.ledger is not None and key is not None:
                number = value if math.isfinite(value) else None
                self.ledger.annotate(key, host=self.host, unscored=True, policy=policy, sent=number)

    def _middle(self) -> float:
        """The middle of the reward's range, around which a reward that compares puts every group."""
        low, high = bounds_of(self.reward) or (0.0, 0.0)  # z-scores lie around 0
        return (low + high) / 2

    def values_or_none(self, prompts: Sequence[str], scores: Sequence[Score]) -> list[float | None]:
        """One float per score of a call, None for a missing one.

        Raises ``MissingScoreError`` when too many scores are missing.
        """
        return values_or_none(prompts, scores, self.policy, self.count)

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
        scores: dict[int, Score] = {}
        opened: dict[int, Video] = {}
        for index, pixels in enumerate(videos):
            try:
                opened[index] = open_pixels(pixels, self.options.fps, self.options.layout, f"{self.host} video {index}")
            except ValueError as error:
                scores[index] = Score.missing(f"{self.host} video {index}: {error}")
        scores.update(self._judge(prompts, opened))
        keys: list[str | None] = [None] * len(videos)
        if self.ledger is not None and self._cached is not None:
            # The fps as well: a file may state another rate than the video was judged at.
            shared = {"host": self.host, "fps": self.options.fps, **facts}
            for index, video in opened.items():
                try:
                    key = keys[index] = self._cached.ledger_key(prompts[index], video, scores[index])
                except ValueError as error:
                    log.warning("%s: what the host says of it is not in the ledger: %s", video.name, error)
                    continue
                self.ledger.annotate(key, **shared, **(each[index] if each is not None else {}))
        return [scores[index] for index in range(len(videos))], keys

    def _judge(self, prompts: Sequence[str], videos: Mapping[int, Video]) -> dict[int, Score]:
        """The scores of these videos; those without one are judged again, ``reasks`` times. A reward that
        compares judges all of them again, because scores of two tournaments do not belong together.
        """
        scores: dict[int, Score] = {}
        left = list(videos)
        for attempt in range(self.options.reasks + 1):
            if not left:
                break
            if attempt:
                log.warning("%d of %d videos have no score; judging them again", len(left), len(videos))
            fresh = self.reward([prompts[index] for index in left], [videos[index] for index in left])
            scores.update(zip(left, fresh, strict=True))
            left = [index for index in left if not scores[index].scored]
            if self._compares and left:
                left = list(videos)
        return scores


# ---- building, once per process ------------------------------------------------------------------------------------

_lock = threading.Lock()
_rewards: dict[tuple[Any, ...], Reward] = {}
_host_rewards: dict[tuple[Any, ...], HostReward] = {}


def host_reward(options: HostOptions, host: str, *, whole_groups: bool = False) -> HostReward:
    """The one ``HostReward`` of this process for these options: hosts build their rewards several
    times.

    whole_groups: whether each call of the host holds one whole group. Then the reward has to be one
    that compares the videos of a prompt; otherwise it must be none. Raises ``ValueError`` when the
    reward is of the other kind, cannot be built, has no such component, or asks a server that does
    not answer.
    """
    with _lock:
        key = (os.getpid(), options, host, whole_groups)
        if key not in _host_rewards:
            reward = _build_group_reward(options) if whole_groups else _build_reward(options)
            _host_rewards[key] = HostReward(reward, options, host)
        return _host_rewards[key]


def _build_reward(options: HostOptions) -> Reward:
    """The reward, or the component of it, that the options name."""
    source = _named_reward(options)
    if _is_url(source):
        from cac_align.serving.client import RemoteReward

        token = os.environ.get(options.token_env or "CAC_ALIGN_TOKEN")
        if options.token_env and not token:
            raise ValueError(f"token_env names {options.token_env}, which is not set in the environment")
        return RemoteReward(
            source,
            options.component,
            token=token,
            timeout_s=options.timeout_s,
            retries=options.retries,
            backoff_s=options.backoff_s,
            send=options.send,
            quality=options.quality,
        )
    reward = _load(source)
    from cac_align.rewards.build import reward_choices

    choices = reward_choices(reward)
    name = options.component or next(iter(choices))
    if name not in choices:
        raise ValueError(f"reward {reward.name!r} has no component {name!r}; it offers {', '.join(choices)}")
    return choices[name]


def _build_group_reward(options: HostOptions) -> Reward:
    """The reward that the options name, which compares the videos of a prompt."""
    source = _named_reward(options)
    if _is_url(source):
        raise ValueError(
            f"{source} is a service, which scores each video by itself; name the recipe of the judge that compares, "
            "whose model may be behind a URL"
        )
    if options.component is not None:
        raise ValueError(
            f"a reward that compares has no component to choose, received component {options.component!r}; "
            "name a recipe that has this component alone"
        )
    reward = _load(source)
    if compares_videos(reward) is None:
        raise ValueError(
            f"reward {reward.name!r} scores each video by itself; use the host's pointwise adapter "
            "(Flow-Factory: CaCUnifiedReward), which evaluations ask as well"
        )
    return reward


def _named_reward(options: HostOptions) -> str:
    if options.reward is None:
        raise ValueError(
            "no reward is named, and the shipped judge knows its own small world only; state the option reward: "
            "the URL of `cac-align serve`, or a recipe (recipes/reward/miniature.yaml for the small world)"
        )
    return options.reward


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _load(source: str) -> Reward:
    """The reward of a recipe or "module:Name", loaded once per process."""
    key = (os.getpid(), source)
    if key not in _rewards:
        from cac_align.rewards.build import load_reward
        from cac_align.rewards.reachable import check_reachable

        reward = load_reward(source)
        check_reachable(reward)  # before the host has made its first videos
        _rewards[key] = reward
    return _rewards[key]
