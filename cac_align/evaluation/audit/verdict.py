"""What the numbers of an audit mean: flags with reasons, sentences, a table, JSON.

AuditReport.findings → ``flags_of`` → Flags → ``sentences`` · ``audit_markdown`` · ``to_json``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cac_align.evaluation.audit.as_reward import GroupBehaviour, RunCost
from cac_align.evaluation.audit.blind import BlindControl
from cac_align.evaluation.audit.localisation import DefectLocalisation, TruthAgreement
from cac_align.evaluation.audit.nuisances import Nuisance
from cac_align.evaluation.audit.perception import Perception
from cac_align.evaluation.statistics import Estimate
from cac_align.rewards.normalise import quantise
from cac_align.runs.metrics_log import json_values


@dataclass(frozen=True)
class Flag:
    """Something wrong with a judge. fails: whether it should not be trained on as it is; otherwise it
    is a reservation.
    """

    name: str
    reason: str
    fails: bool


@dataclass(frozen=True)
class Findings:
    """The measurements of an audit. ``cost``: None where nothing was asked."""

    pairs: int
    perception: Perception
    localisation: DefectLocalisation
    nuisances: Mapping[str, Nuisance]
    blind: Mapping[str, BlindControl]
    groups: GroupBehaviour
    cost: RunCost | None


@dataclass(frozen=True)
class AuditReport:
    """An audit of one reward: its name, what identifies it, what was shown to it, and what came out."""

    reward: str
    provenance: Mapping[str, str]
    shown: str
    findings: Findings
    flags: tuple[Flag, ...]

    @property
    def passes(self) -> bool:
        """Whether no flag fails it."""
        return not any(flag.fails for flag in self.flags)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what was not measured is null. ``localisation.localises`` is what `align` reads."""
        row = {
            "reward": self.reward,
            "passes": self.passes,
            "verdict": sentences(self),
            "flags": [asdict(flag) for flag in self.flags],
            "shown": self.shown,
            **asdict(self.findings),
            "provenance": dict(self.provenance),
        }
        return json_values(row, digits=None)


def flags_of(found: Findings) -> tuple[Flag, ...]:
    """What is wrong, the gravest first."""
    seen, groups, grey = found.perception, found.groups, found.blind.get("grey_frames")
    flags: list[Flag] = []
    zero, ends = groups.zero_std, {"upper": groups.top or 0.0, "lower": groups.bottom or 0.0}
    end = max(ends, key=ends.__getitem__)
    saturated = (zero.value or 0.0) >= 0.5 and ends[end] >= 0.8

    def flag(name: str, reason: str, *, fails: bool = True) -> None:
        flags.append(Flag(name, reason, fails))

    if seen.unscored > 0.1 * found.pairs:
        flag("does not answer", f"{seen.unscored} of {found.pairs} pairs have no score")
    if seen.unscored < found.pairs and not seen.reacts:
        if not saturated and grey is not None and (grey.as_well.high or 0.0) >= 0.5:
            reason = f"it tells no defect, and grey frames score at least as well in {_percent(grey.as_well)}"
            flag("blind", reason)
        flag(
            "does not react",
            f"the reward falls in {_percent(seen.falls)} of the pairs and rises in {seen.rises} of "
            f"{found.pairs - seen.unscored} (sign test p = {seen.p_value:.2g})",
        )
    bias = groups.position_bias
    if bias.value is not None and abs(bias.value) >= 0.1 and (bias.low or 0.0) * (bias.high or 0.0) > 0:
        place = "first" if bias.value > 0 else "second"
        flag(f"prefers the {place}", f"position bias {bias}: the video shown {place} wins whatever it is")
    if groups.cycles.value is not None and groups.cycles.value >= 0.15:
        flag("goes in circles", f"{groups.cycles.value:.0%} of the triples are cycles; a coin has 25 %")
    if zero.value is not None and zero.value >= 0.5:
        reason = f"{_percent(zero)} of the groups have no spread and so no advantage"
        if saturated:
            reason = f"{ends[end]:.0%} of the scores lie at the {end} end of the range; {reason}"
        flag("saturated" if saturated else "no spread", reason)
    if groups.noise and groups.spread.value is not None and groups.noise >= 0.5 * groups.spread.value:
        flag("noisy", f"asked twice, it differs by {groups.noise:.3g}; within a group by {groups.spread.value:.3g}")
    if found.localisation.found is not None and not found.localisation.localises:
        flag("does not localise", f"{found.localisation.reason}; use uniform advantages", fails=False)
    if seen.reacts:
        if grey is not None and (grey.as_well.low or 0.0) > 0.5:
            reason = f"grey frames score at least as well as the clip in {_percent(grey.as_well)}"
            flag("rewards grey frames", f"{reason}; add a reward that they do not please", fails=False)
        for name, one in found.nuisances.items():
            if one.share_of_drop is not None and one.share_of_drop >= 0.5:
                reason = f"it moves the reward by {one.share_of_drop:.0%} of what a defect does"
                flag(f"moved by {name.replace('_', ' ')}", reason, fails=False)
    return tuple(sorted(flags, key=lambda each: not each.fails))


def sentences(report: AuditReport) -> list[str]:
    """The verdict in plain English, the conclusion first."""
    found, seen, where = report.findings, report.findings.perception, report.findings.localisation
    if report.passes:
        count = len(report.flags)
        doubts = f", with {count} reservation{'s' if count > 1 else ''}" if count else ""
        lines = [f"{report.reward} passes{doubts}."]
    else:
        names = ", ".join(flag.name for flag in report.flags if flag.fails)
        lines = [f"{report.reward} should not be trained on as it is: {names}."]
    lines += [f"{flag.name[0].upper()}{flag.name[1:]}: {flag.reason}." for flag in report.flags]
    if seen.falls.n:
        lines.append(f"It falls in {_percent(seen.falls)} of {seen.falls.n} pairs, by {seen.drop} on average.")
    if where.localises:
        lines.append(f"It localises ({where.reason}); local advantages may use its boxes.")
    elif where.found is None:
        lines.append(f"Localisation was not measured: {where.reason}.")
    if found.groups.spread.value is not None:
        noise = "" if found.groups.noise is None else f", against {_number(found.groups.noise)} when it is asked twice"
        lines.append(
            f"Within a group of up to {found.groups.size} it spreads by {found.groups.spread.value:.3f}{noise}; "
            f"{_percent(found.groups.zero_std)} of {found.groups.groups} groups have no spread."
        )
    else:
        lines.append("The spread within groups was not measured: no prompt has two videos with a score.")
    if found.cost is not None:
        cost = found.cost
        tokens = "" if cost.tokens_per_video is None else f" and {cost.tokens_per_video:.0f} tokens"
        lines.append(
            f"A video takes {cost.seconds_per_video:.2f} s ({cost.cpu_seconds_per_video:.2f} s of CPU here){tokens}; "
            f"a Flow-GRPO run of {cost.steps} steps × {cost.prompts_per_step} prompts × {cost.group_size} videos "
            f"would spend {cost.seconds / 3600:.1f} hours on judging."
        )
    return lines


def table_rows(report: AuditReport) -> list[tuple[str, str, str]]:
    """(part, measure, value) of every number."""
    found = report.findings
    seen, where, groups = found.perception, found.localisation, found.groups
    rows = [
        ("perception", "falls with a defect", f"{seen.falls}, n = {seen.falls.n}"),
        ("perception", "rises / ties / without a score", f"{seen.rises} / {seen.ties} / {seen.unscored}"),
        ("perception", "mean drop", str(seen.drop)),
    ]
    for name, curve in seen.curve.items():
        about = name.replace("_s", " in s,")
        rows += [("perception", f"falls, {about} {level}", f"{one}, n = {one.n}") for level, one in curve.items()]
    if where.found is not None:
        rows.append(("localisation", "defects judged abnormal, with a window", str(where.found)))
        rows += _agreement_rows("window", where.time) + _agreement_rows("boxes", where.space)
        rows.append(("localisation", "spatial IoU on common frames (Eq. 5)", str(where.spatial_iou)))
    for name, one in found.nuisances.items():
        of_drop = "" if one.share_of_drop is None else f", {one.share_of_drop:.0%} of a defect's drop"
        value = "no score" if one.change.value is None else f"{one.change}{of_drop}"
        rows.append(("nuisances", f"{name.replace('_', ' ')}: mean change", _without(value, one.unscored)))
    for name, one in found.blind.items():
        value = "no score" if one.as_well.value is None else f"{one.as_well}, mean change {one.change}"
        rows.append(("blind", f"{name.replace('_', ' ')}: at least as high", _without(value, one.unscored)))
    rows += [
        ("as a reward", "spread within a group", str(groups.spread)),
        ("as a reward", "spread of one question asked twice", _number(groups.noise)),
        ("as a reward", "groups without spread", f"{groups.zero_std}, n = {groups.groups}"),
        ("as a reward", "tied pairs within groups", _number(groups.ties)),
        ("as a reward", "scores at the upper / lower end", f"{_number(groups.top)} / {_number(groups.bottom)}"),
    ]
    if groups.position_bias.value is not None:
        rows.append(("as a reward", "position bias", str(groups.position_bias)))
        rows.append(("as a reward", "cycles", str(groups.cycles)))
    return rows


def audit_markdown(report: AuditReport) -> str:
    """The sentences and the table."""
    table = ["| part | measure | value [95 % interval] |", "|---|---|---|"]
    table += [f"| {part} | {name} | {value} |" for part, name, value in table_rows(report)]
    return "\n".join([*sentences(report), "", report.shown, "", *table])


def _agreement_rows(name: str, one: TruthAgreement) -> list[tuple[str, str, str]]:
    chance = "" if one.null is None else f"; by chance {one.null:.3f}, p = {one.p_value:.2g}"
    return [
        ("localisation", f"{name}: IoU", f"{one.iou}{chance}"),
        ("localisation", f"{name}: pointing game", str(one.pointing)),
        ("localisation", f"{name}: follows a moved defect", f"{one.follows}, n = {one.follows.n}"),
    ]


def _percent(one: Estimate) -> str:
    return "–" if one.value is None else f"{one.value:.0%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{quantise(value):.3g}"


def _without(value: str, unscored: int) -> str:
    return f"{value}; {unscored} without a score" if unscored else value
