"""The main job on the miniature: Best-of-N with UnifiedReward + CaC, compared afterwards with what
the oracle says.

prompts → N clips each by the small Wan → best_of_n (UR + CaC) → oracle → summary.json, report.html

The summary answers one question: how often is a clip anomalous if one takes a random candidate,
UnifiedReward's favourite, or the favourite of UnifiedReward + CaC? All three choose from the same
candidates, so their differences are paired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cac_align.core.video import Video
from cac_align.evaluation.pages.selection_page import VIDEOS_BESIDE, write_selection_page
from cac_align.evaluation.statistics import Estimate, mcnemar, mean_interval
from cac_align.generation.best_of_n import best_of_n
from cac_align.generation.build import GeneratorRecipe, load_generator
from cac_align.generation.selection import Selection
from cac_align.miniature.oracle.oracle import OracleVerdict, judge_clip
from cac_align.miniature.oracle.rates import OracleRates, is_anomalous, rates_of
from cac_align.miniature.world.settings import PLAYGROUND, PROMPT_SEEDS
from cac_align.miniature.world.world import make_prompts
from cac_align.rewards.build import load_reward
from cac_align.rewards.domain import domain_name
from cac_align.rewards.normalise import quantise
from cac_align.rewards.reward import Reward
from cac_align.runs.files import atomic_write
from cac_align.vlm.local import set_threads

CARDS = 40  # prompts shown on the page; all of them are in selection.jsonl


PLAYGROUND_PROMPTS = 216
"""How many different prompts the playground has."""


def playground_prompts(count: int) -> list[str]:
    """The first ``count`` different prompts of the prompt seeds.

    Training has used most of these prompts, but never these noises. Raises ``ValueError`` when more
    than ``PLAYGROUND_PROMPTS`` are asked for.
    """
    prompts: dict[str, None] = {}
    for seed in PROMPT_SEEDS[:20_000]:
        prompts.setdefault(make_prompts([seed], PLAYGROUND)[0])
        if len(prompts) == count:
            return list(prompts)
    raise ValueError(f"expected 1 to {len(prompts)} prompts, asked for {count}")


def demo(
    out: Path,
    *,
    n: int = 5,
    num_prompts: int = 8,
    seed: int = 0,
    guidance_scale: float | None = None,
    reward: Reward | None = None,
    progress: Callable[[int, str], Any] | None = None,
) -> Iterator[str]:
    """Run (or resume) the demo in ``out`` and yield the lines to print. No two candidates share a
    noise.

    ``guidance_scale`` is the small Wan's; None keeps its default. reward: None loads UnifiedReward +
    CaC on the miniature.

    Raises ``ValueError`` when the shipped weights are missing or damaged.
    """
    set_threads(
        1
    )  # the small judges' matrices are too small to share: two threads cost ten times the time on a busy machine
    prompts = playground_prompts(num_prompts)
    generator = load_generator(GeneratorRecipe(guidance_scale=guidance_scale))
    reward = reward or load_reward()
    selections = best_of_n(prompts, generator, reward, n=n, seed=seed, distinct_seeds=True, out=out, progress=progress)
    choices, comparison = compare_choices(selections, oracle_verdicts(selections))
    summary = {
        "prompts": len(prompts),
        "n": n,
        "seed": seed,
        "domain": domain_name(reward.provenance),
        "choices": [choice.to_json() for choice in choices],
        **comparison,
    }
    atomic_write(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    rates = [choice.anomaly_rate.value for choice in choices]
    tiles = [
        ("–" if rate is None else f"{100 * rate:.0f} %", f"anomalous by the miniature's oracle: {choice.name}")
        for rate, choice in zip(rates, choices, strict=True)
    ]
    page = write_selection_page(
        selections[:CARDS], out / "report.html", title=f"Best of {n} in the miniature: UnifiedReward + CaC", tiles=tiles
    )
    yield from summary_lines(choices, comparison, len(prompts), n)
    yield f"report: {page} ({VIDEOS_BESIDE})"


def oracle_verdicts(selections: Sequence[Selection]) -> list[list[OracleVerdict]]:
    """The oracle's verdict on every candidate of every prompt. The reward never uses it."""
    return [
        [judge_clip(selection.prompt, Video.open(path)) for path in selection.candidates] for selection in selections
    ]


def compare_choices(
    selections: Sequence[Selection], verdicts: Sequence[Sequence[OracleVerdict]]
) -> tuple[list[OracleRates], dict[str, Any]]:
    """The rates of the three ways of choosing, and the paired comparison of the last two by
    McNemar's exact test.

    Prompts on which one of them has no scored candidate are left out for all, and counted as
    ``undecided``.
    """
    candidates: list[OracleVerdict] = []
    unified: list[OracleVerdict] = []
    combined: list[OracleVerdict] = []
    for selection, of_prompt in zip(selections, verdicts, strict=True):
        favourite = _unified_favourite(selection)
        if selection.chosen is not None and favourite is not None:
            candidates += of_prompt
            unified.append(of_prompt[favourite])
            combined.append(of_prompt[selection.chosen])
    choices = [
        rates_of("a random candidate", candidates),
        rates_of("UnifiedReward's choice", unified),
        rates_of("UnifiedReward + CaC's choice", combined),
    ]
    test = mcnemar([is_anomalous(verdict) for verdict in unified], [is_anomalous(verdict) for verdict in combined])
    differences = [float(is_anomalous(b)) - float(is_anomalous(a)) for a, b in zip(unified, combined, strict=True)]
    paired = mean_interval(differences, resamples=5000)
    return choices, {
        "undecided": len(selections) - len(unified),
        "difference": paired.to_json(),
        "mcnemar_p": test.p_value,
    }


def _unified_favourite(selection: Selection) -> int | None:
    """The candidate with UnifiedReward's highest raw score, the first one on a tie; None when none
    has a score.
    """
    scored = [
        (quantise(score.parts["unified"]), -i) for i, score in enumerate(selection.scores) if "unified" in score.parts
    ]
    return -max(scored)[1] if scored else None


def _per_cent(estimate: Estimate, digits: int = 1) -> str:
    """A share in per cent, with its interval where it has one; a dash where there is none."""
    if estimate.value is None:
        return "–"
    value = f"{100 * estimate.value:.{digits}f} %"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{100 * estimate.low:.{digits}f}, {100 * estimate.high:.{digits}f}]"


def summary_lines(choices: Sequence[OracleRates], comparison: dict[str, Any], prompts: int, n: int) -> Iterator[str]:
    """The summary as lines of text."""
    counted = "anomalies as the oracle counts them, which the reward never sees [95 % intervals]"
    yield f"{prompts} prompts x {n} candidates; {counted}"
    for choice in choices:
        rate, displacement, follows = choice.anomaly_rate, choice.displacement_px_s, choice.follows
        if rate.value is None:
            yield f"  {choice.name:<30} no decided prompt"
            continue
        moved = "no entity found"
        if displacement.value is not None:
            moved = f"moves {displacement.value:.1f} px/s"
        yield (
            f"  {choice.name:<28} anomalous {_per_cent(rate)}   {moved}   "
            f"follows the prompt {_per_cent(replace(follows, low=None), digits=0)}"
        )
    difference = comparison["difference"]
    if difference["value"] is not None:
        low, high = 100 * difference["low"], 100 * difference["high"]
        test = f"paired; McNemar p = {comparison['mcnemar_p']:.3g}"
        yield f"  UR + CaC minus UR: {100 * difference['value']:+.1f} points [{low:+.1f}, {high:+.1f}], {test}"
    if comparison["undecided"]:
        yield f"  {comparison['undecided']} prompts are undecided and left out"
