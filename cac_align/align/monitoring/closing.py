"""What an alignment says when it ends: its steps, its guards, what had no score, and where the LoRA lies.

out/log.jsonl, out/eval.jsonl → ``closing_lines`` → lines for people
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from cac_align.align.monitoring.alarms import EvalResult
from cac_align.runs.metrics_log import read_rows

_GUARDS = {"total": "score", "normal_flow_speed": "normal-flow speed", "held_out": "held-out reward"}


def closing_lines(out: Path, step: int, steps: int, alarms: Sequence[str]) -> list[str]:
    """The summary of the run in ``out``, from what it has written down.

    step: how many steps are done, of ``steps``. alarms: of all evaluations.
    """
    rows = read_rows(out / "log.jsonl")
    videos, unscored = (sum(row.get(name, 0) for row in rows) for name in ("videos", "unscored"))
    skipped = sum(bool(row.get("skipped")) for row in rows)
    flat = sum(row.get("zero_std_groups", 0) for row in rows)
    lines = [
        f"{step} of {steps} steps, {skipped} skipped; {unscored} of {videos} videos without a score; "
        f"{flat} groups in which all scores were equal"
    ]
    results = [EvalResult.from_json(row) for row in read_rows(out / "eval.jsonl")]
    if results:
        lines.append(_guards(results))
    lines += [f"alarm: {alarm}" for alarm in alarms] or (["no alarm"] if results else ["no guards: eval is off"])
    if (out / "lora").is_dir():
        best = f" (best evaluation: {out / 'lora_best'})" if (out / "lora_best").is_dir() else ""
        lines.append(f"LoRA: {out / 'lora'}{best}")
        videos = f"cac-align best-of-n --prompts FILE --out DIR --set generator.lora={out / 'lora'}"
        lines.append(f"next: cac-align report {out}; videos with it, by the recipe of the same checkpoint: {videos}")
    return lines


def _guards(results: Sequence[EvalResult]) -> str:
    """Score, speed and held-out reward of the evaluation videos, first and last."""
    first, last = results[0], results[-1]
    numbers = {label: (getattr(first, name), getattr(last, name)) for name, label in _GUARDS.items()}
    parts = [
        f"{label} {before:.4f} → {after:.4f}"
        for label, (before, after) in numbers.items()
        if not (math.isnan(before) or math.isnan(after))
    ]
    missing = f", {last.unscored} of {len(last.totals)} without a score" if last.unscored else ""
    when = f"evaluation videos, step {first.step} → {last.step}"
    return f"{when}: {', '.join(parts) or 'nothing measured'}{missing}"
