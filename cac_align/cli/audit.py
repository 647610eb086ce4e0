"""`cac-align evaluate reward`: is this judge a reward?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_reward_options, add_verb, check_positive, check_writable, stated_domain

GROUPS, GROUP_SIZE = 4, 16
"""Prompts, and videos of each, of the miniature's groups."""


def add_audit(kinds: Any) -> None:
    """The options of `cac-align evaluate reward`."""
    about = (
        "is this judge a reward? what it sees, where it points, what moves it, what it costs; a verdict in sentences"
    )
    parser = add_verb(kinds, "reward", run_audit, about)
    add_reward_options(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--videos",
        nargs="+",
        metavar="VIDEOS",
        help="folders, files or patterns of videos that are fine: defects are put into them",
    )
    source.add_argument(
        "--miniature", action="store_true", help="clips of the miniature's world (default without --videos)"
    )
    parser.add_argument("--n", type=int, default=24, help="pairs of clips with and without a defect")
    parser.add_argument("--seed", type=int, default=0, help="the same seed shows the same clips")
    parser.add_argument("--out", type=Path, help="folder for audit.json (which `align` reads), audit.md and audit.html")
    parser.add_argument("--json", action="store_true", help="JSON instead of sentences and a table")


def run_audit(options: argparse.Namespace) -> int:
    """Audit a reward and print the verdict. Returns 1 where it should not be trained on as it is."""
    from cac_align.cli.video_arguments import expand_videos, listed_prompts
    from cac_align.core.video import Video
    from cac_align.evaluation.audit.pairs import groups_by_prompt
    from cac_align.evaluation.audit.real_pairs import pairs_from_videos
    from cac_align.evaluation.audit.run import audit_reward
    from cac_align.evaluation.audit.verdict import audit_markdown
    from cac_align.evaluation.pages.audit_page import write_audit_page
    from cac_align.miniature.audit_pairs import miniature_groups, miniature_pairs
    from cac_align.rewards.build import unloaded_reward
    from cac_align.rewards.reachable import check_reachable, load_reachable
    from cac_align.runs.files import atomic_write
    from cac_align.runs.progress import progress_bar

    check_positive("--n", options.n)
    check_writable("--out", options.out, folder=True)
    paths = expand_videos(options.videos) if options.videos else []
    check_reachable(unloaded_reward(options.reward, options.overrides))
    if options.videos:
        prompts = listed_prompts(paths)
        with progress_bar(options.n, "injecting", "pair") as bar:
            pairs = pairs_from_videos(
                paths, prompts or [""] * len(paths), options.n, seed=options.seed, progress=bar.update
            )
        groups = groups_by_prompt(prompts, [Video.open(path) for path in paths]) if prompts else []
        shown = f"{len(pairs)} pairs with defects injected into {len(paths)} videos"
        if len(pairs) < options.n:
            print(f"{len(pairs)} of {options.n} pairs: the videos gave no more", file=sys.stderr)
    else:
        pairs = miniature_pairs(options.n, options.seed)
        groups = miniature_groups(GROUPS, GROUP_SIZE, options.seed)
        shown = f"{len(pairs)} pairs of the miniature's world, {GROUPS} groups of {GROUP_SIZE}"
    reward = load_reachable(options.reward, options.overrides)
    with stated_domain(reward), progress_bar(None, "judging", "video") as bar:
        report = audit_reward(reward, pairs, groups, f"Shown: {shown}, seed {options.seed}.", progress=bar.update)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        atomic_write(options.out / "audit.json", json.dumps(report.to_json(), indent=1))
        atomic_write(options.out / "audit.md", audit_markdown(report) + "\n")
        print(f"written to {write_audit_page(report, options.out / 'audit.html')}", file=sys.stderr)
    print(json.dumps(report.to_json(), indent=1) if options.json else audit_markdown(report))
    return 0 if report.passes else 1
