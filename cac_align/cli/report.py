"""`cac-align report`: one self-contained HTML page, of videos before and after, or of a training run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_reward_options, add_verb, check_writable, input_path


def add_report(verbs: Any) -> None:
    """The options of `cac-align report`."""
    about = "one self-contained HTML page: videos before against videos after, or what a training run rewarded"
    parser = add_verb(verbs, "report", run_report, about)
    parser.add_argument(
        "before",
        type=input_path,
        nargs="?",
        help="folder of videos; alone: a Best-of-N folder (a random candidate against the chosen), or a run's folder "
        "with ledger.jsonl",
    )
    parser.add_argument("after", type=input_path, nargs="?", help="folder of videos")
    parser.add_argument(
        "--ledger",
        type=Path,
        help="a run's ledger: the boxed clips beside the advantages its host gave them, step by step",
    )
    parser.add_argument("--clips-per-step", type=int, default=4, help="of a run: clips shown per step")
    parser.add_argument("--max-steps", type=int, default=12, help="of a run: steps shown; the table has all of them")
    parser.add_argument(
        "--out",
        type=Path,
        help="the page to write; an existing one is replaced (default: report.html, of one folder in that folder, "
        "else here; where there is one, report-2.html, …)",
    )
    parser.add_argument(
        "--ratings", type=Path, action="append", default=[], help="ratings.jsonl or ratings.sqlite of the rating page"
    )
    parser.add_argument("--max-pairs", type=int, default=50, help="pairs shown; all of them are counted")
    parser.add_argument("--seed", type=int, default=0, help="chooses the random candidates and the pairs shown")
    add_reward_options(parser, default="what the folders' ledgers hold")


def run_report(options: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from cac_align.evaluation.report.collect import NO_SCORES
    from cac_align.evaluation.report.report import write_report, write_selection_report
    from cac_align.rewards.reachable import load_reachable
    from cac_align.runs.progress import progress_callback

    if options.overrides and options.reward is None:
        raise ValueError(f"--set {options.overrides[0]} overrides a recipe's key; give the recipe with --reward")
    ledger = _run_ledger(options)
    check_writable("--out", options.out)
    if options.out is None:
        alone = options.before if options.after is None else None
        home = ledger.parent if ledger is not None else alone if alone is not None and alone.is_dir() else Path()
        options.out = _free_name(home / "report.html")
    if ledger is not None:
        if options.reward or options.ratings:
            raise ValueError(
                "a run's page shows what its ledger holds; leave out --reward and --ratings, or compare two folders"
            )
        print(_report_run(ledger, options))
        return 0
    for path in (options.before, options.after):
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    chosen = None if options.reward is None else load_reachable(options.reward, options.overrides)
    show = progress_callback()
    shared = {"reward": chosen, "ratings": options.ratings, "max_pairs": options.max_pairs, "seed": options.seed}
    shared["progress"] = lambda done, total, what: show(what, done, total)
    if options.after is None:
        made = write_selection_report(options.before, options.out, **shared)
    else:
        made = write_report(options.before, options.after, options.out, **shared)
    for fault in made.faults:
        if fault.kind == NO_SCORES:
            print(f"{fault.kind}: {fault.why}", file=sys.stderr)
    print(options.out)
    return 0


def _free_name(page: Path) -> Path:
    """The page's path, or, where there is one already, the same with a number: report-2.html, …"""
    number, free = 1, page
    while free.exists():
        number += 1
        free = page.with_name(f"{page.stem}-{number}{page.suffix}")
    return free


def _run_ledger(options: argparse.Namespace) -> Path | None:
    """The ledger of the training run to report, or None where the page is about folders of videos.

    It is ``--ledger``, a ledger file, or the ledger in a folder that holds no Best-of-N selection.
    """
    if options.ledger is not None:
        if options.before is not None:
            raise ValueError(
                f"--ledger reports one run by itself; leave out {options.before}, or compare the folders "
                "without --ledger"
            )
        return options.ledger
    if options.before is None:
        raise ValueError("pass the folders BEFORE and AFTER, one Best-of-N or run folder, or --ledger LEDGER")
    if options.after is not None:
        return None
    if options.before.is_file():
        return options.before
    alone = options.before / "ledger.jsonl"
    return alone if alone.is_file() and not (options.before / "selection.jsonl").is_file() else None


def _report_run(ledger: Path, options: argparse.Namespace) -> Path:
    """Write the page of a training run.

    Its table has all steps; clips are shown of the first step, the last, and evenly spaced ones
    between.
    """
    from cac_align.evaluation.pages.evidence_page import Step, write_evidence_page
    from cac_align.evaluation.pages.page import evenly_spaced
    from cac_align.evaluation.pages.run_record import read_run
    from cac_align.plugins.common.evidence import most_informative, read_evidence

    if options.clips_per_step < 1 or options.max_steps < 1:
        raise ValueError(
            "expected --clips-per-step and --max-steps of at least 1, "
            f"received {options.clips_per_step} and {options.max_steps}"
        )
    by_step: dict[int | None, list[Any]] = {}
    for item in read_evidence(ledger):
        by_step.setdefault(item.step, []).append(item)
    numbers = sorted(by_step, key=lambda number: (number is not None, number or 0))
    shown = set(evenly_spaced(range(len(numbers)), options.max_steps)) | {len(numbers) - 1}
    steps = [
        Step(
            number, by_step[number], most_informative(by_step[number], options.clips_per_step) if place in shown else []
        )
        for place, number in enumerate(numbers)
    ]
    return write_evidence_page(steps, options.out, root=ledger.parent, run=read_run(ledger.parent))
