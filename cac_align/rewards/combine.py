"""Several rewards as one: normalise every component by a named choice, average, and keep every
part.

components score (prompts, videos) → per prompt's group: normalise → weighted mean
    → Score(value, parts, evidence)

A group is the set of equal prompts within one call. For a component called ``cac``, the ``parts``
of a combined score are ``cac`` (its raw value), ``cac/<part>`` (the parts that it reported),
``normalised/cac`` (its normalised value) and ``share/cac`` (its share of the within-group variance
of the combined score, ``normalise.variance_shares``; NaN when the group has no spread). A video
that a component could not score has no combined score but the reason and the other components'
parts, and is left out of its group's statistics.

Source: CaC (arXiv 2605.11723) Sec. 4.2, "the average of normalized scores" of UnifiedReward and
CaC.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cac_align.core.judgement import Judgement
from cac_align.core.video import VideoInput, as_pairs
from cac_align.rewards.checked import checked_scores, reward_provenance
from cac_align.rewards.normalise import (
    NEEDS_GROUP,
    NORMALISERS,
    QUANTUM,
    Normaliser,
    Statistics,
    by_group,
    by_range,
    by_rank,
    by_reference,
    quantise,
    read_statistics,
    variance_shares,
)
from cac_align.rewards.reward import Reward, Score

_RESERVED = ("share", "normalised")


def bounds_of(reward: Reward) -> tuple[float, float] | None:
    """The lowest and highest value of a reward, if it declares them as ``bounds``. Raises
    ``ValueError`` for bounds that are no two increasing finite numbers.
    """
    bounds = getattr(reward, "bounds", None)
    if bounds is None:
        return None
    try:
        low, high = map(float, bounds)
    except Exception:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"bounds of {reward.name!r} must be two increasing numbers, received {bounds!r:.60}")
    return bounds


def compares_videos(reward: Reward) -> str | None:
    """What makes a video's score depend on the other videos of its prompt in the same call, as a
    clause; None for a reward that scores each video by itself.

    Such a reward needs whole groups in one call, and its scores are not served from a ledger.
    """
    return getattr(reward, "compares_videos", None)


def pointwise_remedy(reason: str) -> str:
    """What to change, in a place that needs a score of each video by itself. reason: of ``compares_videos``."""
    if reason.startswith("normalise:"):
        return "use normalise: range or reference"
    return "use a judge that scores each video by itself, such as kind: cac or unified"


@dataclass(frozen=True)
class Combined:
    """A weighted mean of normalised rewards, itself a Reward. Make one with ``combine``."""

    components: Mapping[str, Reward]
    normalise: Normaliser
    # Positive, with a sum of 1.
    weights: Mapping[str, float]
    # For ``reference`` only.
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    # The component whose judgement becomes the score's evidence; None for the first that has one.
    evidence_of: str | None = None

    @property
    def name(self) -> str:
        return "+".join(self.components)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(0, 1) for range and rank, None for z-scores."""
        return (0.0, 1.0) if self.normalise in ("range", "rank") else None

    @property
    def compares_videos(self) -> str | None:
        """See ``compares_videos``: because of its normaliser, or of a component."""
        if self.normalise in NEEDS_GROUP:
            return f"normalise: {self.normalise} compares the videos of a prompt"
        return next(filter(None, map(compares_videos, self.components.values())), None)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Normaliser and weights, and every component's provenance under ``<component>/<key>``."""
        entries = {"reward": f"combine {self.name}", "normalise": self._normaliser_text()}
        entries["weights"] = json.dumps(dict(self.weights), sort_keys=True)
        for name, component in self.components.items():
            entries |= {f"{name}/{key}": value for key, value in reward_provenance(component).items()}
        return entries

    def with_components(self, components: Mapping[str, Reward]) -> Combined:
        """The same combination over other objects for the same components, e.g. cached ones."""
        assert list(components) == list(self.components)
        return replace(self, components=dict(components))

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One combined Score per video, in order.

        Raises ``ValueError`` when ``prompts`` and ``videos`` differ in length or a component
        returns another number of scores.
        """
        prompts, videos = as_pairs(prompts, videos)
        if not videos:
            return []
        columns: dict[str, list[Score]] = {}
        for name, component in self.components.items():
            columns[name] = checked_scores(name, component(prompts, videos), len(videos))
        rows = [{name: column[index] for name, column in columns.items()} for index in range(len(videos))]
        provenance = self.provenance
        combined: list[Score | None] = [None] * len(rows)
        groups: dict[str, list[int]] = {}
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            reason = self._missing(row)
            if reason is not None:
                combined[index] = self._without(row, reason, provenance)
            else:
                groups.setdefault(prompt, []).append(index)
        for members in groups.values():
            if self.normalise in NEEDS_GROUP and len(members) < 2:
                reason = f"{self.normalise} normalisation needs >= 2 scored videos per prompt, received {len(members)}"
                combined[members[0]] = self._without(rows[members[0]], reason, provenance)
            else:
                scores = self._group([rows[index] for index in members], provenance)
                for index, score in zip(members, scores, strict=True):
                    combined[index] = score
        return [score for score in combined if score is not None]

    def _group(self, rows: list[dict[str, Score]], provenance: Mapping[str, str]) -> list[Score]:
        """Combined scores of one group's scored members."""
        normalised = {
            name: self._normalised(name, [quantise(row[name].value) for row in rows]) for name in self.components
        }
        terms = np.stack([self.weights[name] * normalised[name] for name in self.components])  # (K, N)
        shares = dict(zip(self.components, variance_shares(terms), strict=True))
        scores = []
        for index, row in enumerate(rows):
            parts = _raw_parts(row)
            parts |= {f"normalised/{name}": float(normalised[name][index]) for name in self.components}
            parts |= {f"share/{name}": float(shares[name]) for name in self.components}
            # Not np.sum over the column: its order of additions may depend on memory layout, and ties must stay ties.
            value = quantise(math.fsum(terms[:, index].tolist()))
            scores.append(Score(value, parts, self._evidence(row), None, provenance))
        return scores

    def _normalised(self, name: str, values: list[float]) -> np.ndarray:
        column = np.asarray(values, dtype=np.float64)
        if self.normalise == "group":
            return by_group(column)
        if self.normalise == "rank":
            return by_rank(column)
        if self.normalise == "reference":
            return by_reference(column, self.statistics[name])
        bounds = bounds_of(self.components[name])
        assert bounds is not None  # combine refuses components without bounds
        return by_range(column, bounds)

    def _missing(self, row: Mapping[str, Score]) -> str | None:
        """Why this video has no combined score, or None when it has one."""
        named: dict[str, list[str]] = {}  # components by reason: both may be outside the same domain
        for name, score in row.items():
            if not score.scored:
                named.setdefault((score.error or "").removeprefix(f"{name}: "), []).append(name)
        reasons = [f"{', '.join(names)}: {reason}" for reason, names in named.items()]
        for name, score in row.items():
            bounds = bounds_of(self.components[name])
            if score.scored and bounds and not bounds[0] - QUANTUM <= score.value <= bounds[1] + QUANTUM:
                reasons.append(f"{name}: scored {score.value:g}, outside its declared bounds {bounds}")
        return "; ".join(reasons) or None

    def _evidence(self, row: Mapping[str, Score]) -> Judgement | None:
        given = [row[name]] if (name := self.evidence_of) is not None and name in row else row.values()
        return next((score.evidence for score in given if score.evidence is not None), None)

    def _without(self, row: Mapping[str, Score], reason: str, provenance: Mapping[str, str]) -> Score:
        """A missing score with all parts of the components."""
        return Score.missing(reason, parts=_raw_parts(row), evidence=self._evidence(row), provenance=provenance)

    def _normaliser_text(self) -> str:
        if self.normalise == "range":
            formulas = []
            for name, component in self.components.items():
                low, high = bounds_of(component) or (math.nan, math.nan)
                formulas.append(f"{name} (x - {low:g}) / {high - low:g}")
            return "range: " + ", ".join(formulas)
        if self.normalise == "reference":
            stated = [
                f"{name} (x - {s.mean!r}) / {s.std!r}, n={s.n}, {s.source}" for name, s in self.statistics.items()
            ]
            return "reference: " + "; ".join(stated)
        return {
            "group": "group: z-score, population std, per prompt",
            "rank": "rank: average ranks on [0, 1], per prompt",
        }[self.normalise]


def combine(
    components: Mapping[str, Reward],
    *,
    normalise: Normaliser = "range",
    weights: Mapping[str, float] | None = None,
    statistics: Path | None = None,
) -> Combined:
    """The weighted mean of several rewards, each normalised by the same named choice.

    components: by name, e.g. {"unified": UnifiedReward…, "cac": CaC…}. normalise: "range" (default;
    every component must declare ``bounds``), "reference" (needs ``statistics``, a JSON file
    {component: {mean, std, n, source}}), "group" or "rank" (compare the videos of one prompt within
    one call, at least two). weights: by name, positive; equal when left out; scaled to sum to 1.
    Raises ``ValueError`` for no component, an unknown normaliser, weights or statistics that do not
    fit the components.
    """
    if not components:
        raise ValueError("combine needs at least one component, e.g. {'unified': …, 'cac': …}; received none")
    for name in components:
        if not name or "/" in name or name in _RESERVED:
            raise ValueError(
                f"component name {name!r} cannot be used: it must not be empty, {' or '.join(_RESERVED)}, or hold '/'"
            )
    if normalise not in NORMALISERS:
        raise ValueError(f"normalise must be one of {', '.join(NORMALISERS)}; received {normalise!r}")
    given = (
        dict.fromkeys(components, 1.0) if weights is None else {name: float(value) for name, value in weights.items()}
    )
    if set(given) != set(components):
        raise ValueError(
            f"weights name {sorted(given)}, the components are {sorted(components)}; give one weight per component"
        )
    if not all(math.isfinite(value) and value > 0 for value in given.values()):
        raise ValueError(
            f"weights must be positive and finite, received {given}; leave a component out instead of weighing it 0"
        )
    unbounded = [name for name, component in components.items() if bounds_of(component) is None]
    if normalise == "range" and unbounded:
        raise ValueError(
            f"range normalisation needs known bounds, and {', '.join(unbounded)} declares none; "
            "use normalise='reference' with a statistics file, 'group' or 'rank'"
        )
    if (statistics is not None) != (normalise == "reference"):
        need = (
            "needs statistics=, a JSON file {component: {mean, std, n, source}}"
            if statistics is None
            else "takes no statistics file"
        )
        raise ValueError(f"normalise={normalise!r} {need}")
    total = math.fsum(given.values())
    frozen = read_statistics(statistics, list(components)) if statistics is not None else {}
    return Combined(dict(components), normalise, {name: given[name] / total for name in components}, frozen)


def _raw_parts(row: Mapping[str, Score]) -> dict[str, float]:
    parts: dict[str, float] = {}
    for name, score in row.items():
        if score.scored:
            parts[name] = score.value
        parts |= {f"{name}/{part}": value for part, value in score.parts.items()}
    return parts
