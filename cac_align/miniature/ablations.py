"""The paper's ablations in miniature: every variant of the recipe trained through the real stages and measured on unseen clips.

world clips → records → synthesise (ground truth) → split → for each seed and variant: stage 1 → 2 → 3 → figures → ablations.md

    python -m cac_align.miniature.ablations OUT [--recipe recipes/miniature/ablations.yaml] [--set clips=200 stage3.run.steps=10 …]

    OUT/data/            world, chains, stages: built once            OUT/results.jsonl   one line per variant and training seed
    OUT/seedK/stage1…    a folder per training, named by its path     OUT/ablations.md    the table: mean ± sd over training seeds

A training that several variants pass through (stage 1, stages 1 and 2) is run once. The same call goes on where the last one ended. A
training that stops itself (``training.watch``) is written down with its sentence: a failure never becomes a number.
Source: CaC (arXiv 2605.11723) Sec. 4.3, Tables 3 and S5.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.cac.folder import settings_of
from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn
from cac_align.data.records import read_records
from cac_align.data.splits import Splits, split
from cac_align.data.synthesise import Synthesis, synthesise
from cac_align.files import write_whole
from cac_align.miniature.ground_truth import GroundTruth
from cac_align.miniature.judge_figures import evaluate
from cac_align.miniature.pool import WORLDS
from cac_align.miniature.world import TEST_SEEDS, TRAIN_SEEDS, write_world
from cac_align.recipe import read_recipe
from cac_align.training.grpo import GrpoRecipe, train_grpo
from cac_align.training.policy import ModelRecipe
from cac_align.training.run import claim, read_rows
from cac_align.training.sft import SftRecipe, train_sft
from cac_align.training.terms import NAMES
from cac_align.training.watch import Stopped
from cac_align.vlm.local import set_threads


@dataclass(frozen=True)
class Variant:
    """One row of the table. stages: which are run, in order; none: the start weights as they are. turns: how stages 2 and 3 and the
    evaluation ask. without: the term of Eq. 6 that has weight 0 in stage 3. paper: overall accuracy in Table 3."""

    name: str
    title: str
    paper: float
    stages: tuple[int, ...] = (1, 2, 3)
    turns: int = 2
    without: str = ""

    def __post_init__(self) -> None:
        if self.without and self.without not in NAMES:
            raise ValueError(f"without must be one of {', '.join(NAMES)}, received {self.without!r}")


VARIANTS: tuple[Variant, ...] = (
    Variant("full", "full recipe", 0.817),
    Variant("untrained-single-turn", "start weights, single turn", 0.514, stages=(), turns=1),
    Variant("untrained", "start weights, two turns", 0.537, stages=()),
    Variant("no-stage-1", "no stage 1 (single frames)", 0.701, stages=(2, 3)),
    Variant("no-stage-2", "no stage 2 (multi-frame SFT)", 0.651, stages=(1, 3)),
    Variant("no-stage-3", "no stage 3 (two-turn GRPO)", 0.674, stages=(1, 2)),
    Variant("single-turn", "stages 2 and 3 in a single turn", 0.734, turns=1),
    Variant("no-temporal", "without temporal IoU reward", 0.629, without="temporal"),
    Variant("no-spatial", "without spatial IoU reward", 0.716, without="spatial"),
    Variant("no-type", "without type IoU reward", 0.710, without="type"),
)
"""The rows of Table 3, the full recipe first."""

COLUMNS: tuple[tuple[str, str], ...] = (
    ("accuracy", "right_of_all"),
    ("temporal IoU", "temporal_iou"),
    ("spatial IoU", "spatial_iou"),
    ("recall, < 1 s and < 20 %", "recall_sparse"),
    ("AUROC of R", "auroc"),
    ("no verdict", "no_verdict"),
)
"""A column's title and the figure of ``judge_figures.evaluate`` that stands in it (no_verdict as a share of the clips)."""


@dataclass
class Ablations:
    """The whole budget. world: which (``pool.WORLDS``). clips: of the training, half of them broken, from ``first_seed`` (TRAIN_SEEDS).

    splits: how they are shared out. Two defaults are not the paper's: ``near`` is smaller, because plain scenes look alike, and so is
    ``frames``, because few of the world's types are single-frame ones: stage 1 would take them all, and stages 2 and 3 see none.
    test_clips: measured on, normal and broken together, from ``test_seed`` (TEST_SEEDS). seeds: of the trainings. variants: names from ``VARIANTS``; empty: all of them.
    start: the weights before stage 1 ("miniature" or a folder). recipes: folder of cac_stage1.yaml, cac_stage2.yaml, cac_stage3.yaml.
    stage1, stage2, stage3: what differs from them. jobs: training seeds at a time, a process each. device: of all trainings.
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
    recipes: str = "recipes/miniature"
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
            raise ValueError(f"clips and test_clips must be even (half normal), received {self.clips} and {self.test_clips}")
        for first, count, seeds, name in (
            (self.first_seed, self.clips, TRAIN_SEEDS, "first_seed"),
            (self.test_seed, self.test_clips, TEST_SEEDS, "test_seed"),
        ):
            if first not in seeds or first + count - 1 not in seeds:
                raise ValueError(f"{name}: seeds {first} to {first + count - 1} must lie in {seeds.start} to {seeds.stop - 1}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or self.jobs < 1:
            raise ValueError(
                f"expected at least one seed, each once, and jobs >= 1; received seeds {self.seeds}, jobs {self.jobs}"
            )

    @property
    def chosen(self) -> tuple[Variant, ...]:
        return tuple(variant for variant in VARIANTS if not self.variants or variant.name in self.variants)


# ---- data and trainings ---------------------------------------------------------------------------------------------


def prepare(recipe: Ablations, out: Path) -> Path:
    """Clips, records, chains of thought and the three stages, made where they are not there yet; returns the stages' folder."""
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
    asked = Synthesis(
        wording=start_settings(recipe).wording, tasks=["scan", "look", "frame", "single"], close_ups=False, workers=1
    )
    synthesise(records, world, GroundTruth(records), data / "chains", asked)
    split(data / "chains", stages, recipe.splits)
    return stages


def path(variant: Variant) -> tuple[str, ...]:
    """Folder names of the variant's trainings, each naming everything that went before it: equal names, one training."""
    labels: list[str] = []
    for stage in variant.stages:
        single = "-single" if stage > 1 and variant.turns == 1 else ""
        labels.append(f"{stage}{single}" + (f"-no-{variant.without}" if stage == 3 and variant.without else ""))
    return tuple("stage" + "+".join(labels[: count + 1]) for count in range(len(labels)))


def stage_recipe(recipe: Ablations, stage: int, variant: Variant, seed: int, data: Path, start: str, out: Path) -> Any:
    """The recipe of one training: that of the folder ``recipe.recipes``, with this budget, and what the variant leaves out."""
    given = _dotted(getattr(recipe, f"stage{stage}"))
    made = read_recipe(
        GrpoRecipe if stage == 3 else SftRecipe,
        Path(recipe.recipes) / f"cac_stage{stage}.yaml",
        [f"{name}={json.dumps(value)}" for name, value in given.items()],
    )
    made = replace(
        made,
        out=str(out),
        model=replace(made.model, path=start),
        data=replace(
            made.data, folder=str(data), turns=variant.turns if stage > 1 else 2, margin_s=start_settings(recipe).margin_s
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


def train(recipe: Ablations, variant: Variant, seed: int | None, data: Path, out: Path) -> str:
    """Run the variant's stages, or take those that are there; returns the weights at its end ("miniature" or a folder).

    Stage 1 hands on its last weights, stages 2 and 3 those of their best evaluation. Raises ``Stopped`` with the stage in its sentence.
    """
    weights = recipe.start
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
            write_whole(note, sentence)
            raise Stopped(sentence) from error
        best = folder / "best"
        weights = str(best if stage > 1 and best.is_dir() else folder / "final")
    return weights


# ---- results --------------------------------------------------------------------------------------------------------


def start_settings(recipe: Ablations) -> TwoTurn:
    """How the start has learnt to be asked; so is every variant (with one turn, where it has one)."""
    return settings_of(ModelRecipe(recipe.start).source)


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
    """What is still to be done, seed by seed. Start weights have no training seed: they are measured once."""
    done = {(row["variant"], row["seed"]) for row in rows}
    wanted = [(variant, None) for variant in recipe.chosen if not variant.stages]
    wanted += [(variant, seed) for seed in recipe.seeds for variant in recipe.chosen if variant.stages]
    return [(variant, seed) for variant, seed in wanted if (variant.name, seed) not in done]


def work(recipe: Ablations, out: Path, data: Path, seed: int | None) -> None:
    """Everything that is still open for one training seed (None: the start weights); each result is written at once."""
    set_threads(1)
    for variant, own in open_rows(recipe, read_rows(out / "results.jsonl")):
        if own != seed:
            continue
        began = time.time()
        try:
            found: dict[str, Any] = {"figures": measure(recipe, variant, train(recipe, variant, seed, data, out))}
        except Stopped as error:
            found = {"stopped": error.sentence}
        row = {"variant": variant.name, "seed": seed, **found, "seconds": round(time.time() - began, 1)}
        with (out / "results.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        said = f"accuracy {found['figures']['right_of_all']}" if "figures" in found else found["stopped"]
        print(f"{variant.name}, seed {seed}: {said} ({row['seconds']} s)", file=sys.stderr, flush=True)


def run(recipe: Ablations, out: Path) -> str:
    """Do what is still open and write ``out/ablations.md``; returns its text.

    Raises ``ValueError`` when ``out`` holds results of another budget, or data or recipe are unusable.
    """
    out.mkdir(parents=True, exist_ok=True)
    claim(out, replace(recipe, seeds=[0], variants=[], jobs=1))  # these may grow
    results = out / "results.jsonl"
    write_whole(results, "".join(json.dumps(row) + "\n" for row in read_rows(results)))  # without a line that a kill tore
    left = [seed for _, seed in open_rows(recipe, read_rows(results))]
    if left:
        data = prepare(recipe, out)
        calls = [(recipe, out, data, seed) for seed in dict.fromkeys(left)]
        if recipe.jobs == 1:
            for call in calls:
                work(*call)
        else:
            with ProcessPoolExecutor(recipe.jobs, mp_context=get_context("spawn")) as pool:
                for done in [pool.submit(work, *call) for call in calls]:
                    done.result()
    text = report(recipe, read_rows(results))
    write_whole(out / "ablations.md", text)
    return text


# ---- the table ------------------------------------------------------------------------------------------------------


def report(recipe: Ablations, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown with what it was measured on, and the sentence of every training that stopped itself."""
    half = recipe.test_clips // 2
    start = "the shipped mini-CaC" if recipe.start == "miniature" else f"`{Path(recipe.start).name}`"
    steps = ", ".join(
        f"stage {stage} {_dotted(getattr(recipe, f'stage{stage}')).get('run.steps', 'as in its recipe')}" for stage in (1, 2, 3)
    )
    lines = [
        "# The paper's ablations in miniature",
        "",
        f"World `{recipe.world}`: {recipe.clips} training clips (seeds {recipe.first_seed} on), measured on {half} normal + {half} "
        f"anomalous clips (seeds {recipe.test_seed} on). Start: {start}. Steps: {steps}. Mean ± sd over training seeds.",
        "Accuracy: right verdicts among all clips, a clip without a verdict not being right; the other figures are over clips with a",
        "verdict, temporal and spatial IoU over anomalous clips that were caught. Minus full: of the same training seed, start weights of all.",
        "Paper: overall accuracy of its Table 3. Command: `make ablations`. What it shows: `dev/LOG.md`.",
        "",
        *table(recipe.chosen, rows),
    ]
    stopped = [row for row in rows if "stopped" in row and row["variant"] in {variant.name for variant in recipe.chosen}]
    if stopped:
        titles = {variant.name: variant.title for variant in VARIANTS}
        lines += ["", "Trainings that stopped themselves, and have no figures:", ""]
        lines += [f"- {titles[row['variant']]}, seed {row['seed']}: {row['stopped']}" for row in stopped]
    return "\n".join(lines) + "\n"


def table(variants: Sequence[Variant], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of the table: a row per variant, means over the seeds that have figures; "stopped" or "open" where none has.

    "minus full": accuracy minus that of the full recipe of the same training seed (of start weights: minus all of its seeds).
    """
    titles = ["variant", "paper", *(title for title, _ in COLUMNS), "accuracy minus full", "seeds"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    full = {row["seed"]: row["figures"]["right_of_all"] for row in rows if row["variant"] == "full" and "figures" in row}
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant.name]
        measured = [row["figures"] for row in own if "figures" in row]
        if measured:
            cells = [_cell(measured, figure) for _, figure in COLUMNS]
        else:
            cells = ["stopped" if own else "open"] * len(COLUMNS)
        apart = [
            row["figures"]["right_of_all"] - reference
            for row in own
            if "figures" in row and variant.name != "full"
            for seed, reference in full.items()
            if row["seed"] in (None, seed)
        ]
        cells.append(_told(apart, len(measured) if variant.stages else len(full), "+"))
        seeds = str(len(measured)) if len(measured) == len(own) else f"{len(measured)} of {len(own)}"
        seeds = "–" if own and not variant.stages else seeds
        lines.append(f"| {variant.title} | {variant.paper:.3f} | " + " | ".join(cells) + f" | {seeds} |")
    return lines


def _cell(measured: Sequence[Mapping[str, Any]], figure: str) -> str:
    """Of the figures that are defined (no anomalous clip was caught, say: no IoU)."""
    values = [row[figure] / (row["clips"] if figure == "no_verdict" else 1) for row in measured if row[figure] is not None]
    return _told(values, len(measured))


def _told(values: Sequence[float], of: int, sign: str = "") -> str:
    """Mean ± sd (n − 1; of one value no sd), "(k of n)" where some of the ``of`` values are missing, "–" where all are. sign: as in a format."""
    if not values:
        return "–"
    sd = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    lost = f" ({len(values)} of {of})" if len(values) < of else ""
    return f"{np.mean(values):{sign}.3f}{sd}{lost}"


def main(arguments: Sequence[str]) -> int:
    """``OUT [--recipe FILE] [--set KEY=VALUE …]``: run what is open, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m cac_align.miniature.ablations", description="The paper's Table 3 in miniature."
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/miniature/ablations.yaml"))
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
