"""The before/after report: one HTML file that opens offline and begins with what changed and in
which videos.

The page embeds its videos (small previews, base64), frames, plots, style and one script; its
security policy lets nothing else run or load. Its size is bounded: every pair has an equal share
of ``MAX_BYTES``, and a video that does not fit is shown as frames, which the page says. Videos
that are unpaired, unreadable or unscored are listed by name.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.evaluation.pages.page import COMPONENT_TITLES, write_page
from cac_align.evaluation.pages.player import MAX_BYTES
from cac_align.evaluation.pairing import Fault, Pairing, pair_selection, pair_up, read_folder
from cac_align.evaluation.report.clip_record import ClipRecord, ClipRecordPair, ReportProgress
from cac_align.evaluation.report.clip_scores import distinct_provenances
from cac_align.evaluation.report.clip_view import ClipView, measure_luminance, view_clip
from cac_align.evaluation.report.collect import collect_clip_records
from cac_align.evaluation.report.comparison import compare_pairs, gains
from cac_align.evaluation.report.measure import Measure, ReportComparison
from cac_align.evaluation.report.plots import distributions
from cac_align.evaluation.report.report_warnings import summary_sentence
from cac_align.evaluation.vbench.run import VBenchRow
from cac_align.rewards.normalise import TIE
from cac_align.rewards.reward import Reward

TOP = 3
"""Number of wins and of losses shown first."""


@dataclass(frozen=True)
class PairCard:
    """A pair as the page shows it. gain: positive is better after, None where unknown."""

    records: ClipRecordPair
    gain: float | None
    sides: tuple[ClipView, ClipView]


def write_report(
    before: str | Path,
    after: str | Path,
    out: str | Path,
    *,
    reward: Reward | None = None,
    ratings: Sequence[str | Path] = (),
    vbench: Sequence[VBenchRow] | None = None,
    max_pairs: int = 50,
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> ReportComparison:
    """Compare two folders of videos, write the page to ``out`` and return its numbers.

    reward: scores all videos. None: the scores in the folders' ledgers and selections.
    ratings: record files of raters, besides the folders' own ``ratings*.jsonl``.
    vbench: rows. None: the folders' ``vbench.jsonl``.
    max_pairs: how many pairs are shown; all are counted.

    Raises ``ValueError`` for folders without a single pair, or a ratings file without ratings.
    """
    folders = [
        read_folder(folder, name)
        for folder, name in zip((before, after), _names(Path(before), Path(after)), strict=True)
    ]
    return write_pairing_report(
        pair_up(*folders),
        [Path(before), Path(after)],
        Path(out),
        reward=reward,
        ratings=ratings,
        vbench=vbench,
        max_pairs=max_pairs,
        seed=seed,
        progress=progress,
    )


def write_selection_report(folder: str | Path, out: str | Path, *, seed: int = 0, **options: Any) -> ReportComparison:
    """The same page for one Best-of-N folder: a random candidate of each prompt against the chosen
    one.

    seed: of the random candidate. options: as for ``write_report``. Raises ``ValueError`` when the
    folder has no ``selection.jsonl``.
    """
    return write_pairing_report(pair_selection(folder, seed=seed), [Path(folder)], Path(out), seed=seed, **options)


def write_pairing_report(
    pairing: Pairing,
    folders: Sequence[Path],
    out: Path,
    *,
    reward: Reward | None = None,
    ratings: Sequence[str | Path] = (),
    vbench: Sequence[VBenchRow] | None = None,
    max_pairs: int = 50,
    seed: int = 0,
    progress: ReportProgress | None = None,
) -> ReportComparison:
    """The page for a given pairing. folders: where stored scores, ratings and VBench rows are
    looked for.
    """
    if max_pairs < 1:
        raise ValueError(f"max_pairs must be at least 1, received {max_pairs}")
    out.parent.mkdir(parents=True, exist_ok=True)
    faults = list(pairing.faults)
    clip_records = collect_clip_records(
        pairing, folders, reward=reward, ratings=[Path(file) for file in ratings], vbench=vbench, faults=faults
    )
    each_bytes = MAX_BYTES // min(len(pairing.pairs), max_pairs) // 2
    everything = len(pairing.pairs) <= max_pairs
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:

        def build_views(chosen: Sequence[ClipRecord]) -> list[ClipView]:
            return _each(
                pool, lambda clip_record: view_clip(clip_record, each_bytes, faults), chosen, "videos", progress
            )

        # Where all pairs are shown, one decoding gives luminance change and previews. Otherwise scores choose them.
        sides = build_views(clip_records) if everything else []
        if not everything:
            _each(pool, lambda clip_record: measure_luminance(clip_record, faults), clip_records, "luminance", progress)
        made = compare_pairs(
            pairing, clip_records, sorted(faults, key=lambda fault: (fault.kind, fault.name)), seed=seed
        )
        label, gain = gains(made)
        ranked = sorted(range(len(made.pairs)), key=lambda index: -(gain[index] or 0.0))
        chosen = list(range(len(made.pairs))) if everything else _both_ends(ranked, max_pairs)
        if not everything:
            sides = build_views(
                [clip_record for index in chosen for clip_record in (made.pairs[index].before, made.pairs[index].after)]
            )
    cards = {
        index: PairCard(made.pairs[index], gain[index], (sides[2 * at], sides[2 * at + 1]))
        for at, index in enumerate(chosen)
    }
    _write(out, made, cards, ranked, label)
    return made


def _names(before: Path, after: Path) -> tuple[str, str]:
    """Names for the two folders: as much of the ends of their paths as tells them apart."""
    first, second = before.resolve(), after.resolve()
    if first == second:
        raise ValueError(
            f"before and after are the same folder, {before}; give two folders, or one of Best-of-N by itself"
        )
    for depth in range(1, max(len(first.parts), len(second.parts)) + 1):
        names = "/".join(first.parts[-depth:]), "/".join(second.parts[-depth:])
        if names[0] != names[1]:
            return names
    raise AssertionError("two different paths differ somewhere")


def _each(
    pool: ThreadPoolExecutor,
    work: Callable[[Any], Any],
    items: Sequence[Any],
    what: str,
    progress: ReportProgress | None,
) -> list[Any]:
    done = []
    for result in pool.map(work, items):
        done.append(result)
        if progress:
            progress(len(done), len(items), what)
    return done


def _both_ends(ranked: Sequence[int], count: int) -> list[int]:
    """Indices of the pairs to show where there are too many: both ends of the ranking."""
    top = (count + 1) // 2
    return [*ranked[:top], *ranked[len(ranked) - (count - top) :]]


# ---- the page -----------------------------------------------------------------------------------------------------


def _write(
    out: Path, made: ReportComparison, cards: Mapping[int, PairCard], ranked: Sequence[int], label: str | None
) -> None:
    wins = [cards[i] for i in ranked if i in cards and (cards[i].gain or 0) >= TIE][:TOP]
    losses = [cards[i] for i in reversed(ranked) if i in cards and (cards[i].gain or 0) <= -TIE][:TOP]
    opened = {id(card) for card in (*wins, *losses)}
    rest = [cards[i] for i in ranked if i in cards and id(cards[i]) not in opened]
    groups: dict[str, list[Fault]] = defaultdict(list)
    for fault in made.faults:
        groups[fault.kind].append(fault)
    write_page(
        out,
        "report.html.jinja",
        package="cac_align.evaluation.report",
        title=f"{made.before} → {made.after}",
        self_contained=True,
        made=made,
        lead=summary_sentence(made),
        tiles=_tiles(made),
        sections=_sections(made),
        ranking=label,
        wins=wins,
        tie=TIE,
        losses=losses,
        rest=rest,
        hidden=len(made.pairs) - len(cards),
        frames_only=sum(side.video is None for card in cards.values() for side in card.sides),
        plot=distributions(
            [
                m
                for m in made.measures
                if m.section in ("Rewards", "Luminance change") or m.key == "vbench/imaging_quality"
            ][:4],
            made.before,
            made.after,
        ),
        shares=_share_bars(made),
        shares_of_change=made.shares_of_change,
        contributions=[(COMPONENT_TITLES.get(name, name), value) for name, value in made.contributions.items()],
        faults=sorted(groups.items()),
        provenances=distinct_provenances(
            [clip_record for row in made.pairs for clip_record in (row.before, row.after)]
        ),
    )


def format_value(measure: Measure, value: float | None, *, signed: bool = False) -> str:
    """A value as text: rates and luminance change in per cent, everything else with three decimals.

    signed: the value is a difference; that of two rates is in percentage points.
    """
    if value is None:
        return "–"
    sign = "+" if signed else ""
    if measure.rate:
        text = f"{100 * value:{sign}.1f}\N{NO-BREAK SPACE}{'points' if signed else '%'}"
    elif measure.key == "luminance_change":
        text = f"{100 * value:{sign}.2f}\N{NO-BREAK SPACE}%"
    else:
        text = f"{value:{sign}.3f}"
    return text.replace("-", "−")


def _tiles(made: ReportComparison) -> list[dict[str, str]]:
    wanted = ("experts", "cac_rate", "cac", "unified", "reward", "luminance_change")
    found = [measure for key in wanted if (measure := made.measure(key)) is not None]
    # Four fit in a row. Luminance change is always one of them: a better rate means little without it.
    chosen = found if len(found) <= 4 else [*found[:3], found[-1]]
    return [
        {
            "before": format_value(measure, measure.before.value),
            "after": format_value(measure, measure.after.value),
            "about": measure.label,
            "verdict": measure.verdict,
        }
        for measure in chosen
    ]


def _sections(made: ReportComparison) -> list[tuple[str, list[dict[str, Any]]]]:
    sections: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for measure in made.measures:
        difference = measure.difference
        reach = max(
            abs(value) for value in (difference.value, difference.low, difference.high, 1e-12) if value is not None
        )
        scale = 46 / reach  # the bar's half width is 50 %
        bar = None
        if difference.low is not None and difference.high is not None and difference.value is not None:
            bar = {
                "left": 50 + scale * difference.low,
                "width": max(scale * (difference.high - difference.low), 0.8),
                "dot": 50 + scale * difference.value,
            }
        sections[measure.section].append(
            {
                "measure": measure,
                "arrow": {True: "↑", False: "↓", None: ""}[measure.higher_is_better],
                "before": format_value(measure, measure.before.value),
                "after": format_value(measure, measure.after.value),
                "difference": format_value(measure, difference.value, signed=True),
                "interval": measure.no_interval
                or " to ".join(format_value(measure, end, signed=True) for end in (difference.low, difference.high)),
                "bar": bar,
                "p": "–"
                if measure.test.p_value is None
                else ("< 0.001" if measure.test.p_value < 0.001 else f"{measure.test.p_value:.3f}"),
                "test": measure.test.name,
            }
        )
    return list(sections.items())


def _share_bars(made: ReportComparison) -> list[tuple[str, float, str]]:
    """(component, per cent, colour) for a stacked bar. A negative share has no width."""
    colours = ("#1864ab", "#0c8599", "#862e9c", "#868e96", "#495057")  # none that means good, bad or no score
    return [
        (COMPONENT_TITLES.get(name, name), 100 * share.value, colours[index % len(colours)])
        for index, (name, share) in enumerate(made.shares.items())
        if share.value is not None
    ]
