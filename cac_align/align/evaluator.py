"""The watched videos: the same prompts and seeds before training and every so often, judged, measured, kept for the before/after report.

LoRA as it would be saved → videos of fixed prompts and seeds → total, parts, motion, held-out reward → watch.jsonl → alarms

    out/watch/step-000000/*.mp4, prompts.jsonl        cac-align report out/watch/step-000000 out/watch/step-000030
    out/lora_best                                     the LoRA with the highest watched total, if one has beaten the start
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object

from cac_align.align.alarms import Reading, alarms, gain, is_alignment
from cac_align.align.async_reward import Judging
from cac_align.align.checkpoint import put_folder
from cac_align.align.lora import gathered, save_lora, swapped
from cac_align.align.recipe import FlowGrpoRecipe, read_prompts
from cac_align.align.rollout import sample
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.generation.best_of_n import slug
from cac_align.rewards.build import load_reward
from cac_align.rewards.ledger import Ledger
from cac_align.runs.metrics_log import Rows, track

if TYPE_CHECKING:
    from cac_align.align.trainer import Run


def watch_prompts(recipe: FlowGrpoRecipe, prompts: Sequence[str]) -> list[str]:
    """The prompts that are watched; by default those after the training prompts, where a function makes them."""
    count = recipe.watch.prompts
    if recipe.watch.source:
        return read_prompts(recipe.watch.source, recipe.prompt_first, count, note=False)[:count]
    if ":" in recipe.prompts:
        return read_prompts(recipe.prompts, recipe.prompt_first + recipe.prompt_count, count, note=False)[:count]
    return list(prompts[:count])


def earlier_alarms(run: Run) -> tuple[list[str], bool]:
    """(the alarms of the readings that earlier calls took, whether the last of those readings raised one)."""
    rows = Rows(run.out / "watch.jsonl", before=run.step + 1).rows if run.main else []
    told = [sentence for row in rows for sentence in row.get("alarms", ())]
    return gather_object([(told, bool(rows and rows[-1].get("alarms")))])[0]


def watch(run: Run) -> list[str]:
    """Take a reading where one is due and not taken yet; returns the alarms it raises, which are also said and written down."""
    recipe, step = run.recipe, run.step
    every = recipe.watch.every
    if not every or recipe.watch.prompts < 1 or (step % every and step != recipe.steps):
        return []
    rows = Rows(run.out / "watch.jsonl", before=step + 1) if run.main else None
    if any(gather_object([rows is not None and any(row["step"] == step for row in rows.rows)])):
        return []
    reading = _reading(run)
    readings = [Reading.from_json(row) for row in rows.rows] + [reading] if rows is not None else []
    if any(gather_object([is_best(readings, recipe.max_unscored)])):
        _keep_as_best(run)
    if rows is None:
        return gather_object([])
    told = alarms(readings, recipe.watch.tolerance, recipe.max_unscored)
    rows.add({**reading.to_json(), "alarms": told})
    track(run.tracker, {"step": step, "watch": reading.to_json()})
    for sentence in told:
        run.say(f"ALARM {sentence}")
    return gather_object(told)


def is_best(readings: Sequence[Reading], max_unscored: float = 0.1) -> bool:
    """Whether the last reading's total lies above all before it, the one before training included, on the videos scored in both.

    A reading that is missing, or lacks more than ``max_unscored`` of its scores, never does.
    """
    if len(readings) < 2 or math.isnan(readings[-1].total) or not readings[-1].scored_enough(max_unscored):
        return False
    return all(not gain(before, readings[-1]) <= 0 for before in readings[:-1])  # one that is missing is no obstacle


def _keep_as_best(run: Run) -> None:
    """Write the LoRA as it would be saved to ``out/lora_best``, whole or not at all."""
    weights = gathered(run.ema or run.lora)
    if run.main:
        config = run.transformer.peft_config["default"]
        put_folder(run.out / "lora_best", lambda part: save_lora(part, weights, config))


def _reading(run: Run) -> Reading:
    """Sample as the checkpoint's pipeline will, judge and measure. Every process makes as many videos; those made twice count once."""
    recipe = run.recipe
    prompts = watch_prompts(recipe, run.prompts)
    each = -(-len(prompts) // run.processes)
    mine = [n % len(prompts) for n in range(run.rank * each, (run.rank + 1) * each)]
    videos: list[Any] = []
    with swapped(run.lora, run.ema):
        for start in range(0, each, recipe.micro_batch):
            part = mine[start : start + recipe.micro_batch]
            videos += sample(run.flow, [prompts[n] for n in part], part, own_sampler=True).videos
    folder = run.out / "watch" / f"step-{run.step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{slug(prompts[n])}-{n}.mp4" for n in mine]
    for n, (name, video) in enumerate(zip(names, videos, strict=True)):
        if video is not None:  # judged as the file shows it, so that the report finds this judgement in the ledger
            write_mp4(folder / name, video.frames(range(len(video))).pixels, video.fps)
            videos[n] = Video.open(folder / name)
    scored = _scored(run.judging.plain, run, [prompts[n] for n in mine], videos)
    held_out = None
    if recipe.watch.reward:
        held_out = _scored(load_reward(recipe.watch.reward), run, [prompts[n] for n in mine], videos)
    own = [
        {
            "n": n, "total": judged[0].value, "motion": judged[1], "parts": dict(judged[0].parts),
            "held_out": math.nan if held_out is None else held_out[k][0].value,
        }
        for k, (n, judged) in enumerate(zip(mine, scored, strict=True))
    ]  # fmt: skip
    rows = sorted({row["n"]: row for row in gather_object(own)}.values(), key=lambda row: row["n"])
    if run.main:
        listing = [
            {"video": f"{slug(prompt)}-{n}.mp4", "prompt": prompt, "seed": n} for n, prompt in enumerate(prompts)
        ]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listing), encoding="utf-8")
    names = dict.fromkeys(
        name for row in rows for name in row["parts"] if not name.startswith(("normalised/", "share/"))
    )
    parts = {name: _mean([row["parts"].get(name, math.nan) for row in rows]) for name in names}
    each = {name: tuple(row[name] for row in rows) for name in ("total", "motion", "held_out")}
    means = [_mean(values) for values in each.values()]
    each |= {name: tuple(row["parts"].get(name, math.nan) for row in rows) for name in parts if is_alignment(name)}
    return Reading(run.step, *means, parts, each.pop("total"), each)


def _scored(reward: Any, run: Run, prompts: list[str], videos: list[Any]) -> list[tuple[Any, float]]:
    judging = Judging(reward, Ledger(run.out / "watch" / "ledger.jsonl"))
    try:
        return judging.wait(judging.submit(prompts, videos))
    finally:
        judging.close()


def _mean(values: Sequence[float]) -> float:
    """Mean over what was measured; NaN where nothing was."""
    found = [value for value in values if not math.isnan(value)]
    return float(np.mean(found)) if found else math.nan
