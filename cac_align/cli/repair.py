"""`cac-align repair`: mend the part of each video that the judge marks, and keep it only where it is better."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.cli.options import (
    add_set_option,
    add_verb,
    check_positive,
    check_writable,
    input_path,
    stated_domain,
)

if TYPE_CHECKING:
    from cac_align.generation.repair.build import RepairRecipe
    from cac_align.generation.repair.one_video import RepairResult

FAILED = ("unjudged", "unfit")
"""What can become of a video that counts as a failure: no verdict, or a checkpoint that cannot make such a video."""


def add_repair(verbs: Any) -> None:
    """The options of `cac-align repair`."""
    about = "mend the part of a video that the judge marks, and keep the rest"
    parser = add_verb(verbs, "repair", run_repair, about)
    parser.add_argument("videos", type=input_path, nargs="*", metavar="VIDEO", help="video files, folders or patterns")
    parser.add_argument(
        "--selection", type=Path, metavar="DIR", help="the winners of a Best-of-N that lie in DIR/chosen"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the same command resumes in it")
    parser.add_argument("--prompt", help="the prompt that all these videos were made from")
    parser.add_argument(
        "--prompts", type=Path, help="prompts per video: one line each, or JSON Lines of video and prompt"
    )
    parser.add_argument(
        "--fps", type=float, help="the videos' true frame rate where their container is wrong (Wan: 16)"
    )
    parser.add_argument(
        "--recipe", type=Path, help="YAML with generator:, repair:, reward: and guard: (default: the miniature)"
    )
    parser.add_argument("--json", action="store_true", help="print repairs.jsonl instead of a table")
    add_set_option(parser)


def run_repair(options: argparse.Namespace) -> int:
    """Repair the videos, write the page and print what became of each.

    Returns 1 where a video could not be judged or repaired here.
    """
    from cac_align.cli.score import video_prompts
    from cac_align.cli.video_arguments import expand_videos, listed_prompts
    from cac_align.config import read_recipe
    from cac_align.generation.chosen import CHOSEN
    from cac_align.generation.repair.build import RepairRecipe

    check_positive("--fps", options.fps)
    check_writable("--out", options.out, folder=True)
    if bool(options.videos) == (options.selection is not None):
        raise ValueError("pass either VIDEO… or --selection DIR, the folder of a Best-of-N")
    given = options.videos or [options.selection / CHOSEN]
    if not Path(given[0]).exists() and options.selection is not None:
        raise ValueError(f"{given[0]}: no such folder; --selection takes the --out of `cac-align best-of-n`")
    recipe = read_recipe(RepairRecipe, options.recipe, options.overrides, folder="repair")
    paths = expand_videos(given)
    listed = listed_prompts(paths) if options.prompt is None and options.prompts is None else None
    prompts = listed or video_prompts(paths, options.prompt, options.prompts)
    results = repair_files(paths, prompts, recipe, options.out, fps=options.fps)
    if options.json:
        print("\n".join(json.dumps(result.to_json(), ensure_ascii=True) for result in results))
    else:
        print(repair_table(results))
    failed = sum(result.status in FAILED for result in results)
    if failed:
        print(
            f"{failed} of {len(results)} videos could not be judged or repaired; their reasons stand above",
            file=sys.stderr,
        )
    return 1 if failed else 0


def repair_files(
    paths: Sequence[str], prompts: Sequence[str], recipe: RepairRecipe, out: Path, *, fps: float | None = None
) -> list[RepairResult]:
    """Repair video files as a recipe says, and write the page ``out/repair.html``.

    Raises ``ValueError`` for a file that cannot be read, before any model is loaded.
    """
    from cac_align.core.video import Video
    from cac_align.evaluation.pages.repair_page import write_repair_page
    from cac_align.generation.repair.assess import Assessor
    from cac_align.generation.repair.build import load_backend, load_guards
    from cac_align.generation.repair.loop import repair_videos
    from cac_align.rewards.build import load_reward
    from cac_align.rewards.ledger import Ledger
    from cac_align.rewards.reachable import check_reachable
    from cac_align.runs.metrics_log import read_rows
    from cac_align.runs.progress import progress_bar, show_note

    videos = [Video.open(path, fps=fps) for path in paths]
    judge, guards = load_reward(recipe.reward), load_guards(recipe.guard)
    for reward in (judge, *guards.values()):
        check_reachable(reward)
    out.mkdir(parents=True, exist_ok=True)
    assessor = Assessor(judge, guards, Ledger(out / "ledger.jsonl"))
    with stated_domain(judge, *guards.values()), progress_bar(len(videos), "repairing") as bar:
        results = repair_videos(
            videos,
            prompts,
            load_backend(recipe),
            assessor,
            recipe.repair,
            out,
            done=lambda result: bar.update(1),
            report=partial(show_note, bar),
        )
    rows = read_rows(out / "attempts.jsonl")
    provenances = [reward.provenance for reward in (judge, *guards.values())]
    page = write_repair_page(results, rows, out / "repair.html", fps=fps, provenances=provenances)
    print(f"repaired videos: {out / 'videos'}\npage: {page}", file=sys.stderr)
    return results


def repair_table(results: Sequence[RepairResult]) -> str:
    """Two lines per video: what became of it, its scores and costs, and why."""
    lines = []
    for result in results:
        scores = " → ".join("none" if score is None else f"{score:.4f}" for score in (result.before, result.after))
        costs = result.costs
        cost = f"{result.attempts} attempts, {costs.frame_steps} frames × steps, {costs.judge_calls} judge calls"
        lines.append(f"{result.status:<10} [{scores}]  {result.path}\n{'':<11}{result.reason} ({cost})")
    return "\n".join(lines)
