"""The tables of docs/repair.md from a bank that ``repair_bank`` filled: single things, then canvases of k things.

python -m research.experiments.repair_table BANK [BANK …]: rows of all banks together; prints Markdown.
A canvas is k tiles drawn from the bank; its candidates' tiles are drawn independently, so what a
prompt has in common over seeds is left out. Intervals: 95 %, bootstrap over prompts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, grow_and_soften, marked_cells
from cac_align.runs.metrics_log import read_rows

STEPS = 10
"""Denoising steps of a whole sampling."""
CANVASES = 4000
RESAMPLES = 400
SIZES = (1, 2, 4, 8)
WHOLE_STEPS = 7
"""Denoising steps of the arm that makes the whole clip anew."""


PAIRS = (
    ("exact", "shuffled"),
    ("exact", "judge"),
    ("exact", "whole"),
    ("exact", "hard"),
    ("exact", "σ .83"),
    ("exact", "σ .88"),
    ("exact", "σ .95"),
    ("exact", "σ .98"),
)
"""Arms that are compared on the same broken clips."""
MIN_GAIN = 0.05
"""How far the judge's score must rise before a repair is kept, as in ``cac-align repair``."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Clips of the bank, arrays (N). broken: what the expert believes; normal and follows: the truth, before and after
    the expert's repair; whole and whole_broken: the same after the whole clip was made anew.
    """

    broken: np.ndarray
    normal: np.ndarray
    follows: np.ndarray
    mended: np.ndarray
    mended_follows: np.ndarray
    steps: np.ndarray
    whole: np.ndarray
    whole_broken: np.ndarray
    slot: np.ndarray

    def of(self, slots: np.ndarray) -> np.ndarray:
        """Indices of the clips of these slots, one draw after the other."""
        by_slot = {slot: np.flatnonzero(self.slot == slot) for slot in np.unique(self.slot)}
        return np.concatenate([by_slot[slot] for slot in slots])


def read_banks(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The rows of all banks by key."""
    return {row["key"]: row for folder in folders for row in read_rows(folder / "rows.jsonl")}


def interval(values: Sequence[float]) -> str:
    """The text "[low, high]" of bootstrap values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return f"[{low:.2f}, {high:.2f}]"


def rate(rows: Mapping[str, Mapping[str, Any]], keys: Sequence[str], take: Callable[[Mapping[str, Any]], bool]) -> str:
    """A share over rows with its interval, bootstrap over prompts' slots."""
    slots = np.array([int(key[:3]) for key in keys])
    hits = np.array([take(rows[key]) for key in keys], float)
    rng, values = np.random.default_rng(0), []
    names = np.unique(slots)
    for _ in range(RESAMPLES):
        weight = np.bincount(rng.choice(len(names), len(names)), minlength=len(names))[np.searchsorted(names, slots)]
        if weight.sum():
            values.append(float((hits * weight).sum() / weight.sum()))
    return f"{hits.mean():.3f} {interval(values)}"


def single_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per arm: how many broken clips it mends, and how many follow their prompt before and after."""
    lines = [
        "| arm | clips | mended | follow before | follow after | share of the clip | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(key.partition(" ")[2] for key in rows if " " in key and "frames" not in key):
        keys = [key for key in rows if key.endswith(f" {arm}") and not rows[key.partition(" ")[0]]["normal"]]
        if not keys:
            continue
        bases = [key.partition(" ")[0] for key in keys]
        share = np.mean([rows[key]["share"] for key in keys])
        lines.append(
            f"| {arm} | {len(keys)} | {rate(rows, keys, lambda row: row['normal'])} | "
            f"{rate(rows, bases, lambda row: row['follows'])} | {rate(rows, keys, lambda row: row['follows'])} | "
            f"{share:.2f} | {rows[keys[0]]['steps']} of {STEPS} |"
        )
    return "\n".join(lines)


def overlap_text(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How the judge's grown boxes lie on the oracle's, of broken clips that the judge calls abnormal."""
    grid, found = LatentGrid(17, 64, 64, 2, 4), []
    blank = Video.open(np.zeros((17, 64, 64, 3), np.uint8), fps=16.0)
    for row in (row for key, row in rows.items() if " " not in key and not row["normal"] and row["judge_anomalies"]):
        exact, judged = (
            grow_and_soften(marked_cells([Anomaly.from_json(one) for one in row[name]], blank, grid), border=0) > 0
            for name in ("anomalies", "judge_anomalies")
        )
        found.append(((exact & judged).sum() / (exact | judged).sum(), (exact & judged).sum() / exact.sum()))
    iou, covered = np.mean(found, axis=0)
    return f"the judge's masks against the oracle's ({len(found)} clips): IoU {iou:.2f}, covered {covered:.2f}"


def paired_text(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Differences of the shares that two arms mend, on the broken clips that both have, bootstrap over prompts."""
    lines = []
    for one, other in PAIRS:
        keys = [key for key in rows if " " not in key and f"{key} {one}" in rows and f"{key} {other}" in rows]
        keys = [key for key in keys if not rows[key]["normal"]]
        if keys:
            change = {
                key: {"change": rows[f"{key} {one}"]["normal"] - rows[f"{key} {other}"]["normal"]} for key in keys
            }
            text = rate(change, keys, lambda row: row["change"])
            lines.append(f"{one} - {other}, {len(keys)} clips: {text}")
    return "\n".join(lines)


def lengths_text(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """How many clips of other lengths are normal."""
    found = []
    for frames in (33, 65):
        normal = [row["normal"] for key, row in rows.items() if key.startswith(f"{frames} frames")]
        found.append(f"{frames} frames: {sum(normal)} of {len(normal)} normal")
    return ", ".join(found)


def read_tiles(rows: Mapping[str, Mapping[str, Any]], attempts: Sequence[str]) -> Tiles:
    """The oracle as the expert. Clips whose attempts are all there: broken ones are attempted in turn until one is normal."""
    found = []
    for key in (key for key in rows if " " not in key):
        row = last = rows[key]
        steps = 0
        for arm in attempts:
            if last["normal"]:
                break
            if f"{key} {arm}" not in rows:
                last = None
                break
            attempt = rows[f"{key} {arm}"]
            steps += attempt["steps"]
            last = attempt if attempt["normal"] else last  # an attempt that does not mend is not kept
        if last is not None:
            whole = rows[f"{key} whole"]["normal"]
            after = (last["normal"], last["follows"], steps, whole, not whole, int(key[:3]))
            found.append((not row["normal"], row["normal"], row["follows"], *after))
    return Tiles(*(np.array(column) for column in zip(*found, strict=True)))


def read_judged_tiles(rows: Mapping[str, Mapping[str, Any]]) -> Tiles:
    """The shipped judge as the expert: it selects, places the boxes, and keeps a repair where its score rises. One attempt."""
    found = []
    for key in (key for key in rows if " " not in key and rows[key]["R"] is not None):
        row = last = rows[key]
        attempt = rows.get(f"{key} judge")
        if attempt is not None and attempt["R"] is not None and attempt["R"] >= row["R"] + MIN_GAIN:
            last = attempt
        remade = rows[f"{key} whole"]
        whole = (remade["normal"], remade["judge"] != "normal")
        after = (last["normal"], last["follows"], attempt["steps"] if attempt else 0, *whole, int(key[:3]))
        found.append((row["judge"] == "abnormal", row["normal"], row["follows"], *after))
    return Tiles(*(np.array(column) for column in zip(*found, strict=True)))


def _all(values: np.ndarray) -> np.ndarray:
    """Whether all tiles of a canvas are true. values: (..., k) -> (...)."""
    return np.asarray(values.all(-1))


def canvas_arms(tiles: Tiles, pool: np.ndarray, k: int, rng: np.random.Generator) -> dict[str, tuple[Any, Any, float]]:
    """(success, following, cost) of each arm on canvases of k tiles from ``pool``; cost 1 is one sampling of the canvas."""
    drawn = pool[rng.integers(len(pool), size=(CANVASES, 8, k))]
    normal, follows = _all(tiles.normal[drawn]), _all(tiles.follows[drawn])
    broken_tiles = tiles.broken[drawn].sum(-1)
    seen_normal = broken_tiles == 0
    arms: dict[str, tuple[Any, Any, float]] = {"one sample": (normal[:, 0].mean(), follows[:, 0].mean(), 1.0)}
    for n in (2, 4, 8):
        best = broken_tiles[:, :n].argmin(1)
        at = (np.arange(CANVASES), best)
        arms[f"Best-of-{n}"] = (normal[at].mean(), follows[at].mean(), float(n))
    again = np.where(seen_normal[:, 0], 0, np.where(broken_tiles[:, 1] < broken_tiles[:, 0], 1, 0))
    at = (np.arange(CANVASES), again)
    arms["one new seed where broken"] = (normal[at].mean(), follows[at].mean(), float(2 - seen_normal[:, 0].mean()))
    first = np.where(seen_normal.any(1), seen_normal.argmax(1), 7)
    at = (np.arange(CANVASES), first)
    arms["new seeds until normal, at most 8"] = (normal[at].mean(), follows[at].mean(), float((first + 1).mean()))
    repaired, kept = _all(tiles.mended[drawn]), _all(tiles.mended_follows[drawn])
    steps = tiles.steps[drawn].max(-1) / STEPS  # all marked tiles at once: as many steps as the slowest tile takes
    better = tiles.whole_broken[drawn[:, 0]].sum(-1) < broken_tiles[:, 0]
    whole = np.where(better, _all(tiles.whole[drawn[:, 0]]), normal[:, 0])
    cost = 1 + WHOLE_STEPS / STEPS * ~seen_normal[:, 0]
    arms["whole canvas"] = (whole.mean(), float("nan"), float(cost.mean()))
    arms["repair"] = (repaired[:, 0].mean(), kept[:, 0].mean(), float((1 + steps[:, 0]).mean()))
    at = (np.arange(CANVASES), broken_tiles[:, :2].argmin(1))
    arms["Best-of-2, then repair"] = (repaired[at].mean(), kept[at].mean(), float((2 + steps[at]).mean()))
    return arms


def canvas_table(tiles: Tiles) -> str:
    """One line per k and arm."""
    slots, everything = np.unique(tiles.slot), np.arange(len(tiles.slot))
    lines = ["| k | arm | success | follows | cost |", "|---|---|---|---|---|"]
    for k in SIZES:
        means = canvas_arms(tiles, everything, k, np.random.default_rng(k))
        spread: dict[str, list[float]] = {name: [] for name in means}
        spread_of_change: list[float] = []
        for number in range(60):
            rng = np.random.default_rng((k, number))
            pool = tiles.of(rng.choice(slots, len(slots)))
            for name, found in canvas_arms(tiles, pool, k, rng).items():
                spread[name].append(found[0])
            spread_of_change.append(spread["repair"][-1] - spread["one new seed where broken"][-1])
        for name, (success, follows, cost) in means.items():
            lines.append(f"| {k} | {name} | {success:.3f} {interval(spread[name])} | {follows:.2f} | {cost:.2f} |")
        change = means["repair"][0] - means["one new seed where broken"][0]
        lines.append(f"| {k} | repair - one new seed | {change:+.3f} {interval(spread_of_change)} | | |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print what the banks hold."""
    rows = read_banks([Path(argument) for argument in arguments])
    base = [key for key in rows if " " not in key]
    print(f"{len(base)} clips of {len({key[:3] for key in base})} prompts: normal "
          f"{rate(rows, base, lambda row: row['normal'])}, follow {rate(rows, base, lambda row: row['follows'])}")  # fmt: skip
    judged = [key for key in base if rows[key]["judge"] is not None]
    broken = [key for key in judged if not rows[key]["normal"]]
    sound = [key for key in judged if rows[key]["normal"]]
    print(f"the judge calls abnormal: broken {rate(rows, broken, lambda row: row['judge'] == 'abnormal')}, "
          f"normal {rate(rows, sound, lambda row: row['judge'] == 'abnormal')}\n")  # fmt: skip
    print(overlap_text(rows))
    print(single_table(rows))
    print(f"\n{paired_text(rows)}\n\n{lengths_text(rows)}")
    for attempts in (["exact"], ["exact", "exact 2"], ["exact", "exact 2", "exact 3"]):
        if all(any(key.endswith(f" {arm}") for key in rows) for arm in attempts):
            tiles = read_tiles(rows, attempts)
            print(f"\nCanvases, {len(attempts)} attempt(s), {len(tiles.slot)} clips:\n\n{canvas_table(tiles)}")
    tiles = read_judged_tiles(rows)
    print(f"\nCanvases, the shipped judge as the expert, {len(tiles.slot)} clips:\n\n{canvas_table(tiles)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
