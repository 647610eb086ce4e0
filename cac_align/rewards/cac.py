"""The CaC reward: judge in two turns and read R = P(normal) / (P(normal) + P(abnormal)) at the
deciding turn (Eq. 7).

prompts, videos → copies under ``tta`` → two_turn.judge_each → Judgements
    → Score in [0, 1] with a judgement as evidence

With ``VerdictOnly`` or ``SingleTurn`` settings it is a cheaper reward with a name and provenance of
its own (``cac.verdict_only``, ``cac.single_turn``). With test-time augmentation
(``cac.augmentations``) it costs one judgement per augmentation and is more accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cac_align.cac import judge_settings, single_turn, two_turn, verdict_only
from cac_align.cac.augmentations import (
    AS_IS,
    augment,
    consensus_judgement,
    mean_log_odds,
    parse_augmentation,
    transform_prompt,
    undo_augmentation,
)
from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.judgement import Judgement, tempered
from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.core.weights import shipped
from cac_align.rewards.domain import Domain, domain_provenance, read_domain, score_inside_domain
from cac_align.rewards.reward import Score
from cac_align.vlm.connect import connect
from cac_align.vlm.dialogue import Dialogue
from cac_align.vlm.protocol import Vlm, checkpoint_uncertainty

CaCSettings = TwoTurn | SingleTurn | VerdictOnly

# By class of the settings: the reward's name and the function that makes a video's dialogue.
_METHODS: Mapping[type, tuple[str, Callable[..., Dialogue[Judgement]]]] = {
    TwoTurn: ("cac", two_turn.two_turn_dialogue),
    SingleTurn: ("cac single turn", single_turn.single_turn_dialogue),
    VerdictOnly: ("cac verdict only", verdict_only.verdict_only_dialogue),
}


# Two words' probabilities may add up to more than 1 by this much, and a written verdict may lie on the other side of
# log-odds 0 by this much: a server that computes in bfloat16 reads them again in another batch.
_MASS_ROUNDING = 1e-3
_LOG_ODDS_ROUNDING = 0.02


@dataclass(frozen=True)
class CaC:
    """CaC behind any vision-language model; a ``Reward``."""

    # The judge.
    vlm: Vlm
    # How it is asked.
    settings: CaCSettings = field(default_factory=TwoTurn)
    # When P(normal) + P(abnormal) is below this share, the model wanted to write something else: there is no score.
    min_mass: float = 0.01
    # T of R_T = σ(log-odds / T); 1 is the paper's Eq. 7. After its chain of thought a judge is almost certain of its
    # verdict, right or wrong, and Eq. 7 then ties videos that its log-odds still tell apart. A T fitted on held-out
    # clips (``evaluation.bench.calibration.fit_temperature``; Guo et al. 2017, arXiv 1706.04599) makes R a probability
    # again and keeps every order.
    temperature: float = 1.0
    # Name of the reward; "" takes the one of the settings.
    name: str = ""
    # Lowest and highest value, for ``normalise="range"``.
    bounds: tuple[float, float] = (0.0, 1.0)
    # Test-time augmentations. R is that of the mean log-odds, every copy must have a verdict, and the evidence is the
    # first judgement that agrees with the mean.
    tta: tuple[str, ...] = (AS_IS,)
    # The mean log-odds at or below which the verdict of several augmentations is "abnormal", provided that one of them
    # says so. One copy's alarm is worth more than another's silence, so it lies above 0
    # (``evaluation.bench.calibration.fit_threshold``). It does not change R.
    threshold: float = 0.0
    # What the judge was made for, when it states it; a video outside has no score unless ``allow_out_of_domain``.
    domain: Domain | None = None
    allow_out_of_domain: bool = False

    def __post_init__(self) -> None:
        if not self.tta or len({frozenset(parse_augmentation(name)) for name in self.tta}) < len(self.tta):
            raise ValueError(f"tta must be one or more different augmentations, received {list(self.tta)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number, received {self.temperature}")
        if not 0 <= self.min_mass <= 1:
            raise ValueError(f"min_mass is a share of the probability, 0 to 1, received {self.min_mass}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite log-odds, received {self.threshold}")
        if not self.name:
            object.__setattr__(self, "name", _METHODS[type(self.settings)][0].replace(" ", "_"))

    @classmethod
    def load(
        cls,
        model: str,
        *,
        settings: CaCSettings | None = None,
        min_mass: float = 0.01,
        temperature: float | None = None,
        tta: Sequence[str] = (AS_IS,),
        threshold: float | None = None,
        allow_out_of_domain: bool = False,
        **backend: Any,
    ) -> CaC:
        """CaC on a checkpoint (folder or hub id) that runs here, or on the URL of an
        OpenAI-compatible server.

        settings, temperature, threshold: None takes the value in the checkpoint's
        ``cac_align.json`` (``cac.judge_settings``), or else the paper's two turns, 1 and 0.
        Temperature and threshold there hold for two turns only. backend: keyword arguments of
        ``LocalVlm.load`` (device, dtype, batch_size, max_pixels, …) or ``ServerVlm`` (served_model,
        concurrency, timeout_s, …). Raises ``ValueError`` when the model cannot be loaded or
        reached.
        """
        revision = backend.get("revision")
        settings = settings or judge_settings.read_two_turn(model, revision)
        if temperature is None:
            temperature = (
                judge_settings.read_temperature(model, tta, revision) if isinstance(settings, TwoTurn) else 1.0
            )
        if threshold is None:
            threshold = judge_settings.read_threshold(model, tta, revision) if isinstance(settings, TwoTurn) else 0.0
        if (max_pixels := judge_settings.read_max_pixels(model, revision)) is not None:
            backend.setdefault("max_pixels", max_pixels)
        return cls(
            connect(model, **backend),
            settings,
            min_mass,
            temperature,
            tta=tuple(tta),
            threshold=threshold,
            domain=read_domain(model),
            allow_out_of_domain=allow_out_of_domain,
        )

    @classmethod
    def miniature(cls, **backend: Any) -> CaC:
        """The small trained judge that ships with the package: real architecture, made for the
        miniature world only.
        """
        return cls.load(str(shipped("cac")), **backend)

    @property
    def provenance(self) -> Mapping[str, str]:
        kind, _ = _METHODS[type(self.settings)]
        own = {} if self.temperature == 1 else {"temperature": repr(self.temperature)}
        own |= {} if self.tta == (AS_IS,) else {"tta": ", ".join(self.tta)}
        own |= {} if self.threshold == 0 else {"threshold": repr(self.threshold)}
        own |= domain_provenance(self.domain, self.allow_out_of_domain)
        return {
            "reward": kind,
            "min_mass": repr(self.min_mass),
            **own,
            **two_turn.judge_provenance(self.settings, self.vlm),
        }

    @property
    def cut(self) -> float:
        """The value at or below which the verdict is "abnormal" if one copy says so: R_T at the threshold."""
        return tempered(self.threshold, self.temperature)

    def judge(
        self,
        prompts: str | Sequence[str],
        videos: VideoInput | Sequence[VideoInput],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Judgement]:
        """One judgement per video, in order: the consensus of its augmentations, or the first that
        failed.
        """
        return [
            next((judgement for judgement in judgements if judgement.error is not None), None)
            or consensus_judgement(judgements, self.threshold)
            for judgements in self._judge_augmented(prompts, videos, progress)
        ]

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order.

        A video outside the judge's domain has none. All are missing when it is unknown which
        checkpoint judged, because the server changed it during the call or does not say what it runs.
        """
        prompts, videos = as_pairs(prompts, videos)
        allowed = self.allow_out_of_domain
        return score_inside_domain(
            self.domain, prompts, videos, self._score_all, lambda: self.provenance, allowed=allowed
        )

    def _score_all(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """One Score per video, in order, whatever the domain."""
        provenance = self.provenance
        scores = [self._score(each, provenance) for each in self._judge_augmented(prompts, videos, None)]
        if (reason := checkpoint_uncertainty(provenance, self.provenance)) is None:
            return scores
        error = f"{self.name}: {reason}"
        return [
            Score.missing(error, parts=score.parts, evidence=score.evidence, provenance=provenance)
            if score.scored
            else score
            for score in scores
        ]

    def _judge_augmented(
        self,
        prompts: str | Sequence[str],
        videos: VideoInput | Sequence[VideoInput],
        progress: Callable[[int], None] | None,
    ) -> list[list[Judgement]]:
        """Per video one judgement per augmentation, in the video's own frames and boxes; all are
        judged together.
        """
        prompts, videos = as_pairs(prompts, videos)
        _, make_dialogue = _METHODS[type(self.settings)]
        count = len(self.tta)
        judgements = two_turn.judge_each(
            make_dialogue,
            self.vlm,
            [transform_prompt(prompt, augmentation) for prompt in prompts for augmentation in self.tta],
            [augment(video, augmentation) for video in videos for augmentation in self.tta],
            self.settings,
            progress=progress and _count_videos(count, progress),
        )
        restored = [
            undo_augmentation(judgement, videos[index // count], self.tta[index % count])
            for index, judgement in enumerate(judgements)
        ]
        return [restored[index : index + count] for index in range(0, len(restored), count)]

    def _score(self, judgements: Sequence[Judgement], provenance: Mapping[str, str]) -> Score:
        for augmentation, judgement in zip(self.tta, judgements, strict=True):
            name = "cac" if len(judgements) == 1 else f"cac ({augmentation})"
            if judgement.error is not None:
                return Score.missing(f"{name}: {judgement.error}", evidence=judgement, provenance=provenance)
            if (reason := _unusable_reason(judgement, self.min_mass)) is not None:
                reason = f"{name}: {reason}"
                return Score.missing(reason, parts=_probabilities(judgement), evidence=judgement, provenance=provenance)
        judgement, log_odds = consensus_judgement(judgements, self.threshold), mean_log_odds(judgements)
        parts = {**_probabilities(judgement), "log_odds": log_odds}
        if len(judgements) > 1:
            for augmentation, each in zip(self.tta, judgements, strict=True):
                parts[f"log_odds/{augmentation}"] = each.log_odds
        return Score(tempered(log_odds, self.temperature), parts, judgement, None, provenance)


def _probabilities(judgement: Judgement) -> dict[str, float]:
    """The verdict's probabilities; "p_…_is_bound" is 1 where a server gave only an upper bound."""
    parts = {"p_normal": judgement.p_normal, "p_abnormal": judgement.p_abnormal, "mass": judgement.mass}
    return parts | {f"p_{word}_is_bound": 1.0 for word in judgement.bounded}


def _unusable_reason(judgement: Judgement, min_mass: float) -> str | None:
    """Why the verdict's probabilities give no score, or None when they do."""
    if not judgement.mass >= min_mass:
        return f"P(normal) + P(abnormal) is only {judgement.mass:.3g}, below the limit {min_mass:g}"
    if judgement.mass > 1 + _MASS_ROUNDING:
        return f"P(normal) + P(abnormal) is {judgement.mass:.4g}, which is more than 1"
    against = judgement.log_odds if judgement.status == "abnormal" else -judgement.log_odds
    if against > _LOG_ODDS_ROUNDING:
        return (
            f"the answer says {judgement.status}, but its probabilities say the opposite (P(normal) = "
            f"{judgement.p_normal:.3g}, P(abnormal) = {judgement.p_abnormal:.3g})"
        )
    return None


def _count_videos(copies: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """A callback that is told of finished copies and calls ``progress`` with finished videos of
    ``copies`` each.
    """
    finished = 0

    def count(newly_finished: int) -> None:
        nonlocal finished
        before, finished = finished, finished + newly_finished
        if videos := finished // copies - before // copies:
            progress(videos)

    return count
