"""`cac-align doctor`: checks of this environment and of a host trainer's configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_verb, input_path


def add_doctor(verbs: Any) -> None:
    """The options of `cac-align doctor`."""
    about = "check this environment, a recipe's judges, or a host trainer's config, and print the lines to add"
    parser = add_verb(verbs, "doctor", run_doctor, about)
    parser.add_argument(
        "recipe", nargs="?", type=input_path, help="recipe of a reward, align or best-of-n: are its judges up"
    )
    parser.add_argument(
        "--host",
        help="flow-factory | flow_grpo | unirl | verl-omni | videoalign | trl | genrl | pref-grpo | teleboost | "
        "vbvr-rl | fastvideo | miles-diffusion",
    )
    parser.add_argument("--config", type=Path, help="the host's config file")
    parser.add_argument("--server", metavar="URL", help="check a judge's server, with a synthetic clip")
    parser.add_argument("--reward", type=Path, help="the reward recipe that asks this server; alone: as RECIPE")
    about = (
        "do the ranks train one model: the safetensors of every rank; without FILE, a step of our own on 1 and 2 ranks"
    )
    parser.add_argument("--ranks", nargs="*", type=Path, metavar="FILE", help=about)
    parser.add_argument("--json", action="store_true", help="one JSON object per check")


def run_doctor(options: argparse.Namespace) -> int:
    """Print the checks. Returns 1 where one of them found something wrong."""
    from cac_align.plugins.doctor.checklist import checklist, doctor, to_json

    recipe = options.recipe or (options.reward if options.server is None else None)
    if recipe is not None:
        if options.host or options.config or options.server or (options.recipe and options.reward):
            raise ValueError(f"{recipe} is checked by itself; leave out --host, --config, --server and --reward")
        from cac_align.plugins.doctor.judges import check_judges

        checks = list(check_judges(recipe))
    elif options.ranks is not None:
        from cac_align.plugins.doctor.two_ranks import check_own_loop, compare_ranks

        checks = list(compare_ranks(options.ranks) if options.ranks else check_own_loop())
    elif options.server is not None:
        from cac_align.plugins.doctor.server import check_server

        checks = list(check_server(options.server, options.reward))
    else:
        checks = doctor(options.host, options.config)
    print(to_json(checks) if options.json else checklist(options.host, checks))
    return 1 if any(check.ok is False for check in checks) else 0
