"""`cac-align train judge RECIPE`: from a folder of videos that are fine to a trained, calibrated and measured judge.

    videos → inject → hold_out → synthesise → split → stage1 → stage2 → stage3 → calibrate → bench

Every step works in a folder of its own below ``out`` and is done by the function behind its own verb
(``runs.steps``: what is done is skipped, what is begun goes on). Sources are held out before anything
is learned: no clip of theirs, and no near-duplicate of one, is in a stage. Without a teacher the
chains of thought are written from what the injection knows, by the teacher of the miniature.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cac_align.data.injection.settings import Injection
from cac_align.data.records import Record
from cac_align.data.splits import Splits
from cac_align.data.synthesis.settings import Synthesis
from cac_align.rewards.build import JudgeRecipe
from cac_align.runs.steps import RunStep, is_done, run_steps

STAGES = ("stage1", "stage2", "stage3")
_SET_BY_THE_RUN = ("out", "data.folder", "model.path")
# Keys that change nothing about what a step makes, and may differ when it goes on.
_FREE = ("injection.device", "judge.device", "judge.batch_size", "synthesis.workers")
_FREE_IN_STAGES = ("overlap", "run.threads", "run.cpu", "run.save_every", "run.log_every", "run.track")


@dataclass
class StageChoice:
    """How one stage is trained."""

    # Recipe of `cac-align train`, a file or the name of one that ships.
    recipe: str = ""
    # Overrides of that recipe, "key=value" each. Data, start, output and wording are set by the run.
    set: list[str] = field(default_factory=list)
    # Configuration for `accelerate launch`, which trains the stage in processes of its own; empty: in this one.
    accelerate: str = ""


@dataclass
class JudgeTraining:
    """The recipe of `cac-align train judge`."""

    # Videos that are fine: folders, files, patterns, or records files, of which the normal videos are taken.
    videos: list[str] = field(default_factory=list)
    # Folder of the run; the finished judge is its folder calibrate.
    out: str = "runs/judge"
    # Checkpoint that stage 1 starts from: miniature, a folder, or a hub id.
    base: str = "miniature"
    # Pairs to inject; 0: one per video.
    pairs: int = 0
    # Processes that inject; 0: one per core, and a single one where injection.wan names a model.
    workers: int = 0
    # Who writes the chains of thought: a judge recipe, a URL, a checkpoint, or "module:Name" of a Vlm. Empty: they are
    # written from what the injection knows (reason, window, boxes), in the miniature's terse form; so does "miniature".
    teacher: str = ""
    # Overrides of the teacher's keys, "key=value" each.
    teacher_set: list[str] = field(default_factory=list)
    # Share of the records that no stage sees, in (0, 1), by whole sources: half calibrates, half measures.
    held_out: float = 0.2
    # Seed of injection and of what is held out.
    seed: int = 0
    injection: Injection = field(default_factory=Injection)
    synthesis: Synthesis = field(default_factory=Synthesis)
    splits: Splits = field(default_factory=Splits)
    stage1: StageChoice = field(default_factory=lambda: StageChoice("stage1"))
    stage2: StageChoice = field(default_factory=lambda: StageChoice("stage2"))
    stage3: StageChoice = field(default_factory=lambda: StageChoice("stage3"))
    # How the finished judge is asked when it is calibrated and measured: tta, device, batch_size, …; not its model.
    judge: JudgeRecipe = field(default_factory=JudgeRecipe)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a share in (0, 1), received {self.held_out}")
        if self.pairs < 0 or self.workers < 0:
            raise ValueError(f"pairs and workers are counts (0: automatic), received {self.pairs} and {self.workers}")


def read_judge_training(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> JudgeTraining:
    """The recipe in a file, or of that name among those that ship. Raises ``ValueError`` as ``read_recipe`` does, also
    for the recipes of its stages.
    """
    from cac_align.config import read_recipe
    from cac_align.core.shipped_recipes import find_recipe

    recipe = read_recipe(JudgeTraining, path, overrides, folder="train")
    if not recipe.videos:
        raise ValueError(f"{path}: videos is empty; name folders, files or records of videos that are fine")
    for stage in STAGES:
        _stage_recipe(recipe, stage, Path(recipe.out), recipe.base)
        if config := getattr(recipe, stage).accelerate:
            find_recipe(config, "train")
    return recipe


def train_judge(recipe: JudgeTraining) -> dict[str, Mapping[str, Any]]:
    """Run or resume the whole training; returns the figures of every step, by its name.

    Raises ``ValueError`` for videos that give no pair, records that do not fill the stages, a
    changed recipe (with the keys that differ), and whatever the steps themselves refuse.
    """
    from cac_align.cli.data import load_teacher
    from cac_align.cli.inject import source_files
    from cac_align.rewards.reachable import check_reachable
    from cac_align.runs.checkpoint import claim_folder, recipe_values, write_claim

    out = Path(recipe.out)
    files = source_files(recipe.videos)
    names = hashlib.sha256("\0".join(sorted(file.name for file in files)).encode()).hexdigest()
    values = recipe_values(recipe)
    # Which keys may change is decided step by step; this keeps two processes out of one folder.
    claim_folder(out, "judge", recipe, free=tuple(values))
    write_claim(out, "judge", recipe, {})

    def made_from(*keys: str) -> dict[str, Any]:
        chosen = {name: value for name, value in values.items() if name in keys or name.partition(".")[0] in keys}
        return {name: value for name, value in chosen.items() if name not in _FREE}

    def stage_values(stage: str) -> dict[str, Any]:
        found = recipe_values(_stage_recipe(recipe, stage, out, recipe.base)[0])
        skipped = (*_SET_BY_THE_RUN, *_FREE_IN_STAGES)
        own = {f"{stage}.{name}": value for name, value in found.items() if name not in skipped}
        return {**own, "base": recipe.base} if stage == "stage1" else own

    sources = {"videos": f"{len(files)} with names of sha256 {names[:16]}"}
    steps = [
        RunStep(
            "inject", {**sources, **made_from("pairs", "seed", "injection")}, lambda at: _inject(recipe, files, at)
        ),
        RunStep("hold_out", made_from("held_out"), lambda at: _hold_out(recipe, out / "inject", at)),
        RunStep(
            "synthesise",
            made_from("teacher", "teacher_set", "synthesis"),
            lambda at: _synthesise(recipe, out / "hold_out", at),
        ),
        RunStep("split", made_from("splits"), lambda at: _split(recipe, out, at)),
        *(
            RunStep(
                stage,
                stage_values(stage),
                lambda at, stage=stage: _train_stage(recipe, stage, out, at),
            )
            for stage in STAGES
        ),
        RunStep("calibrate", made_from("judge"), lambda at: _calibrate(recipe, out, at)),
        RunStep("bench", {}, lambda at: _bench(recipe, out, at)),
    ]
    if recipe.teacher.startswith(("http://", "https://")) and not is_done(out / "synthesise"):
        # That it does not answer is said before hours of work.
        check_reachable(load_teacher(recipe.teacher, None, recipe.teacher_set, []))
    return run_steps(out, steps)


@contextmanager
def _shown(total: int | None, about: str, unit: str = "video") -> Iterator[Callable[..., None]]:
    """A progress bar, as a callback of the number done (and of the total, where it was not known)."""
    from cac_align.runs.progress import progress_bar

    with progress_bar(total, about, unit) as bar:

        def show(done: int, known: Any = None, *_: Any) -> None:
            if isinstance(known, int):
                bar.total = known
            bar.update(done - bar.n)

        yield show


# ---- data ---------------------------------------------------------------------------------------------------------


def _inject(recipe: JudgeTraining, files: Sequence[Any], at: Path) -> dict[str, Any]:
    from cac_align.cli.injection_models import load_models
    from cac_align.data.injection.run import inject
    from cac_align.evaluation.pages.injection_page import write_injection_page

    with _shown(recipe.pairs or len(files), "injecting", "pair") as show:
        result = inject(
            files,
            at,
            recipe.injection,
            n=recipe.pairs or None,
            seed=recipe.seed,
            workers=recipe.workers or None,
            models=load_models(recipe.injection),
            progress=show,
        )
    page = write_injection_page(at, result.records, result.audit)
    if not result.pairs:
        raise ValueError(f"none of {len(files)} videos gave a pair: {dict(result.audit['skipped'])}")
    asked, sources = result.audit["pairs_asked_for"], result.audit["sources"]
    return {"pairs": result.pairs, "asked for": asked, "sources": sources, "page": str(page)}


def _hold_out(recipe: JudgeTraining, injected: Path, at: Path) -> dict[str, Any]:
    from cac_align.data.mixture import hold_out_sources
    from cac_align.data.records import all_records, moved_record, write_records

    parts = hold_out_sources(all_records(injected / "records.jsonl"), recipe.held_out, recipe.seed)
    for name, records in parts.items():
        write_records(at / f"{name}.jsonl", (moved_record(record, injected, at) for record in records))
    return {name: len(records) for name, records in parts.items()}


def _synthesise(recipe: JudgeTraining, held: Path, at: Path) -> dict[str, Any]:
    from cac_align.cli.data import load_teacher
    from cac_align.data.records import all_records
    from cac_align.data.synthesis.synthesise import synthesise
    from cac_align.runs.progress import say

    records = all_records(held / "train.jsonl")
    if _names_a_teacher(recipe):
        teacher = load_teacher(recipe.teacher, None, recipe.teacher_set, records)
    else:
        say("no teacher is named: chains of thought are written from the injection's reason, window and boxes")
        teacher = load_teacher("miniature", None, (), [_without_seed(record) for record in records])
    with _shown(len(records), "explaining", "record") as show:
        report = synthesise(records, held, teacher, at, recipe.synthesis, progress=show)
    if report["unanswered"]:
        raise ValueError(
            f"{report['unanswered']} records are without an answer of the teacher; the same command resumes"
        )
    if not report["accepted"]:
        raise ValueError(f"no chain of thought was accepted: {report['reasons']}")
    explained_by = recipe.teacher if _names_a_teacher(recipe) else "the injection's own truth"
    return {
        "teacher": explained_by,
        **{name: report[name] for name in ("records", "accepted", "discarded", "samples", "reasons")},
    }


def _names_a_teacher(recipe: JudgeTraining) -> bool:
    return recipe.teacher not in ("", "miniature")


def _without_seed(record: Record) -> Record:
    """The record without the seed of its injection, which the teacher would take for one of the miniature's world."""
    return replace(record, extra={name: value for name, value in record.extra.items() if name != "seed"})


def _split(recipe: JudgeTraining, out: Path, at: Path) -> dict[str, Any]:
    from cac_align.data.splits import split_stages

    apart = [out / "hold_out" / f"{name}.jsonl" for name in ("calibrate", "bench")]
    with _shown(None, "hashing") as show:
        report = split_stages(out / "synthesise", at, recipe.splits, apart=apart, progress=show)
    samples = {stage: figures["samples"] for stage, figures in report["stages"].items()}
    kept_out = {"near the held-out": report["near_benchmark"], "unused": report["unused"]}
    return {**samples, **kept_out, "mix": report["mix"], "missing": report["missing"]}


# ---- training -----------------------------------------------------------------------------------------------------


def _stage_recipe(recipe: JudgeTraining, stage: str, out: Path, start: str) -> tuple[Any, list[str]]:
    """A stage's recipe, and the overrides that make it from its file."""
    from cac_align.config import read_recipe
    from cac_align.training.grpo import GrpoRecipe
    from cac_align.training.sft import SftRecipe

    choice: StageChoice = getattr(recipe, stage)
    overrides = [
        *choice.set,
        f"out={out / stage}",
        f"data.folder={out / 'split'}",
        f"data.wording={recipe.synthesis.wording}",
        f"model.path={start}",
    ]
    kind: type[Any] = GrpoRecipe if stage == "stage3" else SftRecipe
    found = read_recipe(kind, choice.recipe, overrides, folder="train")
    if stage != "stage3" and f"stage{found.stage}" != stage:
        raise ValueError(f"{stage}.recipe: {choice.recipe} is a recipe of stage {found.stage}")
    return found, overrides


def _train_stage(recipe: JudgeTraining, stage: str, out: Path, at: Path) -> dict[str, Any]:
    if stage == "stage1" and _is_empty(out):
        return {"steps": 0, "weights": recipe.base, "skipped": "no single frames (see split)"}
    before = {"stage2": "stage1", "stage3": "stage2"}.get(stage)
    if before is None or (before == "stage1" and _is_empty(out)):
        start = recipe.base
    else:
        start = str(trained_weights(out / before))
    settings, overrides = _stage_recipe(recipe, stage, out, start)
    choice: StageChoice = getattr(recipe, stage)
    if choice.accelerate:
        launch_stage(choice, stage, overrides)
    elif stage == "stage3":
        from cac_align.training.grpo import train_grpo

        train_grpo(settings)
    else:
        from cac_align.training.sft import train_sft

        train_sft(settings)
    return {"steps": settings.run.last_step, "weights": str(trained_weights(at).relative_to(out))}


def _is_empty(out: Path) -> bool:
    """Whether the split has no sample for stage 1."""
    path = out / "split" / "stage1.jsonl"
    return path.is_file() and path.stat().st_size == 0


def launch_stage(choice: StageChoice, stage: str, overrides: Sequence[str]) -> None:
    """Train a stage in accelerate's own processes. Raises ``ValueError`` where they fail; they say why."""
    from cac_align.core.shipped_recipes import find_recipe

    config = str(find_recipe(choice.accelerate, "train"))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command = [*launch, "-m", "cac_align.cli", "train", stage, choice.recipe]
    command += [part for override in overrides for part in ("--set", override)]
    if status := subprocess.run(command, stdout=sys.stderr).returncode:
        raise ValueError(f"{stage}: `accelerate launch` ended with status {status}; the same command resumes")


def trained_weights(folder: Path) -> Path:
    """What a stage leaves for the next one: its best evaluation's weights, or where it made none its last ones."""
    return folder / "best" if (folder / "best").is_dir() else folder / "final"


# ---- the finished judge -------------------------------------------------------------------------------------------


def _calibrate(recipe: JudgeTraining, out: Path, at: Path) -> dict[str, Any]:
    """Copy stage 3's weights into ``at``, and fit temperature and threshold there."""
    from cac_align.cac.judge_settings import write_temperature, write_threshold
    from cac_align.data.records import all_records
    from cac_align.evaluation.bench.bench import score_records
    from cac_align.evaluation.bench.fitting import fit_scores

    weights = trained_weights(out / "stage3")
    shutil.copytree(weights, at, copy_function=_linked, dirs_exist_ok=True)
    path = out / "hold_out" / "calibrate.jsonl"
    records = all_records(path)
    judge = _load(recipe, at)
    # Log-odds do not depend on them.
    reward = replace(judge, temperature=1.0, threshold=0.0)
    with _shown(len(records), "calibrating") as show:
        scores, _ = score_records(path, records, _kept(reward, out), show)
    unscored = sum(not score.scored for score in scores)
    try:
        fit = fit_scores(scores, [record.status == "normal" for record in records], num_augmentations=len(reward.tta))
    except ValueError as error:
        return {"videos": len(records), "unscored": unscored, "not calibrated": str(error)}
    write_temperature(at, fit.temperature, reward.tta)
    if fit.threshold is not None:
        write_threshold(at, fit.threshold, reward.tta)
    return {"videos": len(records), "unscored": unscored, **fit.to_json()}


def _linked(source: str, target: str) -> None:
    """Link a file of weights, which nothing changes, and copy any other, or where links are impossible."""
    Path(target).unlink(missing_ok=True)
    if Path(source).suffix != ".safetensors":
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _bench(recipe: JudgeTraining, out: Path, at: Path) -> dict[str, Any]:
    from cac_align.evaluation.bench.bench import bench
    from cac_align.rewards.ledger import Ledger
    from cac_align.runs.progress import progress_callback

    judge = _load(recipe, out / "calibrate")
    path, ledger = out / "hold_out" / "bench.jsonl", Ledger(out / "ledger.jsonl")
    found = bench(path, {"judge": judge}, ledger=ledger, out=at, progress=progress_callback("video"))
    report = found.reports[0]
    accuracy = report.metrics["accuracy"].value
    return {"videos": report.n, "unscored": report.unscored, "accuracy": accuracy, "tables": str(at / "bench.md")}


def _load(recipe: JudgeTraining, folder: Path) -> Any:
    from cac_align.rewards.build import RewardRecipe, load_cac

    return load_cac(RewardRecipe(components={"judge": replace(recipe.judge, kind="cac", model=str(folder))}))


def _kept(reward: Any, out: Path) -> Any:
    """The reward whose scores are kept in the run's ledger."""
    from cac_align.rewards.cached import cached
    from cac_align.rewards.ledger import Ledger

    return cached(reward, Ledger(out / "ledger.jsonl"))
