"""`cac-align data …`: from annotated videos to the samples that CaC is trained on.

inject or import → records.jsonl → validate → synthesise (chains.jsonl) → split (stage1, stage2, stage3.jsonl)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cac_align.cli.inject import add_inject
from cac_align.cli.options import add_set_option, add_verb, check_writable, input_path

EXTERNAL = ("vif-cot", "geneva", "broken-videos", "videophy2", "spotlight")
"""Data sets of other people that have a loader."""


def add_data(verbs: Any) -> None:
    """The options of `cac-align data` and of the six verbs below it."""
    data = add_verb(verbs, "data", None, "annotated videos: check, convert, explain, split into stages")
    kinds = data.add_subparsers(dest="kind", required=True, metavar="inject|validate|import|export|synthesise|split")
    add_inject(kinds)

    validate = add_verb(
        kinds, "validate", run_validate, "Appendix B.1's conventions; each violation by record, field and rule"
    )
    validate.add_argument("records", type=Path, help="records.jsonl; its videos lie relative to it")
    validate.add_argument("--skip", action="append", default=[], metavar="RULE", help="leave a rule out, e.g. boxed")
    validate.add_argument("--no-videos", action="store_true", help="do not open the videos")
    validate.add_argument("--json", action="store_true", help="JSON instead of lines")

    take = add_verb(kinds, "import", run_import, "ratings, COCO boxes, or a known data set as records.jsonl")
    take.add_argument("format", choices=("rating", "coco", *EXTERNAL), help="what the source is")
    take.add_argument("source", type=Path, help="the rating page's file or folder; COCO JSON; a data set's annotations")
    take.add_argument("out", type=Path, help="records.jsonl to write")
    take.add_argument(
        "--videos",
        type=Path,
        help="folder of the videos (coco: default beside the JSON; spotlight: default spotlight/)",
    )
    take.add_argument("--masks", type=Path, help="broken-videos: folder of the masks (source: the videos)")
    take.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="coco, geneva: a label of theirs; nothing after =: drop",
    )
    take.add_argument(
        "--unannotated", choices=("normal", "leave out"), default="leave out", help="coco: videos without boxes"
    )
    take.add_argument("--review", choices=("draft", "accepted", "audited"), help="rating: set the review state")

    give = add_verb(kinds, "export", run_export, "records as COCO JSON, or repairs as preference pairs with masks")
    give.add_argument("format", choices=("coco", "preferences"), help="what to write")
    give.add_argument("records", type=Path, help="records.jsonl; for preferences: the --out of `cac-align repair`")
    give.add_argument("out", type=Path, help="file to write: JSON, or JSON Lines for preferences")

    synthesise = add_verb(
        kinds, "synthesise", run_synthesise, "chains of thought by a teacher that is given what people found; resumes"
    )
    synthesise.add_argument("records", type=input_path, help="records.jsonl")
    synthesise.add_argument(
        "--teacher", help="miniature (knows the world's truth) | recipe YAML | URL | checkpoint | module:Name of a Vlm"
    )
    synthesise.add_argument("--out", type=Path, required=True, help="folder to write")
    synthesise.add_argument("--recipe", type=Path, help="YAML with synthesis: (and teacher:)")
    add_set_option(synthesise, "override one key of the recipe, the teacher's as teacher.KEY; repeatable")
    synthesise.add_argument("--json", action="store_true", help="JSON instead of a table")

    split_stages = add_verb(
        kinds, "split", run_split, "three stages, disjoint by video and near-duplicate, as many normal as abnormal"
    )
    split_stages.add_argument("folder", type=input_path, help="what synthesise wrote; with --check: what split wrote")
    split_stages.add_argument("--out", type=Path, help="folder for the stages")
    split_stages.add_argument("--check", action="store_true", help="only prove the splits that lie in FOLDER")
    split_stages.add_argument(
        "--apart", action="append", default=[], type=Path, metavar="RECORDS", help="a benchmark to stay clear of"
    )
    split_stages.add_argument("--recipe", type=Path, help="YAML with splits:")
    add_set_option(split_stages)
    split_stages.add_argument("--json", action="store_true", help="JSON instead of lines")


def run_validate(options: argparse.Namespace) -> int:
    """Print every violation. Returns 1 where there is one."""
    from cac_align.data.validate import validate
    from cac_align.runs.progress import progress_bar

    with progress_bar(None, "checking", "record") as bar:
        found = validate(options.records, skip=options.skip, videos=not options.no_videos, progress=bar.update)
    if options.json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        for violation in found.violations:
            print(violation)
        print(f"{found.records} records, {len(found.violations)} violations", file=sys.stderr)
    return 1 if found.violations else 0


# ---- import and export --------------------------------------------------------------------------------------------


def run_import(options: argparse.Namespace) -> int:
    """Write the records that a source holds and print their path."""
    from cac_align.data.convert import from_coco, merge_ratings
    from cac_align.data.records import write_records

    out: Path = options.out
    check_writable("OUT", out)
    if options.format == "coco":
        loaded: Any = from_coco(
            options.source, videos=options.videos, labels=_labels(options.label), unannotated=options.unannotated
        )
    elif options.format == "rating":
        from cac_align.evaluation.human.experts import read_ratings

        ratings, faults = read_ratings(options.source)
        for fault in faults:
            print(f"{fault.kind}: {fault.name}: {fault.why}", file=sys.stderr)
        folder = options.source if options.source.is_dir() else options.source.parent
        # Absolute first: two rating files may call the same video by different relative paths.
        loaded = merge_ratings(
            [replace(rating, video=str((folder / rating.video).resolve())) for rating in ratings], review=options.review
        )
    else:
        loaded = _external(options)
        for doubt in loaded.unverified:
            print(f"not verified against the real files: {doubt}", file=sys.stderr)
    for name, reason in loaded.left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    root = out.parent.resolve()
    write_records(out, (_relative(record, root) for record in loaded.records))
    print(f"{loaded.summary()}: {out}; check them with `cac-align data validate {out}`", file=sys.stderr)
    print(out)
    return 0


def _relative(record: Any, root: Path) -> Any:
    """The record with its video named relative to ``root`` where the video lies below it."""
    path = Path(record.video)
    if not path.is_absolute() or not path.resolve().is_relative_to(root):
        return record
    return replace(record, video=str(path.resolve().relative_to(root)))


def _labels(pairs: Sequence[str]) -> dict[str, str | None]:
    table: dict[str, str | None] = {}
    for pair in pairs:
        theirs, sign, ours = pair.partition("=")
        if not sign:
            raise ValueError(f"--label expects THEIRS=OURS, received {pair!r}")
        table[theirs] = ours or None
    return table


def _external(options: argparse.Namespace) -> Any:
    from importlib import import_module

    loader = import_module(f"cac_align.data.external.{options.format.replace('-', '_')}")
    if options.format == "broken-videos":
        if options.masks is None:
            raise ValueError("broken-videos needs --masks, the folder of the masks; SOURCE is the folder of the videos")
        return loader.load(options.source, options.masks)
    if options.videos is None and options.format != "spotlight":  # whose videos have a place beside its file
        raise ValueError(f"{options.format} needs --videos, the folder its videos lie in")
    if options.format == "geneva":
        return loader.load(options.source, videos=options.videos, table=_labels(options.label))
    return loader.load(options.source, videos=options.videos)


def run_export(options: argparse.Namespace) -> int:
    """Write records or repairs in another format and print the file."""
    if options.format == "preferences":
        return export_preferences(options.records, options.out)
    from cac_align.data.convert import to_coco
    from cac_align.data.records import moved_record, read_records
    from cac_align.runs.files import atomic_write

    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = (
        moved_record(record, options.records.parent, options.out.parent) for record in read_records(options.records)
    )
    atomic_write(options.out, json.dumps(to_coco(records), ensure_ascii=False))
    print(options.out)
    return 0


def export_preferences(repairs: Path, out: Path) -> int:
    """Write the pairs of a repair run and print the file. Returns 1 where there is none."""
    from cac_align.data.preferences import preference_pairs, write_preferences

    pairs, left_out = preference_pairs(repairs)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    write_preferences(pairs, out)
    print(f"{len(pairs)} pairs", file=sys.stderr)
    print(out)
    return 0 if pairs else 1


# ---- synthesise ---------------------------------------------------------------------------------------------------


def run_synthesise(options: argparse.Namespace) -> int:
    """Have a teacher explain what people found.

    Returns 1 where records have no answer or none is accepted.
    """
    from cac_align.config import read_recipe
    from cac_align.data.records import all_records
    from cac_align.data.synthesis.settings import Synthesis
    from cac_align.data.synthesis.synthesise import synthesise
    from cac_align.rewards.reachable import check_reachable
    from cac_align.runs.progress import progress_bar

    records = all_records(options.records)
    check_writable("--out", options.out, folder=True)
    teacher_overrides = [item.removeprefix("teacher.") for item in options.overrides if item.startswith("teacher.")]
    overrides = [item for item in options.overrides if not item.startswith("teacher.")]
    small = options.teacher == "miniature"
    settings = read_recipe(
        Synthesis, options.recipe, ["wording=brief", *overrides] if small and options.recipe is None else overrides,
        section="synthesis", folder="data",
    )  # fmt: skip
    teacher = load_teacher(options.teacher, options.recipe, teacher_overrides, records)
    check_reachable(teacher)
    with progress_bar(len(records), "explaining", "record") as bar:

        def show(done: int, total: int, counts: Mapping[str, Any]) -> None:
            bar.total = total
            cost = "" if counts["cost"] is None else f", cost {counts['cost']:.2f}"
            tokens = counts["prompt_tokens"] + counts["answer_tokens"]
            bar.set_postfix_str(
                f"{counts.get('discarded', 0)} discarded, {counts['rejected']} rejected, {tokens} tokens{cost}"
            )
            bar.update(done - bar.n)

        report = synthesise(records, options.records.parent, teacher, options.out, settings, progress=show)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            print(f"{name:>16}  {value}")
    if report["unanswered"]:
        print(
            f"{report['unanswered']} records are without an answer of the teacher; the same command resumes",
            file=sys.stderr,
        )
    return 1 if report["unanswered"] or not report["accepted"] else 0


def load_teacher(name: str | None, recipe: Path | None, overrides: Sequence[str], records: Sequence[Any]) -> Any:
    """The teacher that ``--teacher`` and ``--recipe`` name.

    name: "miniature" (the world's own truth), a judge recipe, a URL, a checkpoint, or
    "module:Name". overrides: of the teacher's keys. records: what it will explain. Raises
    ``ValueError`` where no teacher is named, or it is none.
    """
    from omegaconf import OmegaConf

    from cac_align.config import import_name, read_recipe
    from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward
    from cac_align.rewards.cac import CaC

    if name == "miniature":
        from cac_align.miniature.teacher.ground_truth import GroundTruth

        return GroundTruth(records)
    if name is None:
        if recipe is None or not recipe.is_file() or "teacher" not in OmegaConf.load(recipe):
            raise ValueError(
                "pass --teacher (miniature, a recipe, a URL, a checkpoint), or a --recipe with a teacher: section"
            )
        name = str(recipe)
    if ":" in name and not name.startswith(("http://", "https://")) and not Path(name).exists():
        return import_name(name)()
    if not name.endswith((".yaml", ".yml")):
        judge = read_recipe(JudgeRecipe, None, [f"model={name}", *overrides])
    elif Path(name).is_file() and {"components", "reward"} & set(OmegaConf.load(name)):
        components = read_recipe(RewardRecipe, name, section="reward").components
        names = [component for component, said in components.items() if said.kind == "cac"]
        if not names:
            raise ValueError(
                f"{name}: none of its components is of kind cac; a teacher is the model of a cac component"
            )
        given = [f"components.{names[0]}.{override}" for override in overrides]
        judge = read_recipe(RewardRecipe, name, given, section="reward").components[names[0]]
    else:
        judge = read_recipe(JudgeRecipe, name, overrides, section="teacher")
    reward = load_reward(RewardRecipe(components={"teacher": replace(judge, kind="cac")}))
    assert isinstance(reward, CaC)
    return reward.vlm


# ---- split --------------------------------------------------------------------------------------------------------


def run_split(options: argparse.Namespace) -> int:
    """Write, or with ``--check`` prove, the three stages. Returns 1 where a check found something."""
    from cac_align.config import read_recipe
    from cac_align.data.splits import Splits, check_split_folder, split_stages
    from cac_align.runs.progress import progress_bar

    check_writable("--out", options.out, folder=True)
    settings = read_recipe(Splits, options.recipe, options.overrides, section="splits", folder="data")
    with progress_bar(None, "hashing") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if options.check:
            stages, wrong = check_split_folder(options.folder, settings, apart=options.apart, progress=show)
            report: dict[str, Any] = {"stages": stages, "findings": wrong}
        elif options.out is None:
            raise ValueError("pass --out, the folder for the three stages, or --check to prove the splits in FOLDER")
        else:
            wrong = []
            report = split_stages(options.folder, options.out, settings, apart=options.apart, progress=show)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for stage, figures in report["stages"].items():
            print(f"{stage}: {figures['samples']} samples of {figures['videos']} videos: {figures['tasks']}")
        for name, pool in report.get("mix", {}).items():
            samples = ", ".join(f"{count} in {stage}" for stage, count in pool["samples"].items())
            print(f"from {name}: {pool['records']} of {pool['of']} records ({pool['share']:.1%}); samples: {samples}")
        if not options.check:
            for stage, why in report["missing"].items():
                print(f"{stage} is empty: {why}", file=sys.stderr)
            print(f"near_benchmark: {report['near_benchmark']} videos kept out")
            print(f"unused: {report['unused']} videos with chains are in no stage, those kept out included")
        for finding in wrong:
            print(finding)
        print(
            "no video and no near-duplicate in two stages" if not wrong else f"{len(wrong)} findings", file=sys.stderr
        )
    return 1 if wrong else 0
