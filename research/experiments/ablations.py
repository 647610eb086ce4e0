"""The paper's ablations in miniature: every variant of the recipe trained through the real stages
and measured on unseen clips.

world clips → records → synthesise (ground truth) → split → start (forget) → for each seed and
variant: stage 1 → 2 → 3 → figures → ablations.md

    python -m research.experiments.ablations OUT [--recipe research/recipes/ablations.yaml] [--set clips=200 stage3.run.steps=10 …]

    OUT/data/            world, chains, stages: built once            OUT/results.jsonl   one line per variant and training seed
    OUT/start/           the start, made to forget (``forget``)       OUT/ablations.md    the table: mean ± sd over training seeds
    OUT/seedK/stage1…    a folder per training, named by its path

A training that several variants pass through (stage 1, stages 1 and 2) is run once. The same call
goes on where the last one ended. A training that stops itself (``training.watch``) is written down
with its sentence: a failure never becomes a number. Source: CaC (arXiv 2605.11723) Sec. 4.3, Tables
3 and S5.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cac_align.cac.judge_settings import read_two_turn
from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn
from cac_align.config import read_recipe
from cac_align.data.records import Record, read_records
from cac_align.data.splits import Splits, split_stages
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.synthesise import synthesise
from cac_align.miniature.teacher.ground_truth import GroundTruth
from cac_align.miniature.world.settings import TEST_SEEDS, TRAIN_SEEDS, WORLDS
from cac_align.miniature.world.world import write_world
from cac_align.runs.checkpoint import claim_folder
from cac_align.runs.files import atomic_write
from cac_align.runs.metrics_log import read_rows
from cac_align.training.early_stopping import Stopped
from cac_align.training.grpo import GrpoRecipe, train_grpo
from cac_align.training.policy import ModelRecipe
from cac_align.training.sft import SftRecipe, train_sft
from cac_align.vlm.local import set_threads
from research.experiments.ablations_table import VARIANTS, Variant, table
from research.experiments.judge_figures import evaluate


@dataclass
class Ablations:
    """The whole budget. world: which (``pool.WORLDS``). clips: of the training, half of them
    broken, from ``first_seed`` (TRAIN_SEEDS).

    splits: how they are shared out. Two defaults are not the paper's: ``near`` is smaller, because
    plain scenes look alike, and so is ``frames``, because few of the world's types are single-frame
    ones: stage 1 would take them all, and stages 2 and 3 see none. test_clips: measured on, normal
    and broken together, from ``test_seed`` (TEST_SEEDS). seeds: of the trainings. variants: names
    from ``VARIANTS``; empty: all of them. start: the weights before stage 1 ("miniature" or a
    folder). forget: what differs from miniature_stage2.yaml in a training of them before all others, on
    the training clips with their annotations dealt anew among clips of one prompt (``deal``): the
    eyes, the words and the form of an answer stay, what makes a clip abnormal goes, as with the
    paper's untrained base; empty: the start is taken as it is. recipes: folder of miniature_stage1.yaml,
    miniature_stage2.yaml, miniature_stage3.yaml. stage1, stage2, stage3: what differs from them. jobs: training
    seeds at a time, a process each. device: of all trainings.
    """

    world: str = "playground"
    clips: int = 1200
    first_seed: int = 800_000
    splits: Splits = field(default_factory=lambda: Splits(frames=6000, near=0.02))
    test_clips: int = 1000
    test_seed: int = 2_700_000
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    variants: list[str] = field(default_factory=list)
    start: str = "miniature"
    forget: dict[str, Any] = field(default_factory=dict)
    recipes: str = "recipes/train"
    stage1: dict[str, Any] = field(default_factory=dict)
    stage2: dict[str, Any] = field(default_factory=dict)
    stage3: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise ValueError(f"world must be one of {', '.join(WORLDS)}, received {self.world!r}")
        known = [variant.name for variant in VARIANTS]
        if unknown := [name for name in self.variants if name not in known]:
            raise ValueError(f"variants must be some of {', '.join(known)}; received {', '.join(unknown)}")
        if self.clips < 2 or self.clips % 2 or self.test_clips < 2 or self.test_clips % 2:
            raise ValueError(
                f"clips and test_clips must be even (half normal), received {self.clips} and {self.test_clips}"
            )
        for first, count, seeds, name in (
            (self.first_seed, self.clips, TRAIN_SEEDS, "first_seed"),
            (self.test_seed, self.test_clips, TEST_SEEDS, "test_seed"),
        ):
            if first not in seeds or first + count - 1 not in seeds:
                raise ValueError(
                    f"{name}: seeds {first} to {first + count - 1} must lie in {seeds.start} to {seeds.stop - 1}"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or self.jobs < 1:
            raise ValueError(
                f"expected at least one seed, each once, and jobs >= 1; received seeds {self.seeds}, jobs {self.jobs}"
            )

    @property
    def chosen(self) -> tuple[Variant, ...]:
        return tuple(variant for variant in VARIANTS if not self.variants or variant.name in self.variants)


# ---- data and trainings ---------------------------------------------------------------------------------------------


def prepare(recipe: Ablations, out: Path) -> Path:
    """Clips, records, chains of thought and the three stages, made where they are not there yet;
    returns the stages' folder.
    """
    data = out / "data"
    world, stages = data / "world", data / "stages"
    if (stages / "report.json").is_file():
        return stages
    if not world.is_dir():
        part = data / "world.partial"
        shutil.rmtree(part, ignore_errors=True)
        write_world(recipe.clips, recipe.first_seed, part, WORLDS[recipe.world])
        os.replace(part, world)
    records = list(read_records(world / "records.jsonl"))
    if recipe.forget:
        _stages(recipe, deal(records), world, data / "dealt")
    _stages(recipe, records, world, data)
    return stages


def _stages(recipe: Ablations, records: Sequence[Record], world: Path, folder: Path) -> None:
    asked = Synthesis(
        wording=start_settings(recipe).wording, tasks=["scan", "look", "frame", "single"], close_ups=False, workers=1
    )
    synthesise(records, world, GroundTruth(records), folder / "chains", asked)
    if not (folder / "stages" / "report.json").is_file():
        split_stages(folder / "chains", folder / "stages", recipe.splits)


def deal(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """The same videos, status and anomalies of each dealt to one of the same prompt: they name what
    is to be seen, and tell no verdict.
    """
    of_prompt: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        of_prompt.setdefault(record.prompt, []).append(place)
    dealt, rng = list(records), random.Random(seed)
    for places in of_prompt.values():
        for place, other in zip(places, rng.sample(places, len(places)), strict=True):
            dealt[place] = replace(records[place], status=records[other].status, anomalies=records[other].anomalies)
    return dealt


def beginner(recipe: Ablations, out: Path) -> str:
    """The weights that every variant starts from ("miniature" or a folder): the recipe's, made to
    forget where it says so.
    """
    if not recipe.forget:
        return recipe.start
    full, data = VARIANTS[0], out / "data" / "dealt" / "stages"
    return str(train_sft(stage_recipe(recipe, 2, full, 0, data, recipe.start, out / "start", recipe.forget)))


def path(variant: Variant) -> tuple[str, ...]:
    """Folder names of the variant's trainings, each naming everything that went before it: equal
    names, one training.
    """
    labels: list[str] = []
    for stage in variant.stages:
        single = "-single" if stage > 1 and variant.turns == 1 else ""
        labels.append(f"{stage}{single}" + (f"-no-{variant.without}" if stage == 3 and variant.without else ""))
    return tuple("stage" + "+".join(labels[: count + 1]) for count in range(len(labels)))


def stage_recipe(
    recipe: Ablations,
    stage: int,
    variant: Variant,
    seed: int,
    data: Path,
    start: str,
    out: Path,
    budget: Mapping[str, Any] | None = None,
) -> Any:
    """The recipe of one training: that of the folder ``recipe.recipes``, with this budget (None:
    the stage's), and what the variant leaves out.
    """
    given = _dotted(getattr(recipe, f"stage{stage}") if budget is None else budget)
    made = read_recipe(
        GrpoRecipe if stage == 3 else SftRecipe,
        Path(recipe.recipes) / f"miniature_stage{stage}.yaml",
        [f"{name}={json.dumps(value)}" for name, value in given.items()],
    )
    made = replace(
        made,
        out=str(out),
        model=replace(made.model, path=start),
        data=replace(
            made.data,
            folder=str(data),
            turns=variant.turns if stage > 1 else 2,
            margin_s=start_settings(recipe).margin_s,
        ),
        run=replace(made.run, seed=seed, cpu=recipe.device == "cpu"),
    )
    if stage == 3 and variant.without:
        made = replace(made, weights=replace(made.weights, **{variant.without: 0.0}))
    return made


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(_dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return found


def train(recipe: Ablations, variant: Variant, seed: int | None, data: Path, start: str, out: Path) -> str:
    """Run the variant's stages from ``start``, or take those that are there; returns the weights at
    its end ("miniature" or a folder).

    Stage 1 hands on its last weights, stages 2 and 3 those of their best evaluation. Raises
    ``Stopped`` with the stage in its sentence.
    """
    weights = start
    for stage, name in zip(variant.stages, path(variant), strict=True):
        folder = out / f"seed{seed}" / name
        note = folder / "stopped.txt"
        if note.is_file():
            raise Stopped(note.read_text(encoding="utf-8"))
        made = stage_recipe(recipe, stage, variant, seed, data, weights, folder)
        try:
            (train_grpo if stage == 3 else train_sft)(made)
        except Stopped as error:
            sentence = f"stage {stage}: {error.sentence}".replace(str(folder), "its folder")
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(note, sentence)
            raise Stopped(sentence) from error
        best = folder / "best"
        weights = str(best if stage > 1 and best.is_dir() else folder / "final")
    return weights


# ---- results --------------------------------------------------------------------------------------------------------


def start_settings(recipe: Ablations) -> TwoTurn:
    """How the start has learnt to be asked; so is every variant (with one turn, where it has one)."""
    return read_two_turn(ModelRecipe(recipe.start).source)


def measure(recipe: Ablations, variant: Variant, weights: str) -> dict[str, Any]:
    """The figures of these weights on the held-out clips, asked as the variant is."""
    asked = start_settings(recipe)
    single = SingleTurn(wording=asked.wording, max_new_tokens=asked.max_new_tokens)
    return evaluate(
        Path(ModelRecipe(weights).source),
        "cac",
        recipe.test_clips,
        first_seed=recipe.test_seed,
        worlds=(WORLDS[recipe.world],),
        settings=single if variant.turns == 1 else asked,
        device=recipe.device,
    )[recipe.world]


def open_rows(recipe: Ablations, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Variant, int | None]]:
    """What is still to be done, seed by seed. Start weights have no training seed: they are
    measured once.
    """
    done = {(row["variant"], row["seed"]) for row in rows}
    wanted = [(variant, None) for variant in recipe.chosen if not variant.stages]
    wanted += [(variant, seed) for seed in recipe.seeds for variant in recipe.chosen if variant.stages]
    return [(variant, seed) for variant, seed in wanted if (variant.name, seed) not in done]


def work(recipe: Ablations, out: Path, data: Path, start: str, seed: int | None) -> None:
    """Everything that is still open for one training seed (None: the start weights); each result is
    written at once.
    """
    set_threads(1)
    for variant, own in open_rows(recipe, read_rows(out / "results.jsonl")):
        if own != seed:
            continue
        began = time.time()
        try:
            found: dict[str, Any] = {
                "figures": measure(recipe, variant, train(recipe, variant, seed, data, start, out))
            }
        except Stopped as error:
            found = {"stopped": error.sentence}
        row = {"variant": variant.name, "seed": seed, **found, "seconds": round(time.time() - began, 1)}
        with (out / "results.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        said = f"accuracy {found['figures']['right_of_all']}" if "figures" in found else found["stopped"]
        print(f"{variant.name}, seed {seed}: {said} ({row['seconds']} s)", file=sys.stderr, flush=True)


def run(recipe: Ablations, out: Path) -> str:
    """Do what is still open and write ``out/ablations.md``; returns its text.

    Raises ``ValueError`` when ``out`` holds results of another budget, or data or recipe are
    unusable.
    """
    claim_folder(out, "ablations", recipe, free=("seeds", "variants", "jobs"))
    results = out / "results.jsonl"
    atomic_write(
        results, "".join(json.dumps(row) + "\n" for row in read_rows(results))
    )  # without a line that a kill tore
    left = [seed for _, seed in open_rows(recipe, read_rows(results))]
    if left:
        data = prepare(recipe, out)
        start = beginner(recipe, out)
        calls = [(recipe, out, data, start, seed) for seed in dict.fromkeys(left)]
        if recipe.jobs == 1:
            for call in calls:
                work(*call)
        else:
            with ProcessPoolExecutor(recipe.jobs, mp_context=get_context("spawn")) as pool:
                for done in [pool.submit(work, *call) for call in calls]:
                    done.result()
    text = report(recipe, read_rows(results))
    atomic_write(out / "ablations.md", text)
    return text


# ---- the table ------------------------------------------------------------------------------------------------------


def report(recipe: Ablations, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown with what it was measured on, and the sentence of every training that
    stopped itself.
    """
    half = recipe.test_clips // 2
    start = "the shipped mini-CaC" if recipe.start == "miniature" else f"`{Path(recipe.start).name}`"
    if recipe.forget:
        steps = _dotted(recipe.forget).get("run.steps", "the recipe's")
        start += f", made to forget what is abnormal ({steps} steps of stage 2 on annotations dealt among clips of one prompt)"
    steps = ", ".join(
        f"stage {stage} {_dotted(getattr(recipe, f'stage{stage}')).get('run.steps', 'as in its recipe')}"
        for stage in (1, 2, 3)
    )
    lines = [
        "# The paper's ablations in miniature",
        "",
        f"World `{recipe.world}`: {recipe.clips} training clips (seeds {recipe.first_seed} on), measured on {half} normal + {half} "
        f"anomalous clips (seeds {recipe.test_seed} on). Start: {start}. Steps: {steps}. Mean ± sd over training seeds.",
        "Accuracy: right verdicts among all clips, a clip without a verdict not being right; the other figures are over clips with a",
        "verdict, temporal and spatial IoU over anomalous clips that were caught. Minus full: of the same training seed, start weights of all.",
        "Paper: overall accuracy of its Table 3. Command: `make ablations`. What it shows: `docs/lab/three_stages.md`.",
        "",
        *table(recipe.chosen, rows),
    ]
    stopped = [
        row for row in rows if "stopped" in row and row["variant"] in {variant.name for variant in recipe.chosen}
    ]
    if stopped:
        titles = {variant.name: variant.title for variant in VARIANTS}
        lines += ["", "Trainings that stopped themselves, and have no figures:", ""]
        lines += [f"- {titles[row['variant']]}, seed {row['seed']}: {row['stopped']}" for row in stopped]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """``OUT [--recipe FILE] [--set KEY=VALUE …]``: run what is open, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m research.experiments.ablations", description="The paper's Table 3 in miniature."
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--recipe", type=Path, default=Path("research/recipes/ablations.yaml"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args(arguments)
    try:
        print(run(read_recipe(Ablations, options.recipe, options.overrides), options.out))
    except ValueError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
