"""`cac-align best-of-n`: candidates for each prompt, the best of them by a reward, and a page."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_set_option, add_verb, check_positive, check_writable, stated_domain
from cac_align.core.prompts import read_prompts


def add_best_of_n(verbs: Any) -> None:
    """The options of `cac-align best-of-n`."""
    about = "generate N candidates per prompt, keep the best, and say why"
    parser = add_verb(verbs, "best-of-n", run_best_of_n, about)
    parser.add_argument(
        "--prompts",
        type=Path,
        help="one prompt per line, or JSON Lines with a prompt field; may be left out where --candidates names them",
    )
    parser.add_argument("--n", type=int, help="candidates per prompt (default: the recipe's, 5; of --candidates: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the same command resumes in it")
    parser.add_argument("--seed", type=int, help="first seed (default: the recipe's, 0)")
    parser.add_argument("--recipe", type=Path, help="YAML with generator: and reward: (default: the miniature)")
    parser.add_argument("--reward", help="reward recipe YAML, name, or module:Name, in place of the recipe's reward")
    parser.add_argument(
        "--candidates",
        type=Path,
        help="choose among these instead of generating: a table (JSON Lines or CSV of prompt and video), or a folder "
        "with one, with a sub-folder per prompt, or with videos named by prompt; folders of images are videos too",
    )
    parser.add_argument(
        "--fps", type=float, help="true frame rate of --candidates: of images, or where their container is wrong"
    )
    parser.add_argument(
        "--repair",
        nargs="?",
        const="",
        metavar="RECIPE",
        help="repair the winners afterwards, into OUT/repair (RECIPE: of `cac-align repair`; default: the miniature)",
    )
    parser.add_argument("--json", action="store_true", help="print selection.jsonl instead of a table")
    add_set_option(parser)


def run_best_of_n(options: argparse.Namespace) -> int:
    """Choose, write the page and print the selections.

    Returns 1 where a prompt has no candidate with a score.
    """
    from cac_align.config import read_recipe
    from cac_align.evaluation.pages.selection_page import VIDEOS_BESIDE, write_selection_page
    from cac_align.generation.build import BestOfNRecipe, GeneratorRecipe, check_generator
    from cac_align.generation.chosen import CHOSEN
    from cac_align.runs.rank_status import RankStatus

    # Overrides of a reward that --reward replaces are read with that one.
    own = [item for item in options.overrides if options.reward is None or not item.startswith("reward.")]
    recipe = read_recipe(BestOfNRecipe, options.recipe, own, folder="best_of_n")
    check_positive("--n", options.n)
    check_positive("--fps", options.fps)
    if options.fps is not None and options.candidates is None:
        raise ValueError("--fps goes with --candidates; the generator states the rate of what it makes")
    check_writable("--out", options.out, folder=True)
    repair = _repair_recipe(options, recipe.generator)
    prompts, given = _prompts_and_candidates(options)
    if given is None:
        check_generator(recipe.generator)
        if recipe.generator == GeneratorRecipe():
            _check_world_prompts(prompts)
    rank_status = RankStatus(options.out / "processes", *_share())
    with rank_status.guard():  # around the loading too: that is where memory runs out first
        selections = _selections(options, recipe, prompts, given, rank_status)
    if selections is None:  # one of several processes, of which the first one prints
        return 0
    page = write_selection_page(selections, options.out / "report.html", title=_title(selections), fps=options.fps)
    if options.json:
        for selection in {each.prompt: each for each in selections}.values():  # the file may hold former calls' as well
            print(json.dumps(selection.to_json(), ensure_ascii=True))
    else:
        print(selection_table(selections))
    undecided = sum(selection.chosen is None for selection in selections)
    print(f"chosen videos: {options.out / CHOSEN}\nreport: {page} ({VIDEOS_BESIDE})", file=sys.stderr)
    if undecided:
        print(
            f"{undecided} of {len(selections)} prompts are undecided: none of their candidates has a score",
            file=sys.stderr,
        )
    failed = 0 if repair is None else _repair_winners(selections, repair, options)
    return 1 if undecided or failed else 0


def _repair_recipe(options: argparse.Namespace, generator: Any) -> Any:
    """The recipe of ``--repair``, checked before anything is generated; None without it. Without a RECIPE the
    generator of the candidates repairs.
    """
    from cac_align.config import read_recipe
    from cac_align.generation.repair.build import RepairRecipe

    if options.repair is None:
        return None
    if options.repair:
        return read_recipe(RepairRecipe, options.repair, folder="repair")
    own = ("height", "width", "num_frames", "fps")  # a repair takes the video's
    return RepairRecipe(generator=replace(generator, **dict.fromkeys(own)))


def _repair_winners(selections: Sequence[Any], recipe: Any, options: argparse.Namespace) -> int:
    """Repair the chosen videos into ``OUT/repair``, print a line each on stderr, and return how many could not be
    judged or repaired.
    """
    from cac_align.cli.repair import FAILED, repair_files, repair_table

    chosen = [selection for selection in selections if selection.chosen is not None]
    if not chosen:
        return 0
    paths = [selection.candidates[selection.chosen] for selection in chosen]
    prompts = [selection.prompt for selection in chosen]
    results = repair_files(paths, prompts, recipe, options.out / "repair", fps=options.fps)
    print(repair_table(results), file=sys.stderr)
    return sum(result.status in FAILED for result in results)


def _prompts_and_candidates(options: argparse.Namespace) -> tuple[list[str], dict[str, list[Path]] | None]:
    """The prompts, and the given candidates by prompt, at most ``--n`` of each; None to generate them.

    Says on stderr which prompts have fewer. Raises ``ValueError`` where a file or folder is wrong.
    """
    from cac_align.generation.given_candidates import read_candidates

    if options.n is not None and options.n < 1:
        raise ValueError(f"n must be at least 1, received {options.n}")
    if options.prompts is None and options.candidates is None:
        raise ValueError("pass --prompts FILE, or --candidates with a table that names prompts and videos")
    prompts = None if options.prompts is None else [row["prompt"] for row in read_prompts(options.prompts)]
    if options.candidates is None:
        return prompts or [], None
    found = read_candidates(options.candidates, prompts)
    if options.n is not None:
        for prompt, videos in found.items():
            if len(videos) < options.n:
                print(f"{len(videos)} candidates, fewer than --n {options.n}: {prompt}", file=sys.stderr)
        found = {prompt: videos[: options.n] for prompt, videos in found.items()}
    return prompts or list(found), found


def _reward(options: argparse.Namespace, recipe: Any) -> tuple[Any, list[str]]:
    """The reward's recipe and overrides: of ``--reward``, to which ``--set reward.…`` applies as
    well, or else of the recipe.
    """
    if options.reward is None:
        return recipe.reward, []
    return options.reward, [item.removeprefix("reward.") for item in options.overrides if item.startswith("reward.")]


def _title(selections: Sequence[Any]) -> str:
    """The page's title, by how many candidates the prompts really had."""
    counts = sorted({len(selection.candidates) for selection in selections})
    return f"Best of {counts[0]}" if len(counts) == 1 else f"Best of {counts[0]} to {counts[-1]}"


def _selections(
    options: argparse.Namespace,
    recipe: Any,
    prompts: Sequence[str],
    given: dict[str, list[Path]] | None,
    rank_status: Any,
) -> Any:
    """Load the models and choose; None in every process but the first.

    Under ``accelerate launch`` each process takes its share of the prompts, and the first one then
    reads everything together. When a process dies, the others end as well (``ProcessLost``); the
    same command then goes on.
    """
    from cac_align.generation.best_of_n import best_of_n
    from cac_align.generation.build import load_generator
    from cac_align.rewards.reachable import load_reachable
    from cac_align.runs.progress import progress_bar, show_note

    index, count = _share()
    if count > 1:
        _processes()
    reward = load_reachable(*_reward(options, recipe))
    source: Any = given
    if given is None:
        source = load_generator(recipe.generator)
    settings = {
        "n": _given(options.n, recipe.n),
        "seed": _given(options.seed, recipe.seed),
        "distinct_seeds": recipe.distinct_seeds,
        "fps": options.fps,
        "overlap": recipe.overlap,
        "out": options.out,
        "report": rank_status.report,
    }

    def bar(total: int, about: str) -> Any:
        made = progress_bar(total, about, "video", shown=index == 0)
        rank_status.listener = partial(show_note, made)
        return made

    if count > 1 and index < len(set(prompts)):
        best_of_n(prompts, source, reward, share=(index, count), progress=bar, **settings)
    if count > 1:
        rank_status.report("waiting for the other processes")
        _processes().wait_for_everyone()
    if index > 0:
        return None
    with stated_domain(reward):
        return best_of_n(prompts, source, reward, progress=bar, **settings)


def _share() -> tuple[int, int]:
    """(rank of this process, number of processes), as launchers set them in the environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _processes() -> Any:
    """accelerate's state, which gives every process its own GPU.

    A wait for the other processes may take up to a day, because one of them may have the longest
    videos.
    """
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def _check_world_prompts(prompts: Sequence[str]) -> None:
    """Raise ``ValueError`` for the first prompt that the miniature's generator cannot render."""
    from cac_align.miniature.world.grammar import parse_prompt

    for number, prompt in enumerate(prompts, 1):
        try:
            parse_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"prompt {number} ({prompt[:60]!r}) is outside the miniature's world: {error}") from error


def selection_table(selections: Sequence[Any]) -> str:
    """One line per prompt: the chosen candidate, the scores, and why."""
    lines = []
    for selection in selections:
        scores = " ".join("  none" if not score.scored else f"{score.value:.4f}" for score in selection.scores)
        chosen = "undecided" if selection.chosen is None else f"candidate {selection.chosen}"
        lines.append(f"{chosen:<12} [{scores}]  {selection.prompt[:70]}\n{'':<13}{selection.reason}")
    return "\n".join(lines)
