"""``python -m research.build TARGET``: make a part of the miniature's weights, or all of them, and install them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cac_align.runs.progress import say
from research.build.gate import install, misfits, read_expected, refusals
from research.build.parts import RECIPES
from research.build.run import Build, Step, read_stamp, run, stamped, wanted
from research.build.steps import TARGETS, curriculum


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 done (for ``all``: installed), 1 the weights were refused, 2 the request is wrong."""
    parser = argparse.ArgumentParser("python -m research.build", description=main.__doc__)
    parser.add_argument("target", choices=("all", "vae", "wan", "judge", "unified"))
    parser.add_argument("--plan", action="store_true", help="print the steps with their expected cost, and do nothing")
    parser.add_argument("--scale", type=float, default=1.0, help="times all counts of steps and clips (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/curriculum"), help="folder (default: %(default)s)")
    parser.add_argument("--recipes", type=Path, default=RECIPES, help="folder of the recipes (default: %(default)s)")
    parser.add_argument("--rebuild", action="store_true", help="remove and make anew what other recipes or code made")
    asked = parser.parse_args(arguments)
    try:
        steps = wanted(curriculum(asked.out, asked.scale, asked.recipes), TARGETS[asked.target])
        if asked.plan:
            print(plan(steps, asked.out, asked.scale))
            return 0
        figures = run(steps, asked.out, Build(asked.scale), rebuild=asked.rebuild)
        if asked.target != "all":
            print(asked.out / TARGETS[asked.target][0])
            return 0
        return _end(asked.out, asked.scale, asked.recipes, figures["figures"])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def plan(steps: Sequence[Step], out: Path, scale: float) -> str:
    """The steps as a table: what they are made from, what they cost, and whether they are done."""
    now, lines, open_minutes = stamped(steps), ["step | minutes | made from | state", "---|---|---|---"], 0.0
    for step in steps:
        stamp = read_stamp(out / step.name)
        state = "open" if stamp is None else "stale" if stamp["hash"] != now[step.name]["hash"] else "begun"
        state = "done" if state == "begun" and stamp is not None and stamp["done"] else state
        open_minutes += 0.0 if state == "done" else step.minutes * scale
        lines.append(f"{step.name} | {step.minutes * scale:.0f} | {', '.join(step.inputs) or '–'} | {state}")
    hours = open_minutes / 60
    return "\n".join([*lines, f"{len(steps)} steps, {hours:.1f} hours of two cores still to go (expected)"])


def _end(out: Path, scale: float, recipes: Path, figures: Mapping[str, Any]) -> int:
    """Install the weights, or say why not."""
    folders = {
        "cac": out / "judge" / "calibrated" / "judge",
        "unified": out / "unified" / "second" / "final",
        "wan": out / "wan" / "third" / "final",
    }
    reasons = [*refusals(figures, read_expected(recipes / "expected.json")), *misfits(folders)]
    if scale < 1:
        reasons.append(f"a build at scale {scale:g} is never installed")
    if reasons:
        say("the weights are not installed:")
        for reason in reasons:
            say(f"  {reason}")
        return 1
    print(install(folders))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
