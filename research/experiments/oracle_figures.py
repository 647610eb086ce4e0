"""What the oracle says about folders of the small Wan's clips: how many are anomalous and by what,
how they move, what of the prompt they miss.

an alignment's run (its evaluation videos, step by step) or any folder with prompts.jsonl → oracle →
one row per folder

    python -m research.experiments.oracle_figures RUN_OR_FOLDER …

The oracle judges what training has made; no reward, recipe or choice of a checkpoint may read this.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cac_align.evaluation.pairing import read_folder
from cac_align.miniature.oracle.oracle import OracleVerdict, judge_clip
from cac_align.miniature.oracle.rates import rates_of

HEAD = "| clips | judged | anomaly rate (95 %) | by kind | oracle displacement, px/s | follows the prompt | missed of it | not judged |\n|---|---|---|---|---|---|---|---|"


def folders_of(path: Path) -> list[Path]:
    """The folders of evaluation videos of an alignment's run, in the order of its steps; any other
    folder is its own.
    """
    return sorted((path / "eval").glob("step-*")) or [path]


def verdicts_of(folder: Path) -> tuple[list[OracleVerdict], int]:
    """(the oracle's verdicts in the order of the clips' names, how many clips it could not judge:
    unreadable, no prompt, outside its world). Raises ``ValueError`` when there is no such folder,
    or no video in it.
    """
    found = read_folder(folder)
    verdicts, left = [], len(found.faults)
    for clip in found.clips:
        try:
            verdicts.append(judge_clip(clip.prompt or "", clip.video))
        except ValueError:
            left += 1
    return verdicts, left


def row(name: str, verdicts: Sequence[OracleVerdict], left: int) -> str:
    """One line of the table. A clip with two kinds of defect counts in both; rates are over the
    clips that could be judged, oracle displacement over those whose entity was seen.
    """
    n = len(verdicts)
    if n == 0:
        return f"| {name} | 0 | – | – | – | – | – | {left} |"
    kinds = Counter(kind for verdict in verdicts for kind in verdict.types)
    missed = Counter(part for verdict in verdicts for part, kept in verdict.follows.items() if not kept)
    told = rates_of(name, verdicts)
    moved = "–" if told.displacement_px_s.value is None else f"{told.displacement_px_s.value:.1f}"
    return f"| {name} | {n} | {told.anomaly_rate} | {_counts(kinds)} | {moved} | {told.follows.value:.3f} | {_counts(missed)} | {left} |"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "–"


def main(arguments: Sequence[str]) -> int:
    """``oracle_figures RUN_OR_FOLDER …``: prints the table, a line as soon as it is known."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    print(HEAD, flush=True)
    for path in map(Path, arguments):
        for folder in folders_of(path):
            print(row(str(folder.relative_to(path.parent)), *verdicts_of(folder)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
