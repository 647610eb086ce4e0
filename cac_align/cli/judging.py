"""`cac-align evaluate bench|calibrate|vbench|experts`, `vbench-env`, `report`, `annotate`: how good is the judge, and how good are the videos."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any


def run_bench(options: argparse.Namespace) -> int:
    from cac_align.data.records import all_records
    from cac_align.evaluation.bench.bench import bench, compare, stored_scores, write
    from cac_align.evaluation.bench.detection import evaluate
    from cac_align.rewards.build import load_reward
    from cac_align.rewards.ledger import Ledger

    if options.stored and (options.reward or options.overrides):
        raise ValueError("--stored reads scores made before, and runs no model; leave out --reward and --set")
    records = all_records(options.records)  # what is wrong with the paths is said before a judge is loaded
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
        reports = [
            evaluate(records, [scores.get(record.id) for record in records], judge=name, threshold=options.threshold)
            for name, scores in judges.items()
        ]
        found = compare(reports)
        if options.out:
            write(found, options.out)
    else:
        recipes = options.reward or [None]
        names = judge_names(recipes)
        rewards = {name: load_reward(recipe, options.overrides) for name, recipe in zip(names, recipes, strict=True)}
        ledger = Ledger(options.ledger) if options.ledger else None
        found = bench(
            options.records,
            rewards,
            ledger=ledger,
            out=options.out,
            threshold=options.threshold,
            progress=_progress("videos"),
        )
    print(json.dumps(found.to_json(videos=options.videos), indent=1) if options.json else found.to_markdown(), end="\n")
    unscored = sum(report.unscored for report in found.reports)
    if unscored:
        print(f"{unscored} videos have no score", file=sys.stderr)
    return 1 if unscored else 0


def judge_names(recipes: Sequence[str | None]) -> list[str]:
    """What the judges are called in a comparison: a recipe's file name, its path where two have the same. Raises ``ValueError`` for one given twice."""
    names = [
        "miniature" if recipe is None else Path(recipe).stem if Path(recipe).suffix else recipe for recipe in recipes
    ]
    names = [name if names.count(name) == 1 else str(recipe) for name, recipe in zip(names, recipes, strict=True)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"--reward {twice[0]} is given {len(twice)} times; each judge is compared once")
    return names


def run_calibrate(options: argparse.Namespace) -> int:
    from cac_align.cac.judge_settings import write_temperature, write_threshold
    from cac_align.data.records import all_records
    from cac_align.evaluation.bench.bench import score_records
    from cac_align.evaluation.bench.calibration import fit_scores
    from cac_align.rewards.build import load_cac
    from cac_align.rewards.ledger import Ledger

    if options.write is not None and not (options.write / "config.json").is_file():
        raise ValueError(f"--write {options.write} is no judge's folder: it has no config.json")
    records = all_records(options.records)
    if len({record.status for record in records}) < 2:
        raise ValueError(
            f"{options.records}: expected normal and abnormal videos, all {len(records)} are {records[0].status}"
        )
    reward = replace(
        load_cac(options.reward, options.overrides), temperature=1.0, threshold=0.0
    )  # log-odds do not depend on them
    judge = Ledger(options.ledger).wrap(reward) if options.ledger else reward
    show = _progress("videos")
    scores, notes = score_records(options.records, records, judge, lambda done: show("", done, len(records)))
    fit = fit_scores(scores, [record.status == "normal" for record in records], views=len(reward.views))
    if options.write is not None:
        write_temperature(options.write, fit.temperature, reward.views)
        if fit.threshold is not None:
            write_threshold(options.write, fit.threshold, reward.views)
    if options.json:
        print(json.dumps({"views": list(reward.views), **fit.to_json(), "notes": notes}, indent=1))
    else:
        print(
            f"temperature: {fit.temperature}   # views: {', '.join(reward.views)}; loss {fit.loss_before:.3f} → {fit.loss:.3f} nats"
        )
        if fit.threshold is not None:
            print(f"threshold: {fit.threshold}   # verdicts right {fit.right_before:.3f} at 0, {fit.right:.3f} at it")
        print(f"fitted on {fit.n} videos, {fit.abnormal:.2f} of them abnormal", *notes, sep="\n", file=sys.stderr)
    if fit.n < len(records):
        print(f"{len(records) - fit.n} videos have no score", file=sys.stderr)
    return 1 if fit.n < len(records) else 0


def run_vbench(options: argparse.Namespace) -> int:
    from cac_align.cli.scoring import video_prompts
    from cac_align.evaluation.vbench.run import vbench, videos_in

    prompts = None
    if options.prompts is not None:
        files = [str(file) for file in videos_in(options.folder)]
        prompts = dict(zip(files, video_prompts(files, None, options.prompts), strict=True))
    report = vbench(
        options.folder,
        prompts=prompts,
        dimensions=options.dimensions,
        rows=options.rows,
        python=options.python,
        device=options.device,
        progress=_progress("results"),
    )
    print(json.dumps(report.to_json(), indent=1) if options.json else report.to_markdown(), end="\n")
    return 1 if report.unscored else 0


def run_vbench_env(options: argparse.Namespace) -> int:
    from cac_align.evaluation.vbench.run import DEFAULT_ENVIRONMENT, vbench_env

    print(vbench_env(options.folder or DEFAULT_ENVIRONMENT, progress=lambda line: print(line, file=sys.stderr)))
    return 0


def run_experts(options: argparse.Namespace) -> int:
    from cac_align.evaluation.human.experts import experts, read_ratings

    ratings, faults = read_ratings(options.ratings)
    report = experts(ratings, groups=tuple(options.groups) if options.groups else None, faults=faults)
    print(json.dumps(report.to_json(), indent=1) if options.json else report.to_markdown(), end="\n")
    return 0


def _progress(unit: str) -> Callable[[Any, Any, Any], None]:
    """A progress line for callbacks of (name, done, total) or (done, total, name)."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(first: Any, second: Any, third: Any) -> None:
        name, done, total = (first, second, third) if isinstance(first, str) else ("", first, second)
        bar = bars.setdefault(
            name, tqdm(total=total, unit=f" {unit}", desc=name or None, file=sys.stderr, disable=None)
        )
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def run_report(options: argparse.Namespace) -> int:
    from cac_align.evaluation.report.report import report, report_selection
    from cac_align.rewards.build import load_reward

    if options.overrides and options.reward is None:
        raise ValueError(f"--set {options.overrides[0]} overrides a recipe's key; give the recipe with --reward")
    ledger = _run_ledger(options)
    if ledger is not None:
        if options.reward or options.ratings:
            raise ValueError(
                "a run's page shows what its ledger holds; leave out --reward and --ratings, or compare two folders"
            )
        print(_report_run(ledger, options))
        return 0
    for path in (options.before, options.after):
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    chosen = None if options.reward is None else load_reward(options.reward, options.overrides)
    shared = {"reward": chosen, "ratings": options.ratings, "max_pairs": options.max_pairs, "seed": options.seed}
    if options.after is None:
        report_selection(options.before, options.out, **shared)
    else:
        report(options.before, options.after, options.out, **shared)
    print(options.out)
    return 0


def _run_ledger(options: argparse.Namespace) -> Path | None:
    """The ledger to report a training run from: --ledger, a ledger file, or a folder that holds one and no Best-of-N selection."""
    if options.ledger is not None:
        if options.before is not None:
            raise ValueError(
                f"--ledger reports one run by itself; leave out {options.before}, or compare the folders without --ledger"
            )
        return options.ledger
    if options.before is None:
        raise ValueError("pass the folders BEFORE and AFTER, one Best-of-N or run folder, or --ledger LEDGER")
    if options.after is not None:
        return None
    if options.before.is_file():
        return options.before
    alone = options.before / "ledger.jsonl"
    return alone if alone.is_file() and not (options.before / "selection.jsonl").is_file() else None


def _report_run(ledger: Path, options: argparse.Namespace) -> Path:
    """The page of a training run: all steps in its table, cards for the first, the last and evenly spaced ones between."""
    from cac_align.evaluation.pages.evidence_page import Step, write_evidence_page
    from cac_align.evaluation.pages.page import spread
    from cac_align.plugins.evidence import read_evidence, telling

    if options.clips_per_step < 1 or options.max_steps < 1:
        raise ValueError(
            f"expected --clips-per-step and --max-steps of at least 1, received {options.clips_per_step}, {options.max_steps}"
        )
    by_step: dict[int | None, list[Any]] = {}
    for item in read_evidence(ledger):
        by_step.setdefault(item.step, []).append(item)
    numbers = sorted(by_step, key=lambda number: (number is not None, number or 0))
    shown = set(spread(range(len(numbers)), options.max_steps)) | {len(numbers) - 1}
    steps = [
        Step(number, by_step[number], telling(by_step[number], options.clips_per_step) if place in shown else [])
        for place, number in enumerate(numbers)
    ]
    return write_evidence_page(steps, options.out, root=ledger.parent)


def run_annotate(options: argparse.Namespace) -> int:
    from cac_align.evaluation.human.app import annotate

    for folder in options.folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    annotate(
        options.folders,
        rater=options.rater,
        database=options.database,
        host=options.host,
        port=options.port,
        seed=options.seed,
    )
    return 0
