"""The rows of the paper's Table 3, and the table in Markdown that the miniature's results make.

results (a line per variant and training seed) → table → ablations.md

Source: CaC (arXiv 2605.11723) Sec. 4.3, Table 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cac_align.training.terms import TERM_NAMES


@dataclass(frozen=True)
class Variant:
    """One row of the table. stages: which are run, in order; none: the start weights as they are.
    turns: how stages 2 and 3 and the evaluation ask. without: the term of Eq. 6 that has weight 0
    in stage 3. paper: overall accuracy in Table 3.
    """

    name: str
    title: str
    paper: float
    stages: tuple[int, ...] = (1, 2, 3)
    turns: int = 2
    without: str = ""

    def __post_init__(self) -> None:
        if self.without and self.without not in TERM_NAMES:
            raise ValueError(f"without must be one of {', '.join(TERM_NAMES)}, received {self.without!r}")


VARIANTS: tuple[Variant, ...] = (
    Variant("full", "full recipe", 0.817),
    Variant("untrained-single-turn", "start weights, single turn", 0.514, stages=(), turns=1),
    Variant("untrained", "start weights, two turns", 0.537, stages=()),
    Variant("no-stage-1", "no stage 1 (single frames)", 0.701, stages=(2, 3)),
    Variant("no-stage-2", "no stage 2 (multi-frame SFT)", 0.651, stages=(1, 3)),
    Variant("no-stage-3", "no stage 3 (two-turn GRPO)", 0.674, stages=(1, 2)),
    Variant("single-turn", "stages 2 and 3 in a single turn", 0.734, turns=1),
    Variant("no-temporal", "without temporal IoU reward", 0.629, without="temporal"),
    Variant("no-spatial", "without spatial IoU reward", 0.716, without="spatial"),
    Variant("no-type", "without type IoU reward", 0.710, without="type"),
)
"""The rows of Table 3, the full recipe first."""

COLUMNS: tuple[tuple[str, str], ...] = (
    ("accuracy", "right_of_all"),
    ("temporal IoU", "temporal_iou"),
    ("spatial IoU", "spatial_iou"),
    ("recall, < 1 s and < 20 %", "recall_sparse"),
    ("AUROC of R", "auroc"),
    ("no verdict", "no_verdict"),
)
"""A column's title and the figure of ``judge_figures.evaluate`` that stands in it (no_verdict as a
share of the clips).
"""


def table(variants: Sequence[Variant], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table: a row per variant, means over the seeds that have figures; "stopped" or
    "open" where none has.

    "minus full": accuracy minus that of the full recipe of the same training seed (of start
    weights: minus all of its seeds).
    """
    titles = ["variant", "paper", *(title for title, _ in COLUMNS), "accuracy minus full", "seeds"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    full = {
        row["seed"]: row["figures"]["right_of_all"] for row in rows if row["variant"] == "full" and "figures" in row
    }
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant.name]
        measured = [row["figures"] for row in own if "figures" in row]
        if measured:
            cells = [_cell(measured, figure) for _, figure in COLUMNS]
        else:
            cells = ["stopped" if own else "open"] * len(COLUMNS)
        apart = [
            row["figures"]["right_of_all"] - reference
            for row in own
            if "figures" in row and variant.name != "full"
            for seed, reference in full.items()
            if row["seed"] in (None, seed)
        ]
        cells.append(_told(apart, len(measured) if variant.stages else len(full), "+"))
        seeds = str(len(measured)) if len(measured) == len(own) else f"{len(measured)} of {len(own)}"
        seeds = "–" if own and not variant.stages else seeds
        lines.append(f"| {variant.title} | {variant.paper:.3f} | " + " | ".join(cells) + f" | {seeds} |")
    return lines


def _cell(measured: Sequence[Mapping[str, Any]], figure: str) -> str:
    """Of the figures that are defined (no anomalous clip was caught, say: no IoU)."""
    values = [
        row[figure] / (row["clips"] if figure == "no_verdict" else 1) for row in measured if row[figure] is not None
    ]
    return _told(values, len(measured))


def _told(values: Sequence[float], of: int, sign: str = "") -> str:
    """Mean ± sd (n − 1; of one value no sd), "(k of n)" where some of the ``of`` values are
    missing, "–" where all are. sign: as in a format.
    """
    if not values:
        return "–"
    sd = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    lost = f" ({len(values)} of {of})" if len(values) < of else ""
    return f"{np.mean(values):{sign}.3f}{sd}{lost}"
