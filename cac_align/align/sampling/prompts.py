"""The prompts of an alignment: those to train on, those of each step, and those of the evaluation
videos.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cac_align.align.recipe import AlignRecipe
from cac_align.config import import_name
from cac_align.core.prompts import read_lines, rows_of
from cac_align.core.shipped_recipes import shipped_recipe


def read_training_prompts(source: str, first: int, count: int, note: bool = True) -> list[str]:
    """The prompts of ``source`` (see ``AlignRecipe.prompts``) in order, each once.

    A file that is not there may be one that ships with the recipes. Blank lines and
    repetitions are left out; with ``note`` their number is printed on stderr.

    Raises ``ValueError`` when there is no such file or function, or no prompt in it.
    """
    if ":" in source and not Path(source).exists():
        lines = list(import_name(source)(range(first, first + count)))
        where = f"{source} for seeds {first} … {first + count - 1}"
    else:
        where = source
        try:
            file = Path(source) if Path(source).exists() else shipped_recipe(source) or Path(source)
            rows = rows_of(read_lines(file), source)
        except ValueError as error:
            raise ValueError(f"prompts: {error}; give a text file or module:function") from error
        lines = ["" if row is None else row["prompt"] for row in rows]
        lines = lines[:-1] if lines and not lines[-1] else lines  # the file's last newline is no blank line
    kept = list(dict.fromkeys(line for line in lines if line))
    blanks = sum(not line for line in lines)
    if not kept:
        raise ValueError(f"prompts: {where} holds no prompt; write one per line")
    if note and (blanks or len(kept) < len(lines)):
        print(
            f"prompts: {where}: {len(kept)} prompts; left out {blanks} blank lines and "
            f"{len(lines) - blanks - len(kept)} repetitions",
            file=sys.stderr,
        )
    return kept


def step_prompts(step: int, prompts: Sequence[str], recipe: AlignRecipe) -> list[str]:
    """The prompts of one step. Every pass over the prompts uses each once, in a new random order.

    Raises ``ValueError`` when a step needs more prompts than there are: the same prompt twice in a
    step would merge two groups.
    """
    per_step, count = recipe.prompts_per_step, len(prompts)
    if per_step > len(prompts):
        raise ValueError(
            f"prompts_per_step is {per_step}, but there are only {len(prompts)} prompts; lower it or add prompts"
        )
    number, offset = divmod(step * per_step, count)
    chosen = _pass_order(number, count, recipe)[offset : offset + per_step]
    if len(chosen) < per_step:
        chosen = chosen + _pass_order(number + 1, count, recipe)[: per_step - len(chosen)]
    return [prompts[n] for n in chosen]


def _pass_order(number: int, count: int, recipe: AlignRecipe) -> list[int]:
    """The order of the prompts in pass ``number``.

    Where a step takes prompts of two passes, the second pass begins with prompts that the step does
    not have yet.
    """
    order = [int(n) for n in np.random.default_rng((recipe.seed, 1, number)).permutation(count)]
    begun = number * count % recipe.prompts_per_step
    if not begun:
        return order
    used = set(_pass_order(number - 1, count, recipe)[-begun:])
    head = [n for n in order if n not in used][: recipe.prompts_per_step - begun]
    return head + [n for n in order if n not in head]


def eval_prompts(recipe: AlignRecipe, prompts: Sequence[str]) -> list[str]:
    """The prompts of the evaluation videos (see ``EvalRecipe.source``). prompts: the training
    prompts.
    """
    count = recipe.eval.prompts
    if recipe.eval.source:
        return read_training_prompts(recipe.eval.source, recipe.prompt_first, count, note=False)[:count]
    if ":" in recipe.prompts:
        first = recipe.prompt_first + recipe.prompt_count
        return read_training_prompts(recipe.prompts, first, count, note=False)[:count]
    return list(prompts[:count])


def prompts_per_chunk(recipe: AlignRecipe, processes: int) -> int:
    """How many prompts are sampled and judged together: the fewest whose videos divide evenly over
    the processes.

    Raises ``ValueError`` when not even all prompts of a step do.
    """
    for count in range(1, recipe.prompts_per_step + 1):
        if recipe.prompts_per_step % count == 0 and count * recipe.group_size % processes == 0:
            return count
    total = recipe.group_size * recipe.prompts_per_step
    below, above = recipe.group_size // processes * processes, -(-recipe.group_size // processes) * processes
    raise ValueError(
        f"group_size {recipe.group_size} × prompts_per_step {recipe.prompts_per_step} = {total} videos do "
        f"not divide over {processes} "
        f"processes; the nearest group sizes that do are {max(below, processes)} and {above}"
    )
