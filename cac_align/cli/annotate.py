"""`cac-align annotate`: a local web page on which people rate videos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_verb, port_number


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


def run_annotate(options: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    from cac_align.evaluation.human.app import serve_rating_page

    for folder in options.folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    serve_rating_page(
        options.folders,
        rater=options.rater,
        database=options.database,
        host=options.host,
        port=options.port,
        seed=options.seed,
    )
    return 0
