"""The curriculum as steps: what each artefact is made from, by which recipe, and which code makes it.

judge/encoder (rendered clips only: it needs no Wan)
vae → wan/first … third → wan/figures, generated/base → judge/sft → unified/first, second
    → alignment (one round, with the judge of sft) → generated/aligned → judge/aligned
    → judge/records → chains → splits → judge/stage1 … 3 → judge/calibrated → figures

At a scale below 1 a pool of generated clips may hold no couple of a normal and an anomalous clip (a Wan of one step
draws noise), and a judge may answer nothing: the step then says so and the chain goes on. At scale 1 both are errors.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cac_align.runs.checkpoint import recipe_values
from cac_align.runs.files import atomic_write
from cac_align.runs.progress import say
from research.build.parts import RECIPES, minutes, phase, read_part, shrink, shrunk
from research.build.run import Step, read_stamp

_FREE = ("save_every", "log_every", "eval_every", "eval_clips", "evaluate_every", "evaluate_clips", "out")
"""Keys that change nothing about what a step makes."""

NOTHING_LEARNT = 0.01
"""Below this scale no judge ends its answers, so they are cut after ``FEW_TOKENS``."""
FEW_TOKENS = 4

TARGETS = {
    "vae": ("vae",),
    "wan": ("wan/third", "wan/figures"),
    "judge": ("judge/calibrated",),
    "unified": ("unified/second",),
    "all": ("figures",),
}
"""What each target of the command makes, and what else is done for it."""


def curriculum(out: Path, scale: float = 1.0, recipes: Path = RECIPES) -> list[Step]:
    """All steps in an order in which each follows its inputs. Raises ``ValueError`` for a wrong recipe or scale."""
    if not 0 < scale <= 1:
        raise ValueError(f"--scale is a share in (0, 1], received {scale:g}")
    parts = {name: read_part(name, recipes) for name in ("vae", "wan", "generated", "judge", "unified", "calibrate")}
    steps = [
        *_wan(out, scale, parts),
        _wan_figures(out, scale, recipes),
        *_judge(out, scale, parts),
        *_stages(out, scale, parts),
    ]
    return [*steps, _figures(out, scale, parts["calibrate"])]


def _values(recipe: Any) -> dict[str, Any]:
    return {key: value for key, value in recipe_values(recipe).items() if key.rpartition(".")[2] not in _FREE}


# ---- the small Wan --------------------------------------------------------------------------------------------------


def _wan(out: Path, scale: float, parts: Mapping[str, Any]) -> list[Step]:
    from research.training.train_vae import VaeRecipe, train_vae
    from research.training.train_wan import WanRecipe, train_wan

    vae = shrink(phase(VaeRecipe, parts["vae"], "vae"), scale)

    def make_vae(folder: Path) -> dict[str, Any]:
        train_vae(replace(vae, out=str(folder)))
        return {"steps": vae.schedule.steps}

    code = ("research.training.train_vae",)
    steps = [Step("vae", _values(vae), (), code, minutes(parts["vae"], "vae"), make_vae)]
    before = None
    for name in parts["wan"]["phases"]:
        recipe = shrink(phase(WanRecipe, parts["wan"], name), scale)
        # All phases learn from the same latents, which the first one leaves.
        inputs = ("vae", *(() if before is None else tuple(dict.fromkeys((f"wan/{_first(parts)}", before)))))

        def make(folder: Path, recipe: Any = recipe, before: str | None = before) -> dict[str, Any]:
            paths = {"vae": str(out / "vae" / "final"), "latents": str(out / "wan" / _first(parts) / "latents")}
            start = "" if before is None else str(out / before / "final")
            train_wan(replace(recipe, out=str(folder), start=start, **paths))
            return {"steps": recipe.schedule.steps}

        code = ("research.training.train_wan",)
        before = f"wan/{name}"
        steps.append(Step(before, _values(recipe), inputs, code, minutes(parts["wan"], name), make))
    return steps


def _wan_figures(out: Path, scale: float, recipes: Path) -> Step:
    """What the small Wan is worth, long before the judge is made: one that would be refused is named at once."""
    from research.build.figures import as_json, wan_figures
    from research.build.gate import read_expected, refusals

    def make(folder: Path) -> dict[str, Any]:
        found = as_json(wan_figures(out / "wan" / "third" / "final", scale))
        expected = {name: row for name, row in read_expected(recipes / "expected.json").items() if name in found}
        for reason in refusals(found, expected):
            say(f"weights with this small Wan will not be installed: {reason}")
        return found

    return Step("wan/figures", {"share": scale}, ("wan/third",), ("research.build.figures",), 3, make)


def _first(parts: Mapping[str, Any]) -> str:
    return next(iter(parts["wan"]["phases"]))


# ---- lessons and judges ---------------------------------------------------------------------------------------------


def _judge(out: Path, scale: float, parts: Mapping[str, Any]) -> list[Step]:
    wan = f"wan/{list(parts['wan']['phases'])[-1]}"
    return [
        _pool("base", out, scale, parts, wan),
        _lessons("encoder", out, scale, parts, (), None),
        _lessons("sft", out, scale, parts, ("base",), "encoder"),
        *_unified(out, scale, parts),
        _calibrated(
            "judge/interim", "judge/sft", out, scale, parts["calibrate"], wan, [parts["calibrate"]["figures"]["looks"]]
        ),
        _alignment(out, scale, parts, wan),
        _pool("aligned", out, scale, parts, wan),
        _lessons("aligned", out, scale, parts, ("base", "aligned"), "sft"),
    ]


def _pool(name: str, out: Path, scale: float, parts: Mapping[str, Any], wan: str) -> Step:
    from research.training.generated import Generated, draw

    recipe = shrink(phase(Generated, parts["generated"], name), scale)
    inputs = (wan, "alignment") if name == "aligned" else (wan,)

    def make(folder: Path) -> dict[str, Any]:
        lora = str(out / "alignment" / "lora") if name == "aligned" else ""
        draw(replace(recipe, out=str(folder), model=str(out / wan / "final"), lora=lora))
        couples = len((folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()) // 2
        if not couples and scale == 1:
            raise ValueError(f"{folder}: no normal and anomalous clips of one prompt; the Wan has not learnt enough")
        return {"clips": recipe.clips, "couples": couples}

    code = ("research.training.generated",)
    at = minutes(parts["generated"], name)
    return Step(f"generated/{name}", _values(recipe), inputs, code, at, make)


def _with_couples(out: Path, pools: tuple[str, ...]) -> tuple[str, ...]:
    """The folders of these pools that hold couples; those without are named."""
    folders = [out / "generated" / name for name in pools]
    filled = [folder for folder in folders if (folder / "clips.jsonl").stat().st_size]
    if len(filled) < len(folders):
        say(f"{len(folders) - len(filled)} of {len(folders)} pools hold no couple and are left out of the lessons")
    return tuple(map(str, filled))


def _lessons(
    name: str, out: Path, scale: float, parts: Mapping[str, Any], pools: tuple[str, ...], before: str | None
) -> Step:
    from research.training.train_judge import JudgeTraining, train

    values = parts["judge"]["phases"][name]
    answers = "steps" in values
    own: dict[str, Any] = {} if answers else {"steps": 1}
    recipe = shrink(phase(JudgeTraining, parts["judge"], name, "phases", **own), scale)
    if not answers:  # questions to the visual tokens alone
        recipe = replace(recipe, stop_after=recipe.encoder_steps + recipe.auxiliary_steps)
    _check_heads(recipe.size)

    def make(folder: Path) -> dict[str, Any]:
        start = {} if before is None else {"start": str(out / "judge" / before / "final")}
        start |= {} if before is None else {"probe_heads": str(out / "judge" / before)}
        paths = {"out": str(folder), "pool": str(out / "judge" / "encoder" / "pool")}
        train(replace(recipe, generated=_with_couples(out, pools), **paths, **start))
        return {"steps": recipe.stop_after or recipe.encoder_steps + recipe.auxiliary_steps + recipe.steps}

    inputs = (*(f"generated/{pool}" for pool in pools), *(() if before is None else (f"judge/{before}",)))
    inputs += ("judge/encoder",) if before not in (None, "encoder") else ()
    code = ("research.training.train_judge",)
    return Step(f"judge/{name}", _values(recipe), inputs, code, minutes(parts["judge"], name), make)


def _check_heads(size: Any) -> None:
    """Raise ``ValueError`` for heads that a vLLM on a CPU refuses."""
    from research.build.gate import MIN_HEAD_SIZE

    if (found := size.text_hidden // size.text_heads) < MIN_HEAD_SIZE:
        raise ValueError(f"size: attention heads have {found} numbers; a vLLM on a CPU wants {MIN_HEAD_SIZE}")


def _unified(out: Path, scale: float, parts: Mapping[str, Any]) -> list[Step]:
    from research.training.train_judge import JudgeTraining, train

    steps: list[Step] = []
    for name in parts["unified"]["phases"]:
        recipe = shrink(phase(JudgeTraining, parts["unified"], name), scale)
        _check_heads(recipe.size)
        before = steps[-1].name if steps else None

        def make(folder: Path, recipe: Any = recipe, before: str | None = before) -> dict[str, Any]:
            start = {"body": str(out / "judge" / "sft" / "final")}
            start = start if before is None else {"start": str(out / before / "final")}
            pools = _with_couples(out, ("base",)) if recipe.mixture.generated else ()
            pool = str(out / "unified" / "pool")
            train(replace(recipe, out=str(folder), pool=pool, generated=pools, **start))
            return {"steps": recipe.steps}

        inputs = ("judge/sft", "generated/base") if before is None else (before, "generated/base")
        code = ("research.training.train_judge",)
        at = minutes(parts["unified"], name)
        steps.append(Step(f"unified/{name}", _values(recipe), inputs, code, at, make))
    return steps


def _alignment(out: Path, scale: float, parts: Mapping[str, Any], wan: str) -> Step:
    from cac_align.align.recipe import AlignRecipe, check_align_recipe

    part = {"phases": {"alignment": parts["generated"]["alignment"]}}
    recipe = shrink(phase(AlignRecipe, part, "alignment"), scale)
    if scale < 1:
        recipe = replace(recipe, max_unscored=1.0)
    check_align_recipe(recipe)
    looks = parts["calibrate"]["figures"]["looks"]
    judge, unified = out / "judge" / "interim" / "judge", out / "unified" / "second" / "final"

    def make(folder: Path) -> dict[str, Any]:
        from omegaconf import OmegaConf

        from cac_align.align.trainer import align
        from cac_align.runs.progress import progress_bar

        reward = {
            "normalise": "range",
            "components": {
                "unified": {"kind": "unified", "model": str(unified.resolve()), "weight": 1.0},
                "cac": {"kind": "cac", "model": str(judge.resolve()), "weight": 1.0, "tta": list(looks)},
                "normal_flow_speed": {"kind": "normal_flow_speed", "weight": 0.3, "full_speed": 0.15},
            },
        }
        if scale < NOTHING_LEARNT:
            reward["components"]["unified"]["max_new_tokens"] = FEW_TOKENS
        atomic_write(folder / "reward.yaml", OmegaConf.to_yaml(reward))
        model, rewarded = str(out / wan / "final"), str(folder / "reward.yaml")
        result = align(replace(recipe, out=str(folder), model=model, reward=rewarded), say, progress_bar)
        return {"steps": result.step, "alarms": len(result.alarms)}

    inputs = (wan, "judge/interim", "unified/second")
    code = ("cac_align.miniature.models.wan",)
    return Step("alignment", _values(recipe), inputs, code, minutes(part, "alignment"), make)


# ---- the three stages -----------------------------------------------------------------------------------------------


def _stages(out: Path, scale: float, parts: Mapping[str, Any]) -> list[Step]:
    from cac_align.config import read_recipe
    from cac_align.data.splits import Splits, split_stages
    from cac_align.data.synthesis.settings import Synthesis
    from cac_align.training.grpo import GrpoRecipe, train_grpo
    from cac_align.training.sft import SftRecipe, train_sft
    from research.training.records import Clips
    from research.training.records import make as make_records

    part = {"phases": {name: parts["judge"][name] for name in ("records", "chains", "splits")}}
    wan = f"wan/{list(parts['wan']['phases'])[-1]}"
    clips = shrink(phase(Clips, part, "records"), scale)
    synthesis, splits = phase(Synthesis, part, "chains"), phase(Splits, part, "splits")

    def records(folder: Path) -> dict[str, Any]:
        from cac_align.data.records import all_records

        found = make_records(replace(clips, out=str(folder), model=str(out / wan / "final")))
        kept = len(all_records(found))
        if kept == clips.rendered and scale == 1:
            raise ValueError(f"{folder}: no clip of the small Wan is fit for a record; it has not learnt enough")
        return {"records": kept}

    def chains(folder: Path) -> dict[str, Any]:
        from cac_align.data.records import all_records
        from cac_align.data.synthesis.synthesise import synthesise
        from cac_align.miniature.teacher.ground_truth import GroundTruth

        root = out / "judge" / "records"
        given = all_records(root / "records.jsonl")
        report = synthesise(given, root, GroundTruth(given), folder, synthesis)
        return {name: report[name] for name in ("records", "accepted", "discarded")}

    def split(folder: Path) -> dict[str, Any]:
        report = split_stages(out / "judge" / "chains", folder, splits)
        return {stage: figures["samples"] for stage, figures in report["stages"].items()}

    data = ("research.training.records", "cac_align.miniature.teacher.ground_truth")
    steps = [
        Step("judge/records", _values(clips), (wan,), data, minutes(part, "records"), records),
        Step("judge/chains", _values(synthesis), ("judge/records",), data, minutes(part, "chains"), chains),
        Step("judge/splits", _values(splits), ("judge/chains",), data, minutes(part, "splits"), split),
    ]
    before = "judge/aligned"
    for number, (name, chosen) in enumerate(parts["judge"]["stages"].items(), 1):
        kind: type[Any] = GrpoRecipe if number == 3 else SftRecipe
        recipe = shrink(read_recipe(kind, chosen["recipe"], chosen.get("set", []), folder="train"), scale)
        if number == 3 and scale < NOTHING_LEARNT:
            recipe = replace(recipe, rollout=replace(recipe.rollout, max_new_tokens=FEW_TOKENS))

        def train(folder: Path, recipe: Any = recipe, before: str = before) -> dict[str, Any]:
            model = replace(recipe.model, path=str(_weights(out / before)))
            data = replace(recipe.data, folder=str(out / "judge" / "splits"))
            given = replace(recipe, out=str(folder), model=model, data=data)
            if isinstance(given, GrpoRecipe):
                train_grpo(given)
            else:
                train_sft(cast(SftRecipe, given))
            return {"steps": recipe.run.last_step}

        code = ("cac_align.training.grpo" if number == 3 else "cac_align.training.sft",)
        inputs = ("judge/splits", "judge/records", before)
        before = f"judge/{name}"
        steps.append(Step(before, _values(recipe), inputs, code, minutes(parts["judge"], name, "stages"), train))
    return [*steps, _calibrated("judge/calibrated", before, out, scale, parts["calibrate"], wan)]


def _weights(folder: Path) -> Path:
    """What a training leaves for the next one: its best evaluation's weights, or where it made none its last ones."""
    return folder / "best" if (folder / "best").is_dir() else folder / "final"


# ---- the finished judge ---------------------------------------------------------------------------------------------


def _calibrated(
    name: str,
    source: str,
    out: Path,
    scale: float,
    part: Mapping[str, Any],
    wan: str,
    looks_to_fit: Sequence[Sequence[str]] = (),
) -> Step:
    """A copy of a judge with a temperature for each way of looking (none given: those of the recipe)."""
    settings = part["calibrate"]
    clips, fitted = shrunk(settings["clips"], scale, 4), looks_to_fit or settings["looks"]

    def make(folder: Path) -> dict[str, Any]:
        from cac_align.cac.judge_settings import read_two_turn, write_settings
        from research.experiments.calibrate import calibrate

        shutil.copytree(out / source / "final", folder / "judge", dirs_exist_ok=True)
        if scale < NOTHING_LEARNT:
            asked = read_two_turn(folder / "judge")
            write_settings(folder / "judge", replace(asked, max_new_tokens=FEW_TOKENS))
        found: dict[str, Any] = {}
        for looks in fitted:
            try:
                fit = calibrate(folder / "judge", clips, tuple(looks), model=str(out / wan / "final"))
            except ValueError as error:
                if scale == 1:
                    raise
                found[", ".join(looks)] = f"not calibrated: {error}"[:300]
            else:
                found[", ".join(looks)] = f"T = {fit.temperature}, threshold {fit.threshold}"
        return found

    recipe = {"clips": clips, "looks": [list(looks) for looks in fitted]}
    cost = settings["minutes"] * sum(map(len, fitted)) / sum(map(len, settings["looks"]))
    return Step(name, recipe, (source, wan), ("research.experiments.calibrate",), cost, make)


def _figures(out: Path, scale: float, part: Mapping[str, Any]) -> Step:
    from research.build.figures import Measured, as_json, judge_figures

    settings = {name: value for name, value in part["figures"].items() if name != "minutes"}
    asked = Measured(
        playground_clips=shrunk(settings["playground"]["clips"], scale, 4),
        first_seed=settings["playground"]["first_seed"],
        generated_clips=shrunk(settings["generated"]["clips"], scale, 4),
        first_noise=settings["generated"]["first_noise"],
        looks=tuple(settings["looks"]),
    )

    def make(folder: Path) -> dict[str, Any]:
        found = judge_figures(out / "judge" / "calibrated" / "judge", out / "wan" / "third" / "final", asked)
        of_wan = read_stamp(out / "wan" / "figures")
        return as_json(found) | (of_wan["figures"] if of_wan else {})

    inputs = ("judge/calibrated", "wan/third", "wan/figures", "unified/second")
    code = ("research.build.figures",)
    return Step("figures", recipe_values(asked), inputs, code, part["figures"]["minutes"], make)
