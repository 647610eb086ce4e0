"""`cac-align annotate`: a local web page on which people rate videos."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_set_option, add_verb, check_writable, port_number


def add_annotate(verbs: Any) -> None:
    """The options of `cac-align annotate`."""
    about = "a local page where people rate videos by keyboard, without knowing which model made them"
    parser = add_verb(verbs, "annotate", run_annotate, about)
    parser.add_argument("folders", type=Path, nargs="+", help="folder of videos, or the two folders before and after")
    parser.add_argument("--rater", help="whose page opens at / (default: the page asks)")
    parser.add_argument("--database", type=Path, help="where every action is kept (default: beside the videos)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--port", type=port_number, default=8017, help="port to bind")
    parser.add_argument("--seed", type=int, default=0, help="shuffles the order and the sides")
    parser.add_argument(
        "--queue",
        type=Path,
        metavar="LEDGER",
        help="a judge's scores (ledger, or `score --json`): videos without a score first, then those that the judge is "
        "least sure of (|log-odds|, the smallest first); with --reward: where its scores are kept",
    )
    parser.add_argument("--reward", help="recipe with a two-turn cac in it that scores the videos for this order")
    add_set_option(parser)


def run_annotate(options: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    from cac_align.evaluation.human.app import serve_rating_page

    for folder in options.folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    log_odds = _queue(options)
    serve_rating_page(
        options.folders,
        rater=options.rater,
        database=options.database,
        host=options.host,
        port=options.port,
        seed=options.seed,
        log_odds=log_odds,
    )
    return 0


def _queue(options: argparse.Namespace) -> dict[Path, float] | None:
    """The log-odds that order the videos; None where the order is to be random."""
    from cac_align.evaluation.human.uncertainty import judged_log_odds, source_clips, stored_log_odds

    if options.overrides and options.reward is None:
        raise ValueError("--set overrides keys of --reward; name the recipe")
    if options.queue is None and options.reward is None:
        return None
    clips = source_clips(options.folders)
    queue: Path | None = options.queue
    if queue is not None and options.reward is None:
        found = stored_log_odds(queue, clips)
    else:
        from cac_align.rewards.build import load_cac, unloaded_reward
        from cac_align.rewards.ledger import Ledger
        from cac_align.rewards.reachable import check_reachable
        from cac_align.runs.progress import progress_bar

        check_writable("--queue", queue)
        check_reachable(unloaded_reward(options.reward, options.overrides))
        ledger = None if queue is None else Ledger(queue)
        judge = load_cac(options.reward, options.overrides, deferred=ledger is not None)
        with progress_bar(len(clips), "judging") as bar:
            found = judged_log_odds(judge, clips, ledger, lambda done, total: bar.update(done - bar.n))
    print(
        f"the judge's least certain videos first: {len(clips) - len(found)} without a score, then {len(found)} by "
        "|log-odds|",
        file=sys.stderr,
    )
    return found
