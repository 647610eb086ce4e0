"""What a report says in sentences: its result, and in what ways a better number can hide worse
videos.
"""

from __future__ import annotations

from cac_align.evaluation.pages.page import COMPONENT_TITLES
from cac_align.evaluation.report.measure import (
    JUDGED_DIFFERENTLY,
    Measure,
    ReportComparison,
    known_value,
)
from cac_align.evaluation.statistics import (
    prompt_means,
)

_LUMINANCE_FALL = 0.05
"""A relative fall of this size is worth a warning even where few pairs leave the interval wide."""


_SCORE_MOVE = 0.02
"""A move of a score by this much, of a range of 1, is worth a warning likewise."""


def report_warnings(made: ReportComparison) -> list[str]:
    """The warnings that a reader must not miss, one sentence each."""
    warnings = []
    luminance, cac, unified = (made.measure(key) for key in ("luminance_change", "cac", "unified"))
    rate = made.measure("experts") or made.measure("cac_rate")
    if luminance and rate and known_value(rate.difference) < 0:
        before = known_value(luminance.before)
        if _moved(luminance, -1, _LUMINANCE_FALL * before):
            fall = -known_value(luminance.difference) / before
            warnings.append(
                f"The luminance change fell by {fall:.0%} while the {_low(rate.label)} improved: fewer anomalies "
                f"may only "
                f"mean that less happens. {_certainty(luminance)}"
            )
    dynamic = made.measure("vbench/dynamic_degree")
    if dynamic and rate and _moved(dynamic, -1, _SCORE_MOVE) and known_value(rate.difference) < 0:
        warnings.append(
            f"VBench's dynamic degree fell from {known_value(dynamic.before):.3f} to "
            f"{known_value(dynamic.after):.3f} while the "
            f"{_low(rate.label)} improved: still videos have fewer anomalies. {_certainty(dynamic)}"
        )
    experts = made.measure("experts")
    cac_moved = cac or made.measure("cac_rate")
    cac_better = cac_moved is not None and _moved(cac_moved, 1 if cac_moved.higher_is_better else -1, _SCORE_MOVE)
    if experts and cac_moved and cac_better and known_value(experts.difference) >= 0:
        how = (
            "did not change"
            if known_value(experts.difference) == 0
            else f"rose by {100 * known_value(experts.difference):.0f} points"
        )
        warnings.append(
            f"CaC {'rose' if cac else 'saw fewer anomalies'}, but experts did not agree: their anomaly rate {how} over "
            f"{experts.many}. The reward may have been outwitted. {_certainty(experts)}"
        )
    elif cac_better and experts is None:
        warnings.append(
            "CaC rose, and no expert's rating of both sides was found. The run optimised CaC, so this proves "
            "little: have both folders rated."
        )
    if unified and cac and _moved(unified, 1, _SCORE_MOVE * 4) and _moved(cac, -1, _SCORE_MOVE):
        warnings.append(
            f"UnifiedReward rose by {known_value(unified.difference):.3f} while CaC fell by "
            f"{-known_value(cac.difference):.3f}: general appeal was "
            f"bought with anomalies. {_certainty(cac)}"
        )
    if made.shares and len(made.shares) > 1:
        name, share = max(made.shares.items(), key=lambda item: known_value(item[1]))
        where = "between before and after" if made.shares_of_change else "within a group"
        if known_value(share) > 0.9:
            warnings.append(
                f"{COMPONENT_TITLES.get(name, name)} makes {known_value(share):.0%} of the combined reward's "
                f"variance {where}: the others hardly count."
            )
    unscored = sum(not clip_record.scored for row in made.pairs for clip_record in (row.before, row.after))
    if unscored and any(clip_record.scored for row in made.pairs for clip_record in (row.before, row.after)):
        warnings.append(
            f"{unscored} of {2 * len(made.pairs)} videos have no score; their pairs are left out of the rewards' rows."
        )
    apart = [fault for fault in made.faults if fault.kind == JUDGED_DIFFERENTLY]
    if apart:
        warnings.append(
            f"{len(apart)} of {len(made.pairs)} pairs were judged by different judges before and after, and are not "
            f"compared: "
            f"{apart[0].why.split(': ', 1)[1]}. Score both folders with the same reward."
        )
    prompts = len(prompt_means([0.0] * len(made.pairs), [row.pair.prompt for row in made.pairs]))
    if prompts < 20:
        pairs = f"{len(made.pairs)} pair{'s' if len(made.pairs) > 1 else ''}"
        few = pairs if prompts == len(made.pairs) else f"{prompts} prompt{'s' if prompts > 1 else ''} ({pairs})"
        warnings.append(f"Only {few}: the intervals are wide, and a few videos decide.")
    return warnings


def _moved(measure: Measure, direction: int, enough: float) -> bool:
    """Whether the measure moved in that direction, by more than ``enough`` or beyond chance."""
    moved = direction * known_value(measure.difference)
    return moved > enough or (measure.verdict != "open" and moved > 0)


def _certainty(measure: Measure) -> str:
    if measure.verdict == "open":
        return f"With {measure.many} this may still be chance."
    if measure.no_interval:
        return "Every prompt moved alike, and the paired test excludes no change."
    return "The 95 % interval excludes no change."


def _low(label: str) -> str:
    """A label inside a sentence: "Anomaly rate, experts" becomes "anomaly rate by experts"."""
    return (label[0].lower() + label[1:]).replace(", ", " by ")


def summary_sentence(made: ReportComparison) -> str:
    """The result in one or two sentences."""
    rate = made.measure("experts") or made.measure("cac_rate")
    many = f"{len(made.pairs)} pair{'s' if len(made.pairs) != 1 else ''} of videos"
    if rate is None:
        apart = any(fault.kind == JUDGED_DIFFERENTLY for fault in made.faults)
        why = (
            "Different judges judged the two sides"
            if apart
            else "No verdict was found: give a reward, a ledger or ratings"
        )
        return f"{many}, the same prompts before and after. {why}."
    low, high = rate.difference.low, rate.difference.high
    moved = known_value(rate.difference)
    verb = "fell" if moved < 0 else "rose" if moved > 0 else "stayed"
    interval = (
        f" ({_points(moved)} points, 95 % interval {_points(low)} to {_points(high)})"
        if low is not None and high is not None
        else f" ({_points(moved)} points; {rate.no_interval})"
    )
    who = "by experts" if rate.key == "experts" else "by CaC"
    before, after = (f"{100 * known_value(side):.0f} %" for side in (rate.before, rate.after))
    return (
        f"{many}, the same prompts before and after. Anomalies counted {who} {verb} from {before} to {after}{interval}."
    )


def _points(share: float) -> str:
    return f"{100 * share:+.0f}".replace("-", "−")
