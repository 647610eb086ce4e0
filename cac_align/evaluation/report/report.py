"""The before/after report: one HTML file that opens offline and shows, before anything else, what changed and in which videos.

folders → pair_up → read_all (scores, ratings, VBench) + motion → compare → previews and frames per pair → report.html.jinja

The page holds its videos (small previews, base64), frames, plots, style and one script of its own; its security policy lets nothing
else run or load. Its size is bounded: every pair has an equal share of ``MAX_BYTES``, and a video that does not fit is shown as frames,
which the page says. Nothing is left out silently: unpaired, unreadable and unscored videos are listed by name.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cac_align.core.encoding import REPEATABLE
from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import (
    TYPE_COLOURS,
    Picture,
    Span,
    frame_strip,
    shown_anomalies,
    spans,
    write_page,
)
from cac_align.evaluation.pairing import Fault, Pairing, pair_selection, pair_up, read_folder
from cac_align.evaluation.report.comparison import (
    COMPONENTS,
    Comparison,
    Measure,
    PairReading,
    compare,
    counts,
    gains,
    summary,
)
from cac_align.evaluation.report.plots import distributions
from cac_align.evaluation.report.readings import PREVIEW_PX, Progress, Reading, motion, provenances, read_all, smaller
from cac_align.evaluation.vbench.run import Row
from cac_align.rewards.reward import Reward

MAX_BYTES = 28_000_000  # of the page; the plots, tables and rounding take the rest of 30 MB
SMALLER_PX = 224  # longest side of a preview where ``PREVIEW_PX`` does not fit
TOP = 3  # how many wins and losses open the page


@dataclass(frozen=True)
class Side:
    """One clip as the page shows it. video: a data URI, None where it did not fit or was left out."""

    reading: Reading
    title: str
    anomalies: tuple[Anomaly, ...]
    expert_anomalies: tuple[Anomaly, ...]
    verdict: str
    pictures: tuple[Picture, ...]
    spans: tuple[Span, ...]
    expert_spans: tuple[Span, ...]
    duration_s: float
    shape: str
    video: str | None
    overlay: str
    numbers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Card:
    """A pair as the page shows it."""

    row: PairReading
    gain: float | None
    sides: tuple[Side, Side]


def report(
    before: str | Path,
    after: str | Path,
    out: str | Path,
    *,
    reward: Reward | None = None,
    ratings: Sequence[str | Path] = (),
    vbench: Sequence[Row] | None = None,
    max_pairs: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two folders of videos and write the page to ``out``; returns its numbers.

    reward: scores all videos anew; None: the folders' ledgers and selections. ratings: record files of raters, besides the folders'
    own ``ratings*.jsonl``. vbench: rows; None: the folders' ``vbench.jsonl``. max_pairs: how many pairs are shown (all are counted).
    Raises ``ValueError`` for folders without a single pair, or a ratings file without ratings.
    """
    folders = [
        read_folder(folder, name)
        for folder, name in zip((before, after), _names(Path(before), Path(after)), strict=True)
    ]
    return report_pairing(
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


def report_selection(folder: str | Path, out: str | Path, *, seed: int = 0, **options: Any) -> Comparison:
    """The same page for one Best-of-N folder: a random candidate of each prompt (drawn with ``seed``) against the chosen one.

    options: as for ``report``. Raises ``ValueError`` when the folder has no ``selection.jsonl``.
    """
    return report_pairing(pair_selection(folder, seed=seed), [Path(folder)], Path(out), seed=seed, **options)


def report_pairing(
    pairing: Pairing,
    folders: Sequence[Path],
    out: Path,
    *,
    reward: Reward | None = None,
    ratings: Sequence[str | Path] = (),
    vbench: Sequence[Row] | None = None,
    max_pairs: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """The page for a ready pairing; ``folders`` are where stored scores, ratings and VBench rows are looked for."""
    if max_pairs < 1:
        raise ValueError(f"max_pairs must be at least 1, received {max_pairs}")
    out.parent.mkdir(parents=True, exist_ok=True)
    faults = list(pairing.faults)
    readings = read_all(
        pairing, folders, reward=reward, ratings=[Path(file) for file in ratings], vbench=vbench, faults=faults
    )
    each_bytes = MAX_BYTES // min(len(pairing.pairs), max_pairs) // 2
    everything = len(pairing.pairs) <= max_pairs
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:

        def built(chosen: Sequence[Reading]) -> list[Side]:
            return _each(pool, lambda reading: _side(reading, each_bytes, faults), chosen, "videos", progress)

        # Where all pairs are shown, motion and previews come from one decoding; else motion decides nothing, but scores do.
        sides = built(readings) if everything else []
        if not everything:
            _each(pool, lambda reading: _measure_motion(reading, faults), readings, "motion", progress)
        made = compare(pairing, readings, sorted(faults, key=lambda fault: (fault.kind, fault.name)), seed=seed)
        label, gain = gains(made)
        ranked = sorted(range(len(made.readings)), key=lambda index: -(gain[index] or 0.0))
        chosen = list(range(len(made.readings))) if everything else _both_ends(ranked, max_pairs)
        if not everything:
            sides = built(
                [reading for index in chosen for reading in (made.readings[index].before, made.readings[index].after)]
            )
    cards = {
        index: Card(made.readings[index], gain[index], (sides[2 * at], sides[2 * at + 1]))
        for at, index in enumerate(chosen)
    }
    _write(out, made, cards, ranked, label)
    return made


def _names(before: Path, after: Path) -> tuple[str, str]:
    """What the two folders are called: their names, as much of the path as tells them apart."""
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
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Sequence[Any], what: str, progress: Progress | None
) -> list[Any]:
    done = []
    for result in pool.map(work, items):
        done.append(result)
        if progress:
            progress(len(done), len(items), what)
    return done


def _measure_motion(reading: Reading, faults: list[Fault], pixels: np.ndarray | None = None) -> None:
    try:
        reading.motion = motion(reading.clip.video, pixels)
    except ValueError as error:
        faults.append(Fault("no motion", f"{reading.clip.group}/{reading.clip.name}", str(error)))
        return
    if reading.motion is None:
        faults.append(Fault("no motion", f"{reading.clip.group}/{reading.clip.name}", "it has a single frame"))


def _both_ends(ranked: Sequence[int], count: int) -> list[int]:
    """The pairs to show where there are too many: both ends of the ranking, since these are what one has to see."""
    top = (count + 1) // 2
    return [*ranked[:top], *ranked[len(ranked) - (count - top) :]]


# ---- one clip -----------------------------------------------------------------------------------------------------


def _side(reading: Reading, max_bytes: int, faults: list[Fault]) -> Side:
    clip, video = reading.clip, reading.clip.video
    pixels = smaller(video, PREVIEW_PX)
    if reading.motion is None:
        _measure_motion(reading, faults, pixels)
    small = Video(video.fps, video.times_s, pixels.shape[1], pixels.shape[2], video.name, pixels)
    anomalies = shown_anomalies(reading.judgement)
    ratings = [record for record in reading.ratings if counts(record)]
    by_experts = tuple(anomaly for record in ratings for anomaly in record.anomalies)
    drawn = anomalies or by_experts
    pictures = frame_strip(small, drawn, count=6, width_px=168)
    left = max_bytes - sum(len(picture.uri) for picture in pictures)
    return Side(
        reading=reading,
        title=clip.group,
        anomalies=anomalies,
        expert_anomalies=by_experts,
        verdict=_verdict(reading),
        pictures=pictures,
        spans=spans(video, anomalies),
        expert_spans=spans(video, by_experts),
        duration_s=video.duration_s,
        shape=f"{video.width}×{video.height}, {len(video)} frames, {video.fps:g} fps"
        + (f", seed {clip.seed}" if clip.seed is not None else ""),
        video=_preview(pixels, video.times_s, video.fps, left),
        overlay=_overlay(video, drawn),
        numbers=tuple((COMPONENTS.get(key, key), value) for key, value in reading.values.items()),
    )


def _verdict(reading: Reading) -> str:
    said = []
    if reading.judged_abnormal is not None:
        said.append(f"CaC: {'abnormal' if reading.judged_abnormal else 'normal'}")
    ratings = [record for record in reading.ratings if counts(record)]
    if ratings:
        abnormal = sum(record.status == "abnormal" for record in ratings)
        said.append(f"{abnormal} of {len(ratings)} rater{'s' if len(ratings) > 1 else ''}: abnormal")
    return " · ".join(said)


def _overlay(video: Video, anomalies: Sequence[Anomaly]) -> str:
    """What the page's script draws over the playing video: per box its time, place and colour; a box stays until the next one."""
    rows = []
    for anomaly in anomalies:
        frames = sorted(frame for frame in anomaly.boxes if frame < len(video))
        last_s = anomaly.window.end_s + 1 / video.fps if anomaly.window else video.duration_s
        for frame, following in zip(frames, [*frames[1:], None], strict=True):
            until_s = (
                video.times_s[following] if following is not None else max(last_s, video.times_s[frame] + 1 / video.fps)
            )
            for box in anomaly.boxes[frame]:
                rows.append(
                    [round(video.times_s[frame], 4), round(until_s, 4), *box.to_json(), TYPE_COLOURS[anomaly.type]]
                )
    return json.dumps(rows)


def _preview(pixels: UInt8[np.ndarray, "T H W 3"], times_s: Sequence[float], fps: float, max_bytes: int) -> str | None:
    """The video as a data URI of at most ``max_bytes``; None when it does not fit even at the second try."""
    for crf, side_px in ((20 if max(pixels.shape[1:3]) <= 128 else 27, PREVIEW_PX), (33, SMALLER_PX)):
        tried = pixels if side_px >= max(pixels.shape[1:3]) else smaller(Video.open(pixels, fps=1.0), side_px)
        uri = "data:video/mp4;base64," + base64.b64encode(_mp4(tried, times_s, fps, crf)).decode()
        if len(uri) <= max_bytes:
            return uri
    return None


def _mp4(pixels: UInt8[np.ndarray, "T H W 3"], times_s: Sequence[float], fps: float, crf: int) -> bytes:
    """H.264 that every browser plays, in memory, with the source's own time stamps (to the millisecond)."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = pixels.shape[2], pixels.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"crf": str(crf), "preset": "veryfast", **REPEATABLE}
        for time_s, image in zip(times_s, pixels, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


# ---- the page -----------------------------------------------------------------------------------------------------


def _write(out: Path, made: Comparison, cards: Mapping[int, Card], ranked: Sequence[int], label: str | None) -> None:
    wins = [cards[i] for i in ranked if i in cards and (cards[i].gain or 0) > 0][:TOP]
    losses = [cards[i] for i in reversed(ranked) if i in cards and (cards[i].gain or 0) < 0][:TOP]
    opened = {id(card) for card in (*wins, *losses)}
    rest = [cards[i] for i in ranked if i in cards and id(cards[i]) not in opened]
    groups: dict[str, list[Fault]] = defaultdict(list)
    for fault in made.faults:
        groups[fault.kind].append(fault)
    script = Path(__file__).with_name("templates").joinpath("report.js").read_text(encoding="utf-8")
    write_page(
        out,
        "report.html.jinja",
        package=__package__,
        made=made,
        lead=summary(made),
        tiles=_tiles(made),
        sections=_sections(made),
        ranking=label,
        wins=wins,
        losses=losses,
        rest=rest,
        hidden=len(made.readings) - len(cards),
        frames_only=sum(side.video is None for card in cards.values() for side in card.sides),
        plot=distributions(
            [m for m in made.measures if m.section in ("Rewards", "Motion") or m.key == "vbench/imaging_quality"][:4],
            made.before,
            made.after,
        ),
        shares=_share_bars(made),
        shares_of_change=made.shares_of_change,
        contributions=[(COMPONENTS.get(name, name), value) for name, value in made.contributions.items()],
        faults=sorted(groups.items()),
        provenances=provenances([reading for row in made.readings for reading in (row.before, row.after)]),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def shown(measure: Measure, value: float | None, *, signed: bool = False) -> str:
    """A value of a measure for people: rates in per cent, motion in per cent of the range, the rest with three digits."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    if measure.rate:
        text = f"{100 * value:{sign}.1f} %"
    elif measure.key == "motion":
        text = f"{100 * value:{sign}.2f} %"
    else:
        text = f"{value:{sign}.3f}"
    return text.replace("-", "−")


def _tiles(made: Comparison) -> list[dict[str, str]]:
    wanted = ("experts", "cac_rate", "cac", "unified", "reward", "motion")
    found = [measure for key in wanted if (measure := made.measure(key)) is not None]
    # Four fit in a row; motion is always one of them, because a better rate means little without it.
    chosen = found if len(found) <= 4 else [*found[:3], found[-1]]
    return [
        {
            "before": shown(measure, measure.before.value),
            "after": shown(measure, measure.after.value),
            "about": measure.label,
            "verdict": measure.verdict,
        }
        for measure in chosen
    ]


def _sections(made: Comparison) -> list[tuple[str, list[dict[str, Any]]]]:
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
                "before": shown(measure, measure.before.value),
                "after": shown(measure, measure.after.value),
                "difference": shown(measure, difference.value, signed=True),
                "interval": measure.no_interval
                or f"{shown(measure, difference.low, signed=True)} to {shown(measure, difference.high, signed=True)}",
                "bar": bar,
                "p": "–"
                if measure.test.p_value is None
                else ("< 0.001" if measure.test.p_value < 0.001 else f"{measure.test.p_value:.3f}"),
                "test": measure.test.name,
            }
        )
    return list(sections.items())


def _share_bars(made: Comparison) -> list[tuple[str, float, str]]:
    """(component, per cent, colour) of a stacked bar. Shares sum to 1; one below 0 pulls against the total and has no width."""
    colours = ("#1864ab", "#e67700", "#2b8a3e", "#862e9c", "#495057")
    return [
        (COMPONENTS.get(name, name), 100 * share.value, colours[index % len(colours)])
        for index, (name, share) in enumerate(made.shares.items())
        if share.value is not None
    ]
