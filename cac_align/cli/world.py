"""`cac-align world`: clips of the miniature's rendered world as mp4 files with exact records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_verb, check_writable

KNOWN_WORLD = "playground"
"""The world that the shipped judges know."""


def add_world(verbs: Any) -> None:
    """The options of `cac-align world`."""
    about = "render clips of the miniature's world with exact records, half of them normal, half anomalous"
    parser = add_verb(verbs, "world", run_world, about)
    parser.add_argument("--n", type=int, required=True, help="how many clips, an even number")
    parser.add_argument("--seed", type=int, default=2_000_000, help="first seed; held-out seeds start at 2000000")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--world",
        choices=("playground", "studio", "full"),
        default=KNOWN_WORLD,
        help="what the clips hold; the shipped judges know the playground only",
    )


def run_world(options: argparse.Namespace) -> int:
    """Render the clips and print the path of their records."""
    from cac_align.miniature.world.settings import WORLDS
    from cac_align.miniature.world.world import write_world
    from cac_align.runs.progress import progress_bar

    check_writable("--out", options.out, folder=True)
    if options.world != KNOWN_WORLD:
        print(f"note: {unknown_world(options.world)}", file=sys.stderr, flush=True)
    with progress_bar(options.n, "rendering", "clip") as bar:
        records = write_world(options.n, options.seed, options.out, WORLDS[options.world], bar.update)
    print(records)
    return 0


def unknown_world(name: str) -> str:
    """One sentence about clips of a world that the shipped judges do not know."""
    return (
        f"the shipped judges do not know the {name} world and give its clips no score; "
        f"they know the {KNOWN_WORLD}, which is the default"
    )
