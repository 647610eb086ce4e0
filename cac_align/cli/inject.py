"""`cac-align data inject`: defects put into good videos, beside twins without them, with exact records."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_set_option, add_verb, input_path


def add_inject(kinds: Any) -> None:
    """The options of `cac-align data inject`."""
    about = "annotated videos without annotators: defects put into good clips, each beside a twin without it; resumes"
    parser = add_verb(kinds, "inject", run_inject, about)
    parser.add_argument(
        "videos",
        type=input_path,
        nargs="+",
        metavar="VIDEOS",
        help="folders, files or patterns of videos that are fine; of a records file (.jsonl) the normal ones",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--recipe", type=Path, help="YAML with injection:, e.g. recipes/data/inject.yaml")
    parser.add_argument("--n", type=int, help="pairs to make (default: one per video)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--workers", type=int, help="processes (default: one per core; with a model one)")
    parser.add_argument("--json", action="store_true", help="the audit as JSON instead of lines")
    add_set_option(parser)


def run_inject(options: argparse.Namespace) -> int:
    """Make the pairs, their records, the audit and the page. Returns 1 where there are fewer than asked for."""
    from cac_align.cli.injection_models import load_models
    from cac_align.cli.options import check_positive
    from cac_align.config import read_recipe
    from cac_align.data.injection.run import inject
    from cac_align.data.injection.settings import Injection
    from cac_align.evaluation.pages.injection_page import write_injection_page
    from cac_align.runs.progress import progress_bar

    check_positive("--n", options.n)
    check_positive("--workers", options.workers)
    settings = read_recipe(Injection, options.recipe, options.overrides, section="injection")
    files = source_files(options.videos)
    models = load_models(settings)
    with progress_bar(options.n or len(files), "injecting", "pair") as bar:

        def show(pairs: int, counts: Mapping[str, int]) -> None:
            bar.set_postfix_str(", ".join(f"{count} {name}" for name, count in counts.items() if name != "pair"))
            bar.update(pairs - bar.n)

        result = inject(
            files,
            options.out,
            settings,
            n=options.n,
            seed=options.seed,
            workers=options.workers,
            models=models,
            progress=show,
        )
    page = write_injection_page(options.out, result.records, result.audit)
    if options.json:
        print(json.dumps(result.audit, indent=1))
    else:
        _print_audit(result.audit)
        print(f"look at them in {page}", file=sys.stderr)
        print(result.records)
    asked = result.audit["pairs_asked_for"]
    if result.pairs < asked:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in result.audit["skipped"].items())
        print(f"{result.pairs} of {asked} pairs: the other sources fit no injector ({reasons})", file=sys.stderr)
    return 0 if result.pairs == asked and not result.audit["failed"] else 1


def source_files(arguments: Sequence[str | Path]) -> list[Any]:
    """The ``SourceFile`` of every video behind the arguments: folders, files, patterns, and records
    files (.jsonl), of which the normal videos are taken with their prompts.

    Raises ``ValueError`` as ``expand_videos`` and ``all_records`` do, and for records of which none is
    normal.
    """
    from cac_align.cli.video_arguments import expand_videos, listed_prompts
    from cac_align.data.injection.run import SourceFile
    from cac_align.data.records import all_records

    listings = [Path(argument) for argument in arguments if Path(argument).suffix == ".jsonl"]
    paths = expand_videos([argument for argument in arguments if Path(argument) not in listings])
    prompts = listed_prompts(paths) or [""] * len(paths)
    for listing in listings:
        normal = [record for record in all_records(listing) if record.status == "normal"]
        if not normal:
            raise ValueError(f"{listing}: none of its records is normal; defects are put into videos that are fine")
        paths += [str(listing.parent / record.video) for record in normal]
        prompts += [record.prompt for record in normal]
    return [
        SourceFile(Path(path), name, prompt)
        for path, name, prompt in zip(paths, _names(paths) if paths else [], prompts, strict=True)
    ]


def _names(paths: Sequence[str]) -> list[str]:
    """Every path relative to the folder that all share: how records call their source."""
    whole = [os.path.abspath(path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [Path(os.path.relpath(path, shared)).as_posix() for path in whole]


def _print_audit(audit: Mapping[str, Any]) -> None:
    print(f"{audit['pairs']} pairs of {audit['sources']} videos")
    for title in ("injectors", "hard_normals", "skipped", "failed", "rejected_attempts", "injectors_not_installed"):
        for name, count in audit[title].items():
            print(f"{title.replace('_', ' '):>24}  {name}  {count}")
    for name, found in audit["shortcut_auc"].items():
        text = "too few sources" if found is None else f"{found['auc']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        print(f"{'AUC between twins':>24}  {name}  {text}")
