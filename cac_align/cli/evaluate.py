"""`cac-align evaluate …` and `vbench-env`: how good is a judge, and how good are videos."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cac_align.cli.audit import add_audit
from cac_align.cli.correlation import add_correlation
from cac_align.cli.options import add_set_option, add_verb, input_path, stated_domain
from cac_align.cli.vbvr import add_vbvr


def add_evaluate(verbs: Any) -> None:
    """The options of `cac-align evaluate` and of the verbs below it."""
    evaluate = add_verb(verbs, "evaluate", None, "how good is a judge, how good are the videos")
    kinds = evaluate.add_subparsers(
        dest="kind", required=True, metavar="bench|calibrate|reward|correlation|vbvr|vbench|experts"
    )

    bench = add_verb(
        kinds, "bench", run_bench, "a judge against annotated records: CaC-Bench's tables, calibration, intervals"
    )
    bench.add_argument("records", type=input_path, help="records.jsonl; its videos lie relative to it")
    bench.add_argument(
        "--reward",
        action="append",
        help="recipe YAML, name or URL, or module:Name; several are compared (default: the miniature)",
    )
    add_set_option(bench)
    bench.add_argument(
        "--stored", action="append", type=Path, help="scores made before (ledger, or `score --json`): no model is run"
    )
    bench.add_argument(
        "--threshold",
        type=_threshold,
        metavar="NUMBER|fit",
        help="score below which a video counts as abnormal; fit: fitted on the half of the videos that it is not used "
        "on (default: the judge's own verdict; 0.5 for a number from 0 to 1; fit for any other number)",
    )
    bench.add_argument(
        "--protocol",
        choices=("official", "cac", "both"),
        default="official",
        help="official: each judge as its recipe says; cac: the same model with CaC's prompt and frames; both",
    )
    bench.add_argument("--ledger", type=Path, help="keep and reuse scores")
    bench.add_argument("--out", type=Path, help="folder for bench.json, bench.md and plots")
    bench.add_argument("--videos", action="store_true", help="with --json: one row per video as well")
    bench.add_argument("--json", action="store_true", help="JSON instead of tables")

    fit = add_verb(
        kinds, "calibrate", run_calibrate, "temperature and threshold of a CaC judge, fitted on annotated records"
    )
    fit.add_argument(
        "records",
        type=input_path,
        help="records.jsonl of videos that the judge has not been trained on and will not be measured on",
    )
    fit.add_argument("--reward", help="recipe YAML with one two-turn cac in it (default: the miniature)")
    add_set_option(fit)
    fit.add_argument("--ledger", type=Path, help="keep and reuse scores")
    fit.add_argument("--write", type=Path, metavar="FOLDER", help="write them into this judge's cac_align.json")
    fit.add_argument("--json", action="store_true", help="JSON instead of a recipe's lines")

    add_audit(kinds)
    add_correlation(kinds)
    add_vbvr(kinds)

    vbench = add_verb(kinds, "vbench", run_vbench, "the real VBench, run in an environment of its own")
    vbench.add_argument("folder", type=Path, help="folder of videos")
    vbench.add_argument(
        "--dimensions",
        nargs="+",
        default=["subject_consistency", "imaging_quality", "dynamic_degree"],
        metavar="NAME",
        help="VBench's dimensions (default: subject_consistency imaging_quality dynamic_degree)",
    )
    vbench.add_argument(
        "--prompts",
        type=Path,
        help="JSONL of {video, prompt} for the dimensions that need one (default: the folder's listings)",
    )
    vbench.add_argument(
        "--rows", type=Path, help="where per-video results are kept (default: vbench.jsonl in the folder)"
    )
    vbench.add_argument("--python", type=Path, help="python of an environment that has vbench")
    vbench.add_argument("--device", default="cpu", help="torch device that VBench runs on")
    vbench.add_argument("--json", action="store_true", help="JSON instead of a table")

    experts = add_verb(kinds, "experts", run_experts, "what people rated: anomaly rates, paired difference, agreement")
    experts.add_argument("ratings", type=Path, help="ratings.jsonl or ratings.sqlite, or the folder that has them")
    experts.add_argument("--groups", nargs=2, metavar=("BEFORE", "AFTER"), help="the two groups to compare")
    experts.add_argument("--json", action="store_true", help="JSON instead of tables")


def add_vbench_env(verbs: Any) -> None:
    """The options of `cac-align vbench-env`."""
    parser = add_verb(verbs, "vbench-env", run_vbench_env, "create the environment of its own that VBench needs")
    parser.add_argument("folder", nargs="?", type=Path, help="where to (default: where `evaluate vbench` looks for it)")


def run_bench(options: argparse.Namespace) -> int:
    """Print the tables of one or several judges. Returns 1 where a video has no score."""
    from cac_align.data.records import all_records
    from cac_align.evaluation.bench.bench import bench, threshold_notes, write_bench
    from cac_align.evaluation.bench.detection import check_threshold, evaluate_judge, needs_fit
    from cac_align.evaluation.bench.protocols import protocol_rows
    from cac_align.evaluation.bench.results import compare_judges
    from cac_align.evaluation.bench.stored_scores import stored_scores
    from cac_align.evaluation.bench.tables import to_markdown
    from cac_align.evaluation.bench.thresholds import FIT, file_groups
    from cac_align.rewards.build import unloaded_reward
    from cac_align.rewards.combine import bounds_of
    from cac_align.rewards.ledger import Ledger
    from cac_align.rewards.reachable import check_reachable, load_reachable
    from cac_align.runs.progress import progress_callback

    if options.stored and (options.reward or options.overrides or options.protocol != "official"):
        raise ValueError(
            "--stored reads scores made before, and runs no model; leave out --reward, --set and --protocol"
        )
    records = all_records(options.records)  # what is wrong with the paths is said before a judge is loaded
    if not options.stored:
        _check_some_video(options.records, records)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.stored:
        judges: dict[str, Any] = {}
        for path in options.stored:
            found_there = stored_scores(path, records)
            twice = judges.keys() & found_there.keys()
            if twice:
                raise ValueError(
                    f"{path}: scores of {min(twice)!r} stand in another --stored file as well; put them into one file"
                )
            judges |= found_there
        groups, unread = file_groups(records, options.records.parent)
        reports = []
        for name, scores in judges.items():
            aligned = [scores.get(record.id) for record in records]
            fit = options.threshold is None and needs_fit(aligned, None)
            threshold = FIT if fit else options.threshold
            reports.append(evaluate_judge(records, aligned, judge=name, threshold=threshold, groups=groups))
        found = compare_judges(reports, notes=threshold_notes(reports, unread))
        if options.out:
            write_bench(found, options.out)
    else:
        recipes = options.reward or [None]
        rows, notes = [], []
        for name, recipe in zip(judge_names(recipes), recipes, strict=True):
            of_judge, told = protocol_rows(name, recipe, options.overrides, options.protocol)
            rows += of_judge
            notes += told
        ledger = Ledger(options.ledger) if options.ledger else None
        for row in rows:  # all of them before the first is loaded
            unloaded = unloaded_reward(row.recipe, row.overrides)
            check_threshold(row.name, options.threshold, bounds_of(unloaded))
            check_reachable(unloaded)
        rewards = {row.name: load_reachable(row.recipe, row.overrides, deferred=ledger is not None) for row in rows}
        with stated_domain(*rewards.values()):
            found = bench(
                options.records,
                rewards,
                ledger=ledger,
                out=options.out,
                threshold=options.threshold,
                progress=progress_callback("video"),
                protocols={row.name: row.protocol for row in rows},
                notes=notes,
            )
    print(json.dumps(found.to_json(videos=options.videos), indent=1) if options.json else to_markdown(found), end="\n")
    unscored = sum(report.unscored for report in found.reports)
    if unscored:
        print(f"{unscored} videos have no score", file=sys.stderr)
    return 1 if unscored else 0


def _threshold(text: str) -> float | str:
    """The type of ``--threshold``: a number, or "fit"."""
    if text == "fit":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or fit, received {text!r}") from None


def _check_some_video(path: Path, records: Sequence[Any]) -> None:
    """Raise ``ValueError`` where not one of the records' videos is there; a few missing ones are counted instead."""
    if records and not any((path.parent / record.video).exists() for record in records):
        raise ValueError(
            f"{path}: none of its {len(records)} videos is there, for example {path.parent / records[0].video}; "
            "videos lie relative to the records"
        )


def judge_names(recipes: Sequence[str | None]) -> list[str]:
    """Names of the judges in a comparison: a recipe's file name, or its path where names are equal.

    Raises ``ValueError`` for a recipe that is given twice.
    """
    names = [
        "miniature" if recipe is None else Path(recipe).stem if Path(recipe).suffix else recipe for recipe in recipes
    ]
    names = [name if names.count(name) == 1 else str(recipe) for name, recipe in zip(names, recipes, strict=True)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"--reward {twice[0]} is given {len(twice)} times; each judge is compared once")
    return names


def run_calibrate(options: argparse.Namespace) -> int:
    """Fit a judge's temperature and threshold and print them. Returns 1 where a video has no score."""
    from cac_align.cac.judge_settings import write_temperature, write_threshold
    from cac_align.data.records import all_records
    from cac_align.evaluation.bench.bench import score_records
    from cac_align.evaluation.bench.fitting import fit_scores
    from cac_align.rewards.build import load_cac, unloaded_reward
    from cac_align.rewards.cached import cached
    from cac_align.rewards.ledger import Ledger
    from cac_align.rewards.reachable import check_reachable
    from cac_align.runs.progress import progress_callback

    if options.write is not None and not (options.write / "config.json").is_file():
        raise ValueError(f"--write {options.write} is no judge's folder: it has no config.json")
    records = all_records(options.records)
    if len({record.status for record in records}) < 2:
        raise ValueError(
            f"{options.records}: expected normal and abnormal videos, all {len(records)} are {records[0].status}"
        )
    _check_some_video(options.records, records)
    ledger = Ledger(options.ledger) if options.ledger else None
    check_reachable(unloaded_reward(options.reward, options.overrides))
    loaded = load_cac(options.reward, options.overrides, deferred=ledger is not None)
    reward = replace(loaded, temperature=1.0, threshold=0.0)  # log-odds do not depend on them
    judge = reward if ledger is None else cached(reward, ledger)
    show = progress_callback("video")
    scores, notes = score_records(options.records, records, judge, lambda done: show("", done, len(records)))
    fit = fit_scores(scores, [record.status == "normal" for record in records], num_augmentations=len(reward.tta))
    if options.write is not None:
        write_temperature(options.write, fit.temperature, reward.tta)
        if fit.threshold is not None:
            write_threshold(options.write, fit.threshold, reward.tta)
    if options.json:
        print(json.dumps({"tta": list(reward.tta), **fit.to_json(), "notes": notes}, indent=1))
    else:
        loss = f"loss {fit.loss_before:.3f} → {fit.loss:.3f} nats"
        print(f"temperature: {fit.temperature}   # tta: {', '.join(reward.tta)}; {loss}")
        if fit.threshold is not None:
            print(f"threshold: {fit.threshold}   # verdicts right {fit.right_before:.3f} at 0, {fit.right:.3f} at it")
        print(f"fitted on {fit.n} videos, {fit.abnormal:.2f} of them abnormal", *notes, sep="\n", file=sys.stderr)
    if fit.n < len(records):
        print(f"{len(records) - fit.n} videos have no score", file=sys.stderr)
    return 1 if fit.n < len(records) else 0


def run_vbench(options: argparse.Namespace) -> int:
    """Run VBench and print its results. Returns 1 where a video has no score."""
    from cac_align.cli.score import video_prompts
    from cac_align.evaluation.vbench.run import vbench, videos_in
    from cac_align.runs.progress import progress_callback

    prompts = None
    if options.prompts is not None:
        files = [str(file) for file in videos_in(options.folder)]
        prompts = dict(zip(files, video_prompts(files, None, options.prompts), strict=True))
    show = progress_callback("result")
    report = vbench(
        options.folder,
        prompts=prompts,
        dimensions=options.dimensions,
        rows=options.rows,
        python=options.python,
        device=options.device,
        progress=lambda done, total, _: show("VBench", done, total),
    )
    print(json.dumps(report.to_json(), indent=1) if options.json else report.to_markdown(), end="\n")
    return 1 if report.unscored else 0


def run_vbench_env(options: argparse.Namespace) -> int:
    """Create VBench's environment and print its folder."""
    from cac_align.evaluation.vbench.environment import DEFAULT_ENVIRONMENT, vbench_env

    print(vbench_env(options.folder or DEFAULT_ENVIRONMENT, progress=lambda line: print(line, file=sys.stderr)))
    return 0


def run_experts(options: argparse.Namespace) -> int:
    """Print what the ratings say."""
    from cac_align.evaluation.human.experts import read_ratings, summarise_ratings

    ratings, faults = read_ratings(options.ratings)
    report = summarise_ratings(ratings, groups=tuple(options.groups) if options.groups else None, faults=faults)
    print(json.dumps(report.to_json(), indent=1) if options.json else report.to_markdown(), end="\n")
    return 0
