"""`cac-align evaluate vbvr`: VBVR-Bench by its own package."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_verb, input_path


def add_vbvr(kinds: Any) -> None:
    """The options of `cac-align evaluate vbvr`."""
    parser = add_verb(kinds, "vbvr", run_vbvr, "VBVR-Bench by its own package, with the scoring that you name")
    parser.add_argument("folder", type=input_path, help="videos, as SPLIT/TASK/INDEX.mp4")
    parser.add_argument("--ground-truth", type=Path, required=True, help="its data, as SPLIT/TASK/INDEX/")
    parser.add_argument(
        "--scoring",
        choices=("task_specific", "weighted"),
        required=True,
        help="the task's rule alone (its run_evaluation.py), or five weighted parts (its evaluate.py)",
    )
    parser.add_argument("--json", action="store_true", help="JSON with one row per video instead of a table")


def run_vbvr(options: argparse.Namespace) -> int:
    """Print the means. Returns 1 where a video has no score."""
    from cac_align.evaluation.vbvr.score import score_vbvr
    from cac_align.runs.progress import progress_callback

    show = progress_callback("video")
    report = score_vbvr(
        options.folder,
        options.ground_truth,
        options.scoring,
        progress=lambda done, total: show("VBVR-Bench", done, total),
    )
    if options.json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print(f"VBVR-Bench, scoring {report.scoring}\n\n| split | videos | mean |\n|---|---|---|")
        for name, mean in report.means().items():
            print(f"| {name} | {mean.n} | {mean} |")
    for row in report.rows:
        if row.error is not None:
            print(f"{row.split}/{row.task}/{row.index}: no score: {row.error}", file=sys.stderr)
    return 1 if report.unscored else 0
