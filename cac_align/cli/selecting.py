"""`cac-align best-of-n`, `demo`, `world`: candidates in, the chosen ones and a page out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from cac_align.core.prompts import read_prompts


def run_best_of_n(options: argparse.Namespace) -> int:
    from cac_align.config import read_recipe
    from cac_align.evaluation.pages.selection_page import write_selection_page
    from cac_align.generation.build import BestOfNRecipe
    from cac_align.runs.rank_status import RankStatus

    recipe = read_recipe(BestOfNRecipe, options.recipe, options.overrides)
    prompts = [row["prompt"] for row in read_prompts(options.prompts)]
    here = RankStatus(options.out / "processes", *_share())
    with here.guard():  # around the loading too: that is where memory runs out first
        selections = _selections(options, recipe, prompts, here)
    if selections is None:  # one of several processes: the first one has the word
        return 0
    page = write_selection_page(selections, options.out / "report.html", title=f"Best of {_given(options.n, recipe.n)}")
    if options.json:
        for selection in {each.prompt: each for each in selections}.values():  # the file may hold former calls' as well
            print(json.dumps(selection.to_json(), ensure_ascii=True))
    else:
        print(selection_table(selections))
    undecided = sum(selection.chosen is None for selection in selections)
    print(f"report: {page}", file=sys.stderr)
    if undecided:
        print(
            f"{undecided} of {len(selections)} prompts are undecided: none of their candidates has a score",
            file=sys.stderr,
        )
    return 1 if undecided else 0


def _selections(options: argparse.Namespace, recipe: Any, prompts: Sequence[str], here: Any) -> Any:
    """Load what is needed and choose. Under ``accelerate launch`` each process takes its share of the prompts, and the first one then reads
    everything together; None in the others. A process that dies takes the others with it (``ProcessLost``), and the same command goes on."""
    from cac_align.generation.best_of_n import best_of_n, read_candidates
    from cac_align.generation.build import GeneratorRecipe, load_generator
    from cac_align.rewards.build import load_reward

    if options.candidates is not None and options.n is not None:
        raise ValueError(
            "--n says how many to generate; of the given --candidates all are judged, leave one of the two out"
        )
    index, count = _share()
    if count > 1:
        _processes()
    reward = load_reward(recipe.reward)
    if options.candidates is not None:
        source: Any = read_candidates(options.candidates, prompts)
    else:
        if recipe.generator == GeneratorRecipe():
            _check_world_prompts(prompts)
        source = load_generator(recipe.generator)
    settings = {
        "n": _given(options.n, recipe.n),
        "seed": _given(options.seed, recipe.seed),
        "distinct_seeds": recipe.distinct_seeds,
        "out": options.out,
        "doing": here.at,
    }
    bar = _bar if index == 0 else None
    if count > 1 and index < len(set(prompts)):
        best_of_n(prompts, source, reward, share=(index, count), progress=bar, **settings)
    if count > 1:
        here.at("waiting for the other processes")
        _processes().wait_for_everyone()
    return best_of_n(prompts, source, reward, progress=bar, **settings) if index == 0 else None


def _share() -> tuple[int, int]:
    """Which of how many processes this is, as launchers say it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _processes() -> Any:
    """accelerate's state, which gives every process its own GPU. A barrier may be long: one process has the longest videos."""
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def _check_world_prompts(prompts: Sequence[str]) -> None:
    """The miniature's renderer knows a small world: say at once when a prompt lies outside it."""
    from cac_align.miniature.world.grammar import parse_prompt

    for number, prompt in enumerate(prompts, 1):
        try:
            parse_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"prompt {number} ({prompt[:60]!r}) is outside the miniature's world: {error}") from error


def _bar(total: int, about: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=about, file=sys.stderr, disable=None)


def selection_table(selections: Sequence[Any]) -> str:
    """One line per prompt: the chosen candidate, the scores, and why."""
    lines = []
    for selection in selections:
        scores = " ".join("  none" if not score.scored else f"{score.value:.4f}" for score in selection.scores)
        chosen = "undecided" if selection.chosen is None else f"candidate {selection.chosen}"
        lines.append(f"{chosen:<12} [{scores}]  {selection.prompt[:70]}\n{'':<13}{selection.reason}")
    return "\n".join(lines)


def run_demo(options: argparse.Namespace) -> int:
    from cac_align.miniature.demo import demo

    settings = {
        "n": options.n,
        "num_prompts": options.prompts,
        "seed": options.seed,
        "guidance_scale": options.guidance_scale,
    }
    for line in demo(options.out, progress=_bar, **settings):
        print(line, flush=True)
    undecided = json.loads((options.out / "summary.json").read_text(encoding="utf-8"))["undecided"]
    return 1 if undecided == options.prompts else 0


def run_world(options: argparse.Namespace) -> int:
    from cac_align.miniature.world.world import write_world
    from cac_align.miniature.world.settings import WORLDS

    records = write_world(options.n, options.seed, options.out, WORLDS[options.world])
    print(records)
    return 0
