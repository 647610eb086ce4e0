"""`cac-align serve`: a reward as an HTTP service."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_reward_options, add_verb, check_positive, port_number, stated_domain


def add_serve(verbs: Any) -> None:
    """The options of `cac-align serve`."""
    about = "serve a reward over HTTP: its own API, UniRL's /score, Flow-Factory's /compute"
    parser = add_verb(verbs, "serve", run_serve, about)
    add_reward_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind; any address but loopback needs CAC_ALIGN_TOKEN"
    )
    parser.add_argument("--port", type=port_number, default=8000, help="port to bind; 0 takes a free one")
    parser.add_argument(
        "--fps", type=float, default=16.0, help="frame rate of videos that arrive without one, as hosts' videos do"
    )
    parser.add_argument(
        "--root", dest="roots", action="append", type=Path, default=[], help="folder whose videos may be named by path"
    )
    parser.add_argument("--ledger", type=Path, help="file that keeps every judgement and answers repeated requests")


def run_serve(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    from cac_align.rewards.build import load_reward
    from cac_align.rewards.ledger import Ledger
    from cac_align.rewards.reachable import check_reachable
    from cac_align.serving.server import listening_socket, serve
    from cac_align.serving.service import ServiceSettings

    check_positive("--fps", options.fps)
    settings = ServiceSettings(token=os.environ.get("CAC_ALIGN_TOKEN"), roots=tuple(options.roots), fps=options.fps)
    listening_socket(options.host, options.port, settings).close()
    if options.ledger is not None:
        Ledger(options.ledger)
    reward = load_reward(options.reward, options.overrides)  # all of this is wrong or right without a model
    try:
        check_reachable(reward)
    except ValueError as error:  # said, and no reason to end: /health tells hosts when it is ready
        print(f"not ready before its judge's server answers:\n{error}", file=sys.stderr)
    with stated_domain(reward):
        serve(reward, host=options.host, port=options.port, settings=settings, ledger=options.ledger)
    return 0
