"""Table 2 in miniature: how often the small Wan's clips break before and after alignment, with the
oracle as the expert.

LoRA folders by name → prompts that no alignment trains on, the same first noises for each → oracle
→ anomaly rate, oracle displacement, prompt following → table2.md, table2.svg

    python -m research.experiments.table2 OUT ur=RUN ur=RUN2 ur+cac=RUN …

Several runs of one name are training seeds of one method: the table shows their mean and standard
deviation, and the difference to the base with a paired bootstrap interval over prompts (a prompt's
clips go together). Verdicts are kept in ``OUT/NAME-HASH.jsonl`` (of the LoRA's file), so that a
second call goes on and another LoRA of the same name is judged anew. Source: CaC (arXiv 2605.11723)
Table 2.
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cac_align.core.weights import shipped
from cac_align.evaluation.statistics import Estimate, mean_interval
from cac_align.generation.wan import Wan, hash_checkpoint
from cac_align.miniature.demo import PLAYGROUND_PROMPTS, playground_prompts
from cac_align.miniature.oracle.oracle import judge_clip
from cac_align.miniature.world.world import make_prompts
from cac_align.vlm.local import set_threads
from research.experiments import curves

NOISES, BATCH, FIRST_SEED = 3, 12, 500_000
"""Clips per prompt, clips generated together, and the first clip's noise seed (no training uses
it).
"""
TRAINED = range(3_000_000, 3_000_240)
"""Prompt seeds of the alignment recipes: 140 of the playground's 216 prompts."""


@dataclass(frozen=True)
class Judged:
    """What the oracle said of one clip. displacement_px_s: mean path of the entity in px per second
    (NaN while it is not to be seen).
    """

    prompt: str
    anomalous: bool
    follows: bool
    displacement_px_s: float


def prompts_judged() -> list[str]:
    """The prompts of the clips, in their order: those that no recipe trains on, ``NOISES`` times
    over.
    """
    trained = set(make_prompts(TRAINED))
    return [prompt for prompt in playground_prompts(PLAYGROUND_PROMPTS) if prompt not in trained] * NOISES


def judged(name: str, lora: str | None, out: Path) -> list[Judged]:
    """The verdicts on this model's clips, generated now where ``out`` does not hold them yet.

    Raises ``ValueError`` when ``out`` holds verdicts on other prompts.
    """
    file, prompts = out / f"{name}.jsonl", prompts_judged()
    with file.open("a+", encoding="utf-8") as lines:
        fcntl.flock(
            lines, fcntl.LOCK_EX
        )  # a second call on the same folder waits, and then reads what the first has judged
        lines.seek(0)
        rows = [Judged(**json.loads(line)) for line in lines]
        if [row.prompt for row in rows] != prompts[: len(rows)]:
            raise ValueError(f"{file}: holds verdicts on other prompts; start with an empty folder")
        wan = Wan.load(shipped("wan"), lora=lora, device="cpu") if len(rows) < len(prompts) else None
        for first in range(len(rows), len(prompts), BATCH):
            asked = prompts[first : first + BATCH]
            videos = wan.batch(asked, range(FIRST_SEED + first, FIRST_SEED + first + len(asked)))
            for prompt, video in zip(asked, videos, strict=True):
                told = judge_clip(prompt, video)
                rows.append(
                    Judged(prompt, told.status == "abnormal", all(told.follows.values()), told.displacement_px_s)
                )
                lines.write(json.dumps(rows[-1].__dict__) + "\n")
            lines.flush()
            print(f"{name}: {len(rows)} of {len(prompts)} clips", file=sys.stderr, flush=True)
    return rows


def table(found: Mapping[str, Sequence[Sequence[Judged]]]) -> str:
    """The table in Markdown. ``found``: by name, the verdicts of each training seed; "base" must be
    among them.

    Raises ``ValueError`` when the base is missing or a model was judged on other prompts.
    """
    if "base" not in found:
        raise ValueError(f"the table needs the base, received {', '.join(found)}")
    base = found["base"][0]
    lines = [
        "| model | seeds | anomaly rate | minus base, paired (95 %) | oracle displacement, px/s | follows the prompt |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        for run in runs:
            if [row.prompt for row in run] != [row.prompt for row in base]:
                raise ValueError(f"{name} was judged on other prompts than the base; start with an empty folder")
        rates = [np.mean([row.anomalous for row in run]) for run in runs]
        displacement = [np.nanmean([row.displacement_px_s for row in run]) for run in runs]
        follows = [np.mean([row.follows for row in run]) for run in runs]
        apart = "–" if name == "base" else str(_difference(runs, base))
        lines.append(
            f"| {name} | {len(runs)} | {_spread(rates)} | {apart} | {_spread(displacement, 1)} | {_spread(follows)} |"
        )
    return "\n".join(lines) + "\n"


def _difference(runs: Sequence[Sequence[Judged]], base: Sequence[Judged]) -> Estimate:
    """Mean over prompts of (mean over runs of anomalous) − (base anomalous): pairs share the prompt
    and the first noise.
    """
    prompt_means: dict[str, list[float]] = {}
    for at, row in enumerate(base):
        prompt_means.setdefault(row.prompt, []).append(
            float(np.mean([run[at].anomalous for run in runs])) - float(row.anomalous)
        )
    return mean_interval([float(np.mean(apart)) for apart in prompt_means.values()], resamples=5000)


def _spread(values: Sequence[float], digits: int = 3) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def main(arguments: Sequence[str]) -> int:
    """``table2 OUT [NAME=LORA …]``: judges the base and every LoRA, prints the table and writes
    ``OUT/table2.md`` and ``OUT/table2.svg`` (with the curves of each run whose ``log.jsonl`` lies
    beside its LoRA).
    """
    if not arguments or any("=" not in part for part in arguments[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    set_threads(1)
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[list[Judged]]] = {"base": [judged("base", None, out)]}
    logs: dict[str, list[Path]] = {}
    for part in arguments[1:]:
        name, lora = part.split("=", 1)
        if (log := Path(lora).parent / "log.jsonl").is_file():
            logs.setdefault(name, []).append(log)
        found.setdefault(name, []).append(judged(f"{name}-{hash_checkpoint(Path(lora))[:12]}", lora, out))
    text = table(found)
    (out / "table2.md").write_text(text, encoding="utf-8")
    curves.draw(
        {name: [[row.anomalous for row in run] for run in runs] for name, runs in found.items()},
        logs,
        out / "table2.svg",
    )
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
