"""The CaC reward: judge in two turns, read R = P(normal) / (P(normal) + P(abnormal)) off the deciding turn (Eq. 7).

prompts, videos → two_turn.judge → Judgement → Score in [0, 1], with the judgement as its evidence

With ``VerdictOnly`` or ``SingleTurn`` settings it is a different, cheaper reward under a name and provenance of its own (see
``cac.verdict_only``, ``cac.single_turn``); with several ``views`` a dearer and surer one (``cac.views``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cac_align.cac import judge_settings as folder
from cac_align.cac import single_turn, two_turn, verdict_only
from cac_align.cac.augmentations import AS_IS, consensus_judgement, mean_log_odds, steps_of, told, unviewed, viewed
from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.judgement import Judgement, tempered
from cac_align.core.video import Video
from cac_align.core.weights import shipped
from cac_align.rewards.reward import Score, check_pairs
from cac_align.vlm.connect import connect
from cac_align.vlm.dialogue import Dialogue
from cac_align.vlm.protocol import Vlm, unknown_judge

Settings = TwoTurn | SingleTurn | VerdictOnly

_REWARDS: Mapping[type, tuple[str, Callable[..., Dialogue[Judgement]]]] = {
    TwoTurn: ("cac", two_turn.judge_one),
    SingleTurn: ("cac single turn", single_turn.judge_one),
    VerdictOnly: ("cac verdict only", verdict_only.judge_one),
}
"""By the settings' class: which reward it is, and how it judges a video."""


@dataclass(frozen=True)
class CaC:
    """CaC behind any vision-language model; a ``Reward``.

    vlm: who is asked. settings: how (see ``TwoTurn``); its name follows them unless given. min_mass: P(normal) + P(abnormal) below this means that the model wanted to
    write something else, and there is no score. temperature: T of R_T = σ(log-odds / T); 1 is the paper's Eq. 7. A judge that has thought
    aloud is almost certain of its verdict, right or wrong, and Eq. 7 then ties what its log-odds still tell apart; T from held-out clips
    (``evaluation.calibration.fit_temperature``; Guo et al. 2017, arXiv 1706.04599) makes R a probability again and keeps every order.
    views: how each video is shown (``cac.views``); of several, R is that of the mean log-odds, every view must have a verdict, and the
    evidence is the first view's judgement that agrees with the mean. threshold: of several views, the mean log-odds at or below which their
    verdict is "abnormal", where one of them says so: one view's alarm is worth more than one view's silence, so it lies above 0 (``evaluation.calibration.fit_threshold``).
    It moves no R. bounds: the range of its values, for ``normalise="range"``.
    """

    vlm: Vlm
    settings: Settings = field(default_factory=TwoTurn)
    min_mass: float = 0.01
    temperature: float = 1.0
    name: str = ""
    bounds: tuple[float, float] = (0.0, 1.0)
    views: tuple[str, ...] = (AS_IS,)
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.views or len({frozenset(steps_of(view)) for view in self.views}) < len(self.views):
            raise ValueError(f"views must be one or more different views, received {list(self.views)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number, received {self.temperature}")
        if not 0 <= self.min_mass <= 1:
            raise ValueError(f"min_mass is a share of the probability, 0 to 1, received {self.min_mass}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite log-odds, received {self.threshold}")
        if not self.name:
            object.__setattr__(self, "name", _REWARDS[type(self.settings)][0].replace(" ", "_"))

    @classmethod
    def load(
        cls,
        model: str,
        *,
        settings: Settings | None = None,
        min_mass: float = 0.01,
        temperature: float | None = None,
        views: Sequence[str] = (AS_IS,),
        threshold: float | None = None,
        **backend: Any,
    ) -> CaC:
        """``model``: a checkpoint (folder or hub id) to run here, or the URL of an OpenAI-compatible server.

        settings: None takes those that stand in the checkpoint's ``cac_align.json`` (``cac.folder``), or else the paper's two turns.
        temperature: None takes the one that stands there, fitted for the two turns and these views (or for the
        video as it is), or else 1. threshold: None takes the one that stands there for the two turns and these views, or else 0.
        backend: passed to ``LocalVlm.load`` (device, dtype, batch_size, max_pixels: as the folder says, …) or ``ServerVlm`` (served_model, concurrency, timeout_s, …).
        Raises ``ValueError`` when the model cannot be loaded or reached.
        """
        revision = backend.get("revision")
        settings = settings or folder.settings_of(model, revision)
        if temperature is None:
            temperature = folder.temperature_of(model, views, revision) if isinstance(settings, TwoTurn) else 1.0
        if threshold is None:
            threshold = folder.threshold_of(model, views, revision) if isinstance(settings, TwoTurn) else 0.0
        if (learnt := folder.max_pixels_of(model, revision)) is not None:
            backend.setdefault("max_pixels", learnt)
        return cls(connect(model, **backend), settings, min_mass, temperature, views=tuple(views), threshold=threshold)

    @classmethod
    def miniature(cls, **backend: Any) -> CaC:
        """The small trained judge that ships with the package: real architecture, made for the miniature world only."""
        return cls.load(str(shipped("cac")), **backend)

    @property
    def provenance(self) -> Mapping[str, str]:
        kind, _ = _REWARDS[type(self.settings)]
        own = {} if self.temperature == 1 else {"temperature": repr(self.temperature)}
        own |= {} if self.views == (AS_IS,) else {"views": ", ".join(self.views)}
        own |= {} if self.threshold == 0 else {"threshold": repr(self.threshold)}
        return {"reward": kind, "min_mass": repr(self.min_mass), **own, **two_turn.provenance(self.settings, self.vlm)}

    def judge(
        self, prompts: Sequence[str], videos: Sequence[Video], *, progress: Callable[[int], None] | None = None
    ) -> list[Judgement]:
        """The judgements themselves, one per video, in order; of several views the one that speaks for all, or the first that failed."""
        return [
            next((judgement for judgement in seen if judgement.error is not None), None)
            or consensus_judgement(seen, self.threshold)
            for seen in self._judge_views(prompts, videos, progress)
        ]

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """One Score per video, in order. None is a number when it cannot be told which checkpoint judged: a server that was exchanged
        meanwhile, or that does not say what it runs."""
        check_pairs(prompts, videos)
        provenance = self.provenance
        scores = [self._score(seen, provenance) for seen in self._judge_views(prompts, videos, None)]
        if (why := unknown_judge(provenance, self.provenance)) is None:
            return scores
        lost = f"{self.name}: {why}"
        return [
            Score.missing(lost, parts=score.parts, evidence=score.evidence, provenance=provenance)
            if score.scored
            else score
            for score in scores
        ]

    def _judge_views(
        self, prompts: Sequence[str], videos: Sequence[Video], progress: Callable[[int], None] | None
    ) -> list[list[Judgement]]:
        """Of each video one judgement per view, in the video's own frames and boxes. All go through the judge together."""
        check_pairs(prompts, videos)
        _, one = _REWARDS[type(self.settings)]
        count = len(self.views)
        texts = [told(prompt, view) for prompt in prompts for view in self.views]
        shown = [viewed(video, view) for video in videos for view in self.views]
        said = two_turn.judge_each(
            one, self.vlm, texts, shown, self.settings, progress=progress and _every(count, progress)
        )
        back = [unviewed(judgement, videos[i // count], self.views[i % count]) for i, judgement in enumerate(said)]
        return [back[i : i + count] for i in range(0, len(back), count)]

    def _score(self, seen: Sequence[Judgement], provenance: Mapping[str, str]) -> Score:
        for view, judgement in zip(self.views, seen, strict=True):
            who = "cac" if len(seen) == 1 else f"cac ({view})"
            if judgement.error is not None:
                return Score.missing(f"{who}: {judgement.error}", evidence=judgement, provenance=provenance)
            if not judgement.mass >= self.min_mass:
                reason = f"{who}: the verdict's two words hold only {judgement.mass:.3g} of the probability (limit {self.min_mass:g})"
                return Score.missing(reason, parts=_probabilities(judgement), evidence=judgement, provenance=provenance)
        judgement, odds = consensus_judgement(seen, self.threshold), mean_log_odds(seen)
        parts = {**_probabilities(judgement), "log_odds": odds}
        if len(seen) > 1:
            parts |= {f"log_odds/{view}": one.log_odds for view, one in zip(self.views, seen, strict=True)}
        return Score(tempered(odds, self.temperature), parts, judgement, None, provenance)


def _probabilities(judgement: Judgement) -> dict[str, float]:
    return {"p_normal": judgement.p_normal, "p_abnormal": judgement.p_abnormal, "mass": judgement.mass}


def _every(count: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """A progress in videos out of one in views: ``count`` views are a video."""
    ended = 0

    def tell(views: int) -> None:
        nonlocal ended
        before, ended = ended, ended + views
        if videos := ended // count - before // count:
            progress(videos)

    return tell
