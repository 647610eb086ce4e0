"""The loop: sample groups, judge them beside the sampling, credit them, update the LoRA, watch, write down, save; resumes anywhere.

    for each step:                                                                       file
        prompts → chunks of videos (SDE or ODE)                                          rollout, sde
        each chunk is judged in a thread while the next one is sampled                   judging
        scores of all processes → advantages (or maps of them)                           advantages, credit
        loss of one micro-batch and one noise level at a time, backward                  objective, nft
        optimizer step, running averages, row in log.jsonl, ledger                       adapter, journal
        now and then: the watched videos, a checkpoint                                   guard, state

Memory does not grow with the number of stochastic steps: each is a forward and backward pass of its own. The first chunks are trained on
while the last is still being judged (unless advantages hang on all scores, as with ``global_std``). Every process takes part of every
chunk; scores are gathered, so groups are whole whatever the number of processes. Only the processes' LoRA gradients meet.
Source: Flow-GRPO (arXiv 2505.05470); CaC (arXiv 2605.11723) Sec. 4.2 and Appendix C.4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from cac_align.align import checkpoint as state
from cac_align.align import group_advantages as crediting
from cac_align.align import setup
from cac_align.align.alarms import skipped_too_often, unscored_too_often
from cac_align.align.async_reward import Judging, verdict
from cac_align.align.evaluator import earlier_alarms, watch
from cac_align.align.group_advantages import Credit
from cac_align.align.grpo_loss import grpo_loss
from cac_align.align.lora import copy_of, follow, gathered, lora_of, save_lora, swapped, whole, zeroed
from cac_align.align.nft_loss import nft_loss, noised
from cac_align.align.recipe import FlowGrpoRecipe, learning_rate, prompts_at, window_steps
from cac_align.align.rollout import Flow, Rollout, sample, sample_seed, velocity
from cac_align.align.sde import transition
from cac_align.runs.metrics_log import Rows, line_of, open_tracker, seconds_of, track
from cac_align.runs.rank_status import RankStatus

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some prompts' videos of one step, as far as this process made them. numbers: which of the chunk's videos these are."""

    first_group: int
    prompts: tuple[str, ...]
    numbers: range
    rollouts: tuple[Rollout, ...]
    scores: Future[Any]

    @property
    def videos(self) -> list[Any]:
        return [video for rollout in self.rollouts for video in rollout.videos]


@dataclass(frozen=True)
class Outcome:
    """lora: folder for ``pipe.load_lora_weights``; None when stopped early. alarms: what the guards had to say, in earlier calls as well."""

    lora: Path | None
    step: int
    alarms: tuple[str, ...]


class Run:
    """One alignment. ``go`` takes the steps that remain. Raises ``ValueError`` for anything wrong with recipe, model, prompts or reward."""

    def __init__(self, recipe: FlowGrpoRecipe, say: Say = lambda line: None) -> None:
        self.recipe, self.out, self.say = recipe, Path(recipe.out), say
        self.accelerator, wan, self.prompts, self.chunk_prompts = setup.prepare(recipe)
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.transformer = wan.pipeline.transformer
        self.judging: Judging = setup.build_judging(recipe, self.out, self.processes)
        optimizer = torch.optim.AdamW(
            lora_of(self.transformer).values(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        model, self.optimizer = self.accelerator.prepare(self.transformer, optimizer)
        self.flow = Flow.of(wan, model, self.accelerator.device)
        if recipe.objective == "grpo":  # a window that does not fit is said now
            window_steps(recipe.sde_window, len(self.flow.schedule), np.random.default_rng(0))
        self.grid = setup.grid_of(wan) if recipe.credit == "local" else None
        self.lora = lora_of(model)
        self.ema = copy_of(self.lora) if recipe.ema else None
        self.slow = copy_of(self.lora) if recipe.objective == "nft" else None
        self.step = 0
        self.here = RankStatus(self.out / "processes", self.rank, self.processes)
        self._restore()
        self.since = self.step  # the first step of this call
        self.log = Rows(self.out / "log.jsonl", before=self.step) if self.main else None
        self.tracker = open_tracker(recipe.track, self.out, self.step) if self.main else None

    def _restore(self) -> None:
        stored = state.take_up(self.out, self.recipe, self.prompts, self.judging.plain.provenance, write=self.main)
        state.check_one_state(stored, self.out)
        if stored is None:
            return
        self.step = stored["step"]
        state.place_weights(self.lora, stored["lora"])
        for copy, name in ((self.ema, "ema"), (self.slow, "slow")):
            if copy is not None:
                state.place_weights(copy, stored[name])
        state.place_optimizer(self.optimizer, stored["optimizer"])
        self.say(f"{self.out}: going on after step {self.step}")

    def go(self, stop_after: int | None = None) -> Outcome:
        """Train to the last step (or to ``stop_after``, as if interrupted there). Raises ``ProcessLost`` when another process is gone."""
        with self.here.guard():
            return self._go(stop_after)

    def _go(self, stop_after: int | None) -> Outcome:
        try:
            with self.judging:
                return self._steps(stop_after)
        except OSError as error:
            raise ValueError(
                f"{self.out}: {error}; free space or mend the path, then run the same command: it resumes"
            ) from error
        finally:
            if self.tracker is not None and hasattr(self.tracker, "close"):
                self.tracker.close()

    def _steps(self, stop_after: int | None) -> Outcome:
        recipe = self.recipe
        told, raised = earlier_alarms(self)
        told += (fresh := watch(self))
        halt = recipe.watch.stop and bool(raised or fresh)
        while not halt and self.step < recipe.steps and (stop_after is None or self.step < stop_after):
            row = self._take_step()
            self.step += 1
            if self.log is not None:
                self.log.add(row)
                track(self.tracker, row)
            self.say(line_of(row, self.step, recipe.steps))
            self._stop_if_broken()
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                self.save()
            told += (fresh := watch(self))
            halt = recipe.watch.stop and bool(fresh)
        if halt:
            self.say("stopped, as watch.stop asks; watch.stop=false goes on")
            self.save()
        elif self.step < recipe.steps:
            return Outcome(None, self.step, tuple(told))
        return Outcome(self._finish(), self.step, tuple(told))

    # ---- one step ---------------------------------------------------------------------------------------------------

    def _take_step(self) -> dict[str, Any]:
        recipe, step = self.recipe, self.step
        self.judging.settle()
        began = time.perf_counter()
        self.flow.watch.seconds.clear()
        busy_s, waited_s = self.judging.busy_s, self.judging.waited_s
        rng = np.random.default_rng((recipe.seed, 2, step))
        window = window_steps(recipe.sde_window, len(self.flow.schedule), rng) if recipe.objective == "grpo" else ()
        prompts = prompts_at(step, self.prompts, recipe)
        chunks = [
            self._collect(step, first, prompts[first : first + self.chunk_prompts], window)
            for first in range(0, len(prompts), self.chunk_prompts)
        ]
        broken = sum(gather_object([sum(video is None for chunk in chunks for video in chunk.videos)]))
        row: dict[str, Any] = {"step": step, "prompts": prompts, "window": list(window)}
        credits: list[Credit] = []
        if broken:
            for chunk in chunks:
                self.judging.wait(chunk.scores)
            row["skipped"] = self._inspect(step, chunks, f"{broken} videos are not finite")
        else:
            numbers: dict[str, float] = {}
            for _ in range(recipe.num_inner_epochs):
                skipped, numbers = self._update(step, chunks, credits)
                if skipped:
                    row["skipped"] = self._inspect(step, chunks, skipped)
                    break
            row |= numbers
            row |= crediting.summary(credits, self.judging.components)
            self._record(step, chunks, credits)
        if self.slow is not None:
            follow(self.slow, self.lora, recipe.nft_decay)
        judged_s, waited_s = self.judging.busy_s - busy_s, self.judging.waited_s - waited_s
        row["seconds"] = seconds_of(time.perf_counter() - began, self.flow.watch.seconds, judged_s, waited_s)
        return row

    def _collect(self, step: int, first: int, prompts: Sequence[str], window: Sequence[int]) -> Chunk:
        """Sample this process's part of a chunk and hand it to the judge."""
        recipe = self.recipe
        total = len(prompts) * recipe.group_size
        mine = range(self.rank * total // self.processes, (self.rank + 1) * total // self.processes)
        rollouts = []
        with swapped(self.lora, self.slow):
            for start in range(mine.start, mine.stop, recipe.micro_batch):
                numbers = range(start, min(start + recipe.micro_batch, mine.stop))
                asked = [prompts[n // recipe.group_size] for n in numbers]
                self.here.at(
                    f"step {step}, sampling {asked[0]!r} (video {first * recipe.group_size + start} of the step)"
                )
                seeds = [sample_seed(recipe.seed, 3, step, first * recipe.group_size + n) for n in numbers]
                firsts = None
                if recipe.shared_noise:
                    firsts = [sample_seed(recipe.seed, 6, step, first + n // recipe.group_size) for n in numbers]
                noise = {"dynamics": recipe.dynamics, "noise_level": recipe.noise_level, "first_seeds": firsts}
                rollouts.append(
                    sample(self.flow, asked, seeds, window, **noise, own_sampler=recipe.sampler == "checkpoint")
                )
        named = [
            self._named(step, first, n, video)
            for n, video in zip(mine, (v for r in rollouts for v in r.videos), strict=True)
        ]
        future = self.judging.submit([prompts[n // recipe.group_size] for n in mine], named)
        return Chunk(first, tuple(prompts), mine, tuple(rollouts), future)

    def _named(self, step: int, first: int, number: int, video: Any) -> Any:
        """The video under the name of the file it gets if it is kept: reports find it there."""
        if video is None:
            return None
        place = self.out / "samples" / f"step-{step:06d}" / f"{first * self.recipe.group_size + number:04d}.mp4"
        return type(video)(video.fps, video.times_s, video.height, video.width, str(place), video._source)

    def _credits(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, Credit]]:
        """Each chunk with its credit, as soon as its scores are there (where they hang on each other: once all are)."""
        waiting: list[tuple[Chunk, list[Any]]] = []
        for chunk in chunks:
            self.here.at(f"step {self.step}, judging {len(chunk.numbers)} videos of {chunk.prompts[0]!r}")
            judged = self.judging.wait(chunk.scores)
            own = [verdict(one, video, self.grid) for one, video in zip(judged, chunk.videos, strict=True)]
            waiting.append((chunk, gather_object(own)))
            if not crediting.needs_all(self.recipe):
                yield chunk, crediting.credit([waiting.pop()[1]], self.recipe, self.judging)[0]
        if waiting:
            yield from zip(
                chunks, crediting.credit([rows for _, rows in waiting], self.recipe, self.judging), strict=True
            )

    def _update(self, step: int, chunks: Sequence[Chunk], credits: list[Credit]) -> tuple[str | None, dict[str, float]]:
        """One optimizer step over all live videos. Returns (why it was skipped, numbers). Fills ``credits`` on the first pass."""
        recipe = self.recipe
        total = recipe.group_size * recipe.prompts_per_step
        seen: list[dict[str, float]] = []
        known = list(zip(chunks, credits, strict=True)) if credits else self._credits(chunks)
        fresh = not credits
        for chunk, credit in known:
            if fresh:
                credits.append(credit)
            for index in self._live_batches(chunk, credit):
                rollout, members = chunk.rollouts[index], self._members(chunk, index)
                self.here.at(f"step {step}, learning from {rollout.prompts[0]!r} (noise seed {rollout.seeds[0]})")
                weight = credit.live[members].to(self.flow.device) * (self.processes / total)
                base, deviation = credit.base[members], None if credit.deviation is None else credit.deviation[members]
                seen += self._backward(step, rollout, base, deviation, weight)
        live = sum(int(credit.live.sum()) for credit in credits)
        with self.flow.watch("optimizer"):
            if live == 0:
                self.optimizer.zero_grad()
                return None, {"live": 0}
            for parameter in self.lora.values():
                parameter.grad.mul_(total / live)
            norm = float(whole(torch.nn.utils.clip_grad_norm_(list(self.lora.values()), recipe.clip_norm)))
            finite = all(gather_object([math.isfinite(norm)]))
            if finite:
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(step, recipe)
                self.optimizer.step()
            self.optimizer.zero_grad()
            if finite and self.ema is not None:
                follow(self.ema, self.lora, min(recipe.ema, (1 + step) / (10 + step)))
        numbers = crediting.means(gather_object(seen)) | {"live": live, "grad_norm": norm}
        return (None if finite else f"the gradient's norm is {norm}"), numbers

    def _members(self, chunk: Chunk, index: int) -> slice:
        """Places in the chunk of a micro-batch's videos."""
        start = chunk.numbers.start + index * self.recipe.micro_batch
        return slice(start, min(start + self.recipe.micro_batch, chunk.numbers.stop))

    def _live_batches(self, chunk: Chunk, credit: Credit) -> list[int]:
        """Micro-batches with something to teach. Every process passes equally often, for their passes meet: the rest repeat one at weight 0."""
        per = len(chunk.numbers)
        live = [
            [
                any(credit.live[r * per + start : r * per + min(start + self.recipe.micro_batch, per)])
                for start in range(0, per, self.recipe.micro_batch)
            ]
            for r in range(self.processes)
        ]
        mine = [index for index, has in enumerate(live[self.rank]) if has]
        idle = [index for index, has in enumerate(live[self.rank]) if not has]
        return mine + idle[: max(sum(row) for row in live) - len(mine)]

    def _backward(
        self, step: int, rollout: Rollout, base: Tensor, deviation: Tensor | None, weight: Tensor
    ) -> list[dict[str, float]]:
        """Add the gradient of one micro-batch, one noise level at a time."""
        recipe, flow, device = self.recipe, self.flow, self.flow.device
        base = base.to(device)
        deviation = None if deviation is None else deviation.to(device)
        seen = []
        if recipe.objective == "grpo":
            for taken in rollout.steps:
                x = taken.x.to(device)

                def mean_now(x: Tensor = x, index: int = taken.index) -> Tensor:
                    v = velocity(flow, x, index, rollout.embeds)
                    return transition(recipe.dynamics, x, v, flow.schedule.sigmas, index, recipe.noise_level).mean

                reference = None
                if recipe.kl_beta > 0:
                    with swapped(self.lora, zeroed(self.lora)), torch.no_grad():
                        reference = mean_now()
                loss = grpo_loss(
                    mean_now(), taken.mean.to(device), taken.x_next.to(device), taken.std, taken.dt, base, clip=recipe.clip,
                    deviation=deviation, mean_ref=reference, kl_beta=recipe.kl_beta, normalise_ratio=recipe.normalise_ratio,
                )  # fmt: skip
                self._accumulate(loss.per_sample, weight / len(rollout.steps))
                held = weight > 0
                for name in ("ratio", "kl", "clipped"):
                    seen += [{name: float(value)} for value in getattr(loss, name)[held]]
                seen += [{"ratio_off": abs(float(value) - 1)} for value in loss.ratio[held]]
                seen += [{"loss": float(value)} for value in loss.per_sample.detach()[held]]
            return seen
        z = rollout.latents.to(device)
        indices = np.random.default_rng((recipe.seed, 4, step)).permutation(len(flow.schedule))
        generators = [torch.Generator().manual_seed(sample_seed(seed, 5)) for seed in rollout.seeds]
        for turn in range(recipe.nft_times):
            index = int(indices[turn % len(indices)])
            noise = torch.stack([torch.randn(z.shape[1:], generator=generator) for generator in generators]).to(device)
            sigma = flow.schedule.sigmas[index]
            x = noised(z, noise, sigma)
            with swapped(self.lora, self.slow), torch.no_grad():
                v_old = velocity(flow, x, index, rollout.embeds)
            v = velocity(flow, x, index, rollout.embeds)
            loss = nft_loss(v, v_old, x, z, sigma, base, beta=recipe.nft_beta, deviation=deviation)
            self._accumulate(loss, weight / recipe.nft_times)
            seen += [{"loss": float(value)} for value in loss.detach()[weight > 0]]
        return seen

    def _accumulate(self, losses: Tensor, weight: Tensor) -> None:
        with self.flow.watch("backward"):
            self.accelerator.backward((losses * weight).sum())

    # ---- what remains -----------------------------------------------------------------------------------------------

    def _record(self, step: int, chunks: Sequence[Chunk], credits: Sequence[Credit]) -> None:
        """Advantages to the ledger, the telling clips to files."""
        from cac_align.core.encoding import write_mp4

        kept = crediting.telling(credits, self.recipe.clips_per_step)
        for chunk, credit in zip(chunks, credits, strict=True):
            judged = self.judging.wait(chunk.scores)
            for number, video, (score, _) in zip(chunk.numbers, chunk.videos, judged, strict=True):
                group, place = divmod(number, self.recipe.group_size)
                group += chunk.first_group
                facts = {"step": step, "group": group, "sample": place, "fps": video.fps}
                facts["advantage"] = round(float(credit.advantage[number]), 6)
                self.judging.link(chunk.prompts[group - chunk.first_group], video, score, facts)
                if (group, place) in kept:
                    file = Path(self._named(step, chunk.first_group, number, video).name)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self.judging.also(write_mp4, file, video.frames(range(len(video))).pixels, video.fps)

    def _inspect(self, step: int, chunks: Sequence[Chunk], why: str) -> str:
        """Keep a step's latents for a look at what went wrong."""
        folder = self.out / "inspect"
        folder.mkdir(parents=True, exist_ok=True)
        made = [rollout for chunk in chunks for rollout in chunk.rollouts]
        rollouts = [{"prompts": list(r.prompts), "seeds": list(r.seeds), "latents": r.latents} for r in made]
        torch.save({"step": step, "why": why, "rollouts": rollouts}, folder / f"step-{step:06d}-{self.rank}.pt")
        return why

    def _stop_if_broken(self) -> None:
        """Save and raise ``ValueError`` when too many videos are unscored or steps skipped; all processes see the same rows."""
        rows = gather_object([self.log.rows if self.log is not None else []])[0]
        recipe = self.recipe
        why = unscored_too_often(rows, recipe.max_unscored, recipe.patience, self.since)
        why = why or skipped_too_often(rows, recipe.max_skipped, self.out / "inspect")
        if why is not None:
            self.save()
            raise ValueError(f"step {self.step - 1}: {why}")

    def save(self) -> None:
        """Write a checkpoint; every process takes part where tensors are sharded."""
        weights = {name: gathered(copy) for name in ("lora", "ema", "slow") if (copy := getattr(self, name))}
        stored = {"step": self.step, "recipe": state.to_text(self.recipe), **weights}
        stored["optimizer"] = state.optimizer_state(self.optimizer)
        if self.main:
            config = self.transformer.peft_config["default"]
            folders = {
                "lora": weights.get("ema", weights["lora"]),
                **({"lora_last": weights["lora"]} if self.ema else {}),
            }
            writers = {name: lambda path, w=w: save_lora(path, w, config) for name, w in folders.items()}
            state.write(self.out, self.step, {"state.pt": stored, **writers}, self.recipe)
        self.accelerator.wait_for_everyone()

    def _finish(self) -> Path:
        """The last checkpoint's LoRA under the names people look for: ``out/lora`` (and ``out/lora_last`` beside an average)."""
        if self.main:
            state.publish(self.out, state.newest(self.out))
        self.accelerator.wait_for_everyone()
        return self.out / "lora"


def align(recipe: FlowGrpoRecipe, say: Say = lambda line: None) -> Outcome:
    """Run a recipe to its end, from its last checkpoint if there is one."""
    return Run(recipe, say).go()
