"""The evaluation videos: the same prompts and seeds before training and every few steps, scored,
measured and kept.

LoRA as it would be saved → one video per prompt → total, parts, speed, held-out reward → eval.jsonl → alarms

    out/eval/step-000000/*.mp4, prompts.jsonl         cac-align report out/eval/step-000000 out/eval/step-000030
    out/lora_best                                     the LoRA with the highest total, if it lies above the first one
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from cac_align.align.async_reward import AsyncReward, ScoreAndSpeed
from cac_align.align.lora import Weights, gather_weights, save_lora, swapped
from cac_align.align.monitoring.alarms import EvalResult, find_alarms, is_alignment, is_best
from cac_align.align.recipe import AlignRecipe
from cac_align.align.sampling.rollout import Flow, sample_batch
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.generation.candidates import file_stem
from cac_align.rewards.build import load_reward
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Reward
from cac_align.runs.files import atomic_folder, atomic_write
from cac_align.runs.metrics_log import JsonlLog, track


class Evaluator:
    """Evaluates the weights of a flow on fixed prompts. Every process has one, and all call its
    methods together.

    reward: what is trained on. prompts: of the evaluation videos; the n-th has seed n. out: the
    folder of the run. lora, ema: the LoRA's parameters and their moving average (None: there is
    none), as they are at each call. lora_config: PEFT's, for saving. tracker: see
    ``runs.metrics_log``. notify: called with every alarm.
    """

    def __init__(
        self,
        flow: Flow,
        reward: Reward,
        prompts: Sequence[str],
        out: Path,
        *,
        recipe: AlignRecipe,
        lora: Mapping[str, Tensor],
        ema: Weights | None,
        lora_config: Any,
        accelerator: Accelerator,
        tracker: Any = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.flow, self.reward, self.prompts, self.out = flow, reward, list(prompts), out
        self.recipe, self.lora, self.ema, self.lora_config = recipe, lora, ema, lora_config
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        self.tracker, self.notify = tracker, notify

    def alarms_until(self, step: int) -> tuple[list[str], bool]:
        """(the alarms written down so far, whether the last evaluation raised one); steps after
        ``step`` are dropped.
        """
        rows = self._log(step).rows if self.rank == 0 else []
        sentences = [sentence for row in rows for sentence in row.get("alarms", ())]
        return gather_object([(sentences, bool(rows and rows[-1].get("alarms")))])[0]

    def run(self, step: int) -> list[str]:
        """Evaluate where ``step`` is due and not evaluated yet.

        Returns its alarms, which are also written down.
        """
        settings = self.recipe.eval
        if not settings.every or not self.prompts or (step % settings.every and step != self.recipe.steps):
            return []
        log = self._log(step) if self.rank == 0 else None
        if any(gather_object([log is not None and any(row["step"] == step for row in log.rows)])):
            return []
        result = self._evaluate(step)
        results = [EvalResult.from_json(row) for row in log.rows] + [result] if log is not None else []
        if any(gather_object([is_best(results, self.recipe.max_unscored)])):
            self._save_best()
        if log is None:
            return gather_object([])
        alarms = find_alarms(results, settings.tolerance, self.recipe.max_unscored)
        log.add({**result.to_json(), "alarms": alarms})
        track(self.tracker, {"step": step, "eval": result.to_json()})
        for sentence in alarms:
            self.notify(f"ALARM {sentence}")
        return gather_object(alarms)

    def _log(self, step: int) -> JsonlLog:
        return JsonlLog(self.out / "eval.jsonl", before=step + 1)

    def _save_best(self) -> None:
        """Write the LoRA as it would be saved to ``out/lora_best``, whole or not at all."""
        weights = gather_weights(self.ema or self.lora)
        if self.rank == 0:
            atomic_folder(self.out / "lora_best", lambda part: save_lora(part, weights, self.lora_config))

    def _evaluate(self, step: int) -> EvalResult:
        """Sample, score and measure the videos.

        All processes make equally many; a video made twice counts once.
        """
        per_process = -(-len(self.prompts) // self.processes)
        first = self.rank * per_process
        seeds = [n % len(self.prompts) for n in range(first, first + per_process)]
        prompts = [self.prompts[n] for n in seeds]
        folder = self.out / "eval" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        videos = self._sample(prompts, seeds, folder)
        scored = self._score(self.reward, prompts, videos)
        held_out = [math.nan] * len(seeds)
        if self.recipe.eval.reward:
            found = self._score(load_reward(self.recipe.eval.reward), prompts, videos)
            held_out = [score.value for score, _ in found]
        own = [
            {
                "seed": seed,
                "total": score.value,
                "normal_flow_speed": speed,
                "parts": dict(score.parts),
                "held_out": other,
            }
            for seed, (score, speed), other in zip(seeds, scored, held_out, strict=True)
        ]
        if self.rank == 0:
            listing = [
                {"video": f"{file_stem(prompt)}-{n}.mp4", "prompt": prompt, "seed": n}
                for n, prompt in enumerate(self.prompts)
            ]
            atomic_write(folder / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in listing))
        rows = sorted({row["seed"]: row for row in gather_object(own)}.values(), key=lambda row: row["seed"])
        return _summarise(step, rows)

    def _sample(self, prompts: Sequence[str], seeds: Sequence[int], folder: Path) -> list[Video | None]:
        """The videos as the checkpoint's pipeline makes them, written to ``folder`` and read again.

        The file is what is scored, so that ``cac-align report`` finds its score in the ledger.
        """
        videos: list[Video | None] = []
        with swapped(self.lora, self.ema):
            for start in range(0, len(seeds), self.recipe.micro_batch):
                part = slice(start, start + self.recipe.micro_batch)
                videos += sample_batch(self.flow, prompts[part], seeds[part], own_sampler=True).videos
        for n, (prompt, seed, video) in enumerate(zip(prompts, seeds, videos, strict=True)):
            if video is not None:
                file = folder / f"{file_stem(prompt)}-{seed}.mp4"
                write_mp4(file, video.frames(range(len(video))).pixels, video.fps)
                videos[n] = Video.open(file)
        return videos

    def _score(self, reward: Reward, prompts: list[str], videos: list[Video | None]) -> list[ScoreAndSpeed]:
        with AsyncReward(reward, Ledger(self.out / "eval" / "ledger.jsonl")) as scorer:
            return scorer.wait(scorer.submit(prompts, videos))


def _summarise(step: int, rows: Sequence[Mapping[str, Any]]) -> EvalResult:
    """The result of a step from one row per video."""
    names = dict.fromkeys(
        name for row in rows for name in row["parts"] if not name.startswith(("normalised/", "share/"))
    )
    by_part = {name: tuple(row["parts"].get(name, math.nan) for row in rows) for name in names}
    totals, speeds, held_out = (tuple(row[name] for row in rows) for name in ("total", "normal_flow_speed", "held_out"))
    return EvalResult(
        step,
        _mean(totals),
        _mean(speeds),
        _mean(held_out),
        {name: _mean(values) for name, values in by_part.items()},
        totals,
        {"normal_flow_speed": speeds, "held_out": held_out}
        | {name: values for name, values in by_part.items() if is_alignment(name)},
    )


def _mean(values: Sequence[float]) -> float:
    """Mean over what was measured; NaN where nothing was."""
    found = [value for value in values if not math.isnan(value)]
    return float(np.mean(found)) if found else math.nan
