"""The alignment loop: sample groups, score them meanwhile, compute advantages, update the LoRA,
evaluate, save; resumes.

    for each step:                                                                       module
        prompts → chunks of videos (SDE or ODE)                                          sampling/
        videos are scored in a thread while the next ones are sampled                    async_reward
        scores of all processes → advantages per video, or per latent position           advantages/
        loss of one micro-batch and one noise level at a time, backward                  losses/
        optimizer step, moving averages, row in log.jsonl, ledger                        lora
        every few steps: the evaluation videos, a checkpoint                  monitoring/, checkpoint

Memory does not grow with the number of noise levels: each has a forward and backward pass of its
own. The first chunks are trained on while the last is still being scored, unless advantages depend
on all scores, as with ``global_std``. Every process samples a part of every chunk, and scores are
gathered, so groups are complete on any number of processes. Beyond that only the gradients of the
LoRA are exchanged.
Source: Flow-GRPO (arXiv 2505.05470); CaC (arXiv 2605.11723) Sec. 4.2 and Appendix C.4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from cac_align.align import checkpoint as state
from cac_align.align import setup
from cac_align.align.advantages.group import (
    GroupAdvantages,
    clips_to_keep,
    group_advantages,
    needs_whole_step,
    summarise,
)
from cac_align.align.advantages.local_gate import gated
from cac_align.align.async_reward import AsyncReward, PendingScores, ScoreAndSpeed, reward_sample
from cac_align.align.lora import (
    copy_weights,
    ema_update,
    full_tensor,
    gather_weights,
    lora_parameters,
    save_lora,
    swapped,
)
from cac_align.align.losses.batch_losses import grpo_batch_losses, nft_batch_losses
from cac_align.align.monitoring.alarms import skipped_too_often, unscored_too_often
from cac_align.align.monitoring.evaluator import Evaluator
from cac_align.align.monitoring.progress import mean_metrics, progress_line, step_seconds
from cac_align.align.recipe import AlignRecipe, draw_sde_steps
from cac_align.align.sampling.chunks import RolloutChunk, batch_slice, batches_to_train, sample_chunk, videos_per_call
from cac_align.align.sampling.prompts import eval_prompts, step_prompts
from cac_align.align.sampling.rollout import Flow, RolloutBatch
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.core.whole_file import whole_file
from cac_align.generation.latent_masks import latent_grid
from cac_align.rewards.combine import compares_videos
from cac_align.rewards.domain import domain_notice
from cac_align.runs.checkpoint import release_folder, save_checkpoint
from cac_align.runs.lr_schedule import learning_rate
from cac_align.runs.metrics_log import JsonlLog, open_tracker, track
from cac_align.runs.progress import show_note
from cac_align.runs.rank_status import RankStatus


@dataclass(frozen=True)
class AlignResult:
    """What an alignment left.

    lora: the folder for ``pipe.load_lora_weights``; None when the run was interrupted before its
    last step. step: how many steps are done. alarms: of all evaluations, those of earlier calls
    included.
    """

    lora: Path | None
    step: int
    alarms: tuple[str, ...]


class AlignRun:
    """One alignment; ``train`` takes the steps that remain. notify: called with every line of
    progress. progress: makes the bar of the steps, as ``runs.progress.progress_bar`` does.

    Raises ``ValueError`` for a recipe, model, prompts or reward that cannot be used.
    """

    def __init__(
        self,
        recipe: AlignRecipe,
        notify: Callable[[str], None] = lambda line: None,
        progress: Callable[..., Any] | None = None,
    ) -> None:
        self.out, self.notify, self.progress = Path(recipe.out), notify, progress
        self.accelerator, wan, self.prompts, self.chunk_size = setup.prepare(recipe)
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.transformer: Any = wan.pipeline.transformer
        self.async_reward: AsyncReward = setup.build_async_reward(recipe, self.out, self.processes)
        self.recipe, line = gated(recipe, self.async_reward.reward.provenance)
        recipe = self.recipe
        if line:
            notify(line)
        optimizer = torch.optim.AdamW(
            lora_parameters(self.transformer).values(),
            lr=recipe.lr,
            eps=recipe.adam_eps,
            weight_decay=recipe.weight_decay,
        )
        model, self.optimizer = self.accelerator.prepare(self.transformer, optimizer)
        self.flow = Flow.of(wan, model, self.accelerator.device)
        if recipe.objective == "grpo":  # refuse a window that does not fit before the first step
            draw_sde_steps(recipe.sde_window, len(self.flow.schedule), np.random.default_rng(0))
        self.grid = latent_grid(wan) if recipe.advantages == "local" else None
        self.lora = lora_parameters(model)
        self.ema = copy_weights(self.lora) if recipe.ema_decay else None
        self.old_policy = copy_weights(self.lora) if recipe.objective == "nft" else None
        self.step = 0
        self.rank_status = RankStatus(self.out / "processes", self.rank, self.processes)
        self._restore()
        self.first_step = self.step  # of this call
        self._advance: Callable[[], Any] = lambda: None
        self.log = JsonlLog(self.out / "log.jsonl", before=self.step) if self.main else None
        self.tracker = open_tracker(recipe.track, self.out, self.step) if self.main else None
        self.evaluator = Evaluator(
            self.flow,
            self.async_reward.reward,
            eval_prompts(recipe, self.prompts) if recipe.eval.every and recipe.eval.prompts > 0 else (),
            self.out,
            recipe=recipe,
            lora=self.lora,
            ema=self.ema,
            lora_config=self.transformer.peft_config["default"],
            accelerator=self.accelerator,
            tracker=self.tracker,
            notify=notify,
        )

    def _restore(self) -> None:
        stored = state.take_up(
            self.out, self.recipe, self.prompts, self.async_reward.reward.provenance, write=self.main
        )
        state.check_one_state(stored, self.out)
        if stored is None:
            return
        self.step = stored["step"]
        state.place_weights(self.lora, stored["lora"])
        for copy, name in ((self.ema, "ema"), (self.old_policy, "old_policy")):
            if copy is not None:
                state.place_weights(copy, stored[name])
        state.place_optimizer(self.optimizer, stored["optimizer"])
        self.notify(f"{self.out}: resuming after step {self.step}")

    def train(self, stop_after: int | None = None) -> AlignResult:
        """Train to the last step, or to ``stop_after`` as if interrupted there.

        Raises ``ProcessLost`` when another process is gone, and ``ValueError`` when a file cannot
        be written, or too many videos have no score or steps are skipped. The same recipe then
        resumes.
        """
        notice = domain_notice(self.async_reward.reward)
        with self.rank_status.guard(), self._bar():
            try:
                if notice:
                    self.notify(f"note: {notice}")
                with self.async_reward:
                    result = self._train(stop_after)
                if notice:
                    self.notify(f"note: {notice}")
                return result
            except OSError as error:
                raise ValueError(
                    f"{self.out}: {error}; free space or repair the path, then run the same command: it resumes"
                ) from error
            finally:
                if self.tracker is not None and hasattr(self.tracker, "close"):
                    self.tracker.close()

    @contextmanager
    def _bar(self) -> Iterator[None]:
        """The bar of the steps, where one is wanted; it says what is being done within a step."""
        if self.progress is None or not self.main:
            yield
            return
        with self.progress(self.recipe.steps, "aligning", "step", initial=self.step) as bar:
            self.rank_status.listener = partial(show_note, bar)
            self._advance = bar.update
            yield

    def _train(self, stop_after: int | None) -> AlignResult:
        recipe = self.recipe
        alarms, last_raised = self.evaluator.alarms_until(self.step)
        self.rank_status.report(f"step {self.step}, evaluating")
        alarms += (new := self.evaluator.run(self.step))
        stop = recipe.eval.stop and bool(last_raised or new)
        while not stop and self.step < recipe.steps and (stop_after is None or self.step < stop_after):
            row = self._train_step()
            self.step += 1
            self._advance()
            if self.log is not None:
                self.log.add(row)
                track(self.tracker, row)
            self.notify(progress_line(row, self.step, recipe.steps))
            self._stop_on_failures()
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                self.save()
            self.rank_status.report(f"step {self.step}, evaluating")
            alarms += (new := self.evaluator.run(self.step))
            stop = recipe.eval.stop and bool(new)
        if stop:
            self.notify("stopped by an alarm, as eval.stop asks; run again with eval.stop=false to continue")
            self.save()
        elif self.step < recipe.steps:
            return AlignResult(None, self.step, tuple(alarms))
        return AlignResult(self._publish(), self.step, tuple(alarms))

    # ---- one step ---------------------------------------------------------------------------------------------------

    def _train_step(self) -> dict[str, Any]:
        recipe, step = self.recipe, self.step
        self.async_reward.raise_write_errors()
        began = time.perf_counter()
        self.flow.timer.seconds.clear()
        busy_s, waited_s = self.async_reward.busy_s, self.async_reward.waited_s
        rng = np.random.default_rng((recipe.seed, 2, step))
        sde_steps: tuple[int, ...] = ()
        if recipe.objective == "grpo":
            sde_steps = draw_sde_steps(recipe.sde_window, len(self.flow.schedule), rng)
        prompts = step_prompts(step, self.prompts, recipe)
        chunks = [
            self._sample_chunk(step, first, prompts[first : first + self.chunk_size], sde_steps)
            for first in range(0, len(prompts), self.chunk_size)
        ]
        num_failed = sum(gather_object([sum(video is None for chunk in chunks for video in chunk.videos)]))
        row: dict[str, Any] = {"step": step, "prompts": prompts, "sde_steps": list(sde_steps)}
        advantages: list[GroupAdvantages] = []
        if num_failed:
            for chunk in chunks:
                self._scores(chunk)
            row["skipped"] = self._save_latents(step, chunks, f"{num_failed} videos are not finite")
        else:
            metrics: dict[str, float] = {}
            for _ in range(recipe.num_inner_epochs):
                skipped, metrics = self._update(step, chunks, advantages)
                if skipped:
                    row["skipped"] = self._save_latents(step, chunks, skipped)
                    break
            row |= metrics
            row |= summarise(advantages, self.async_reward.components)
            self._record_advantages(step, chunks, advantages)
        if self.old_policy is not None:
            ema_update(self.old_policy, self.lora, recipe.nft_decay)
        reward_s, waited_s = self.async_reward.busy_s - busy_s, self.async_reward.waited_s - waited_s
        row["seconds"] = step_seconds(time.perf_counter() - began, self.flow.timer.seconds, reward_s, waited_s)
        return row

    def _sample_chunk(self, step: int, first: int, prompts: Sequence[str], sde_steps: Sequence[int]) -> RolloutChunk:
        """Sample this process's part of a chunk and give it to the reward in portions. first: the
        chunk's first group.
        """
        size = self.recipe.group_size
        total = len(prompts) * size
        numbers = range(self.rank * total // self.processes, (self.rank + 1) * total // self.processes)
        whole_groups = compares_videos(self.async_reward.reward) is not None
        portion = videos_per_call(self.recipe, self.processes, whole_groups=whole_groups)
        rollouts: list[RolloutBatch] = []
        pending: list[PendingScores] = []
        waiting: list[tuple[str, Video | None]] = []  # sampled, and not yet given to the reward
        next_number = iter(numbers)
        with swapped(self.lora, self.old_policy):
            for rollout in sample_chunk(
                self.flow, self.recipe, step, first, prompts, numbers, sde_steps, self.rank_status.report
            ):
                rollouts.append(rollout)
                for prompt, video in zip(rollout.prompts, rollout.videos, strict=True):
                    waiting.append((prompt, self._named(step, first * size + next(next_number), video)))
                if len(waiting) >= portion:
                    pending.append(self._submit(waiting))
                    waiting = []
        if waiting:
            pending.append(self._submit(waiting))
        return RolloutChunk(first, tuple(prompts), numbers, tuple(rollouts), tuple(pending))

    def _submit(self, sampled: Sequence[tuple[str, Video | None]]) -> PendingScores:
        return self.async_reward.submit([prompt for prompt, _ in sampled], [video for _, video in sampled])

    def _scores(self, chunk: RolloutChunk) -> list[ScoreAndSpeed]:
        """One entry per video that this process sampled, once all are there."""
        return [scored for pending in chunk.pending for scored in self.async_reward.wait(pending)]

    def _clip_path(self, step: int, number: int) -> Path:
        return self.out / "samples" / f"step-{step:06d}" / f"{number:04d}.mp4"

    def _named(self, step: int, number: int, video: Video | None) -> Video | None:
        """The video under the name of the file that it gets if it is kept, so that reports find its
        score.
        """
        if video is None:
            return None
        name = str(self._clip_path(step, number))
        return Video(video.fps, video.times_s, video.height, video.width, name, video._source)

    def _compute_advantages(self, chunks: Sequence[RolloutChunk]) -> Iterator[tuple[RolloutChunk, GroupAdvantages]]:
        """Each chunk with its advantages as soon as its scores, or all that they depend on, are
        there.
        """
        weights = self.async_reward.components
        waiting: list[list[Any]] = []
        for chunk in chunks:
            self.rank_status.report(f"step {self.step}, scoring {len(chunk.numbers)} videos of {chunk.prompts[0]!r}")
            scored = self._scores(chunk)
            own = [reward_sample(one, video, self.grid) for one, video in zip(scored, chunk.videos, strict=True)]
            waiting.append(gather_object(own))
            if not needs_whole_step(self.recipe):
                yield chunk, group_advantages([waiting.pop()], self.recipe, weights)[0]
        if waiting:
            yield from zip(chunks, group_advantages(waiting, self.recipe, weights), strict=True)

    def _update(
        self, step: int, chunks: Sequence[RolloutChunk], advantages: list[GroupAdvantages]
    ) -> tuple[str | None, dict[str, float]]:
        """One optimizer step over all videos with an advantage. Returns (why it was skipped or
        None, metrics).

        advantages: those of the chunks; the first inner epoch finds the list empty and fills it.
        """
        recipe = self.recipe
        total = recipe.group_size * recipe.prompts_per_step
        rows: list[dict[str, float]] = []
        first_epoch = not advantages
        pairs = self._compute_advantages(chunks) if first_epoch else list(zip(chunks, advantages, strict=True))
        for chunk, found in pairs:
            if first_epoch:
                advantages.append(found)
            for index in batches_to_train(chunk, found, recipe.micro_batch, self.rank, self.processes):
                rollout, members = chunk.rollouts[index], batch_slice(chunk, index, recipe.micro_batch)
                self.rank_status.report(
                    f"step {step}, training on {rollout.prompts[0]!r} (noise seed {rollout.seeds[0]})"
                )
                weight = found.trained[members].to(self.flow.device) * (self.processes / total)
                deviation = None if found.deviation is None else found.deviation[members]
                rows += self._backward(rollout, found.base[members], deviation, weight)
        trained = sum(int(found.trained.sum()) for found in advantages)
        with self.flow.timer("optimizer"):
            if trained == 0:
                self.optimizer.zero_grad()
                return None, {"trained_videos": 0}
            for parameter in self.lora.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(total / trained)
            norm = float(full_tensor(torch.nn.utils.clip_grad_norm_(list(self.lora.values()), recipe.max_grad_norm)))
            finite = all(gather_object([math.isfinite(norm)]))
            typical = self._median_gradient() if step == 0 and first_epoch and finite else {}
            if finite:
                lr = learning_rate(step, recipe.steps, recipe.lr, min_lr_ratio=recipe.min_lr_ratio)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                self.optimizer.step()
            self.optimizer.zero_grad()
            if finite and self.ema is not None:
                ema_update(self.ema, self.lora, min(recipe.ema_decay, (1 + step) / (10 + step)))
        metrics = mean_metrics(gather_object(rows)) | {"trained_videos": trained, "grad_norm": norm} | typical
        return (None if finite else f"the gradient's norm is {norm}"), metrics

    def _median_gradient(self) -> dict[str, float]:
        """The median of |gradient| as AdamW gets it, over the elements that are not 0, for the log.

        Half of a new LoRA has gradient 0, because its B is 0. AdamW moves an element by about lr
        where |gradient| is far above ``adam_eps``, and by less where it is not.
        """
        gradients = [full_tensor(parameter.grad) for parameter in self.lora.values() if parameter.grad is not None]
        size = torch.cat([gradient.detach().abs().flatten() for gradient in gradients])
        median = float(size[size > 0].median()) if bool((size > 0).any()) else 0.0
        eps = self.recipe.adam_eps
        note = "" if median > 10 * eps else ": not far above adam_eps, which therefore slows the training; lower it"
        self.notify(f"step 0: median |gradient| {median:.1e}, adam_eps {eps:.1e}{note}")
        return {"median_gradient": median}

    def _backward(
        self, rollout: RolloutBatch, base: Tensor, deviation: Tensor | None, weight: Tensor
    ) -> list[dict[str, float]]:
        """Add the gradient of one micro-batch. weight: of each video; those with weight 0 have no
        metrics.
        """
        device = self.flow.device
        base, deviation = base.to(device), None if deviation is None else deviation.to(device)
        if self.old_policy is None:
            losses = grpo_batch_losses(self.flow, self.recipe, rollout, base, deviation, self.lora)
        else:
            losses = nft_batch_losses(self.flow, self.recipe, rollout, base, deviation, self.lora, self.old_policy)
        rows = []
        for loss in losses:
            self._accumulate(loss.per_sample, weight / loss.num_levels)
            for name, values in loss.metrics.items():
                rows += [{name: float(value)} for value in values[weight > 0]]
            if "ratio" in loss.metrics:
                rows += [{"max_ratio_error": abs(float(value) - 1)} for value in loss.metrics["ratio"][weight > 0]]
        return rows

    def _accumulate(self, losses: Tensor, weight: Tensor) -> None:
        with self.flow.timer("backward"):
            self.accelerator.backward((losses * weight).sum())

    # ---- records ----------------------------------------------------------------------------------------------------

    def _record_advantages(
        self, step: int, chunks: Sequence[RolloutChunk], advantages: Sequence[GroupAdvantages]
    ) -> None:
        """Write the advantages to the ledger, and some of the videos to files."""
        size = self.recipe.group_size
        kept = clips_to_keep(advantages, self.recipe.clips_per_step)
        for chunk, found in zip(chunks, advantages, strict=True):
            scored = self._scores(chunk)
            for number, video, (score, _) in zip(chunk.numbers, chunk.videos, scored, strict=True):
                if video is None:
                    continue
                group, sample = divmod(number, size)
                facts = {"step": step, "group": chunk.first_group + group, "sample": sample, "fps": video.fps}
                facts["advantage"] = round(float(found.advantage[number]), 6)
                self.async_reward.annotate(chunk.prompts[group], video, score, facts)
                if (chunk.first_group + group, sample) in kept:
                    file = self._clip_path(step, chunk.first_group * size + number)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self.async_reward.run_later(write_mp4, file, video.frames(range(len(video))).pixels, video.fps)

    def _save_latents(self, step: int, chunks: Sequence[RolloutChunk], why: str) -> str:
        """Write the latents of a skipped step to ``out/inspect``. Returns ``why``."""
        folder = self.out / "inspect"
        folder.mkdir(parents=True, exist_ok=True)
        rollouts = [
            {"prompts": list(rollout.prompts), "seeds": list(rollout.seeds), "latents": rollout.latents}
            for chunk in chunks
            for rollout in chunk.rollouts
        ]
        with whole_file(folder / f"step-{step:06d}-{self.rank}.pt") as part:
            torch.save({"step": step, "why": why, "rollouts": rollouts}, part)
        return why

    def _stop_on_failures(self) -> None:
        """Save and raise ``ValueError`` when too many videos have no score or too many steps were
        skipped.
        """
        rows = gather_object([self.log.rows if self.log is not None else []])[0]
        recipe = self.recipe
        why = unscored_too_often(rows, recipe.max_unscored, recipe.patience, self.first_step)
        why = why or skipped_too_often(rows, recipe.max_skipped, self.out / "inspect")
        if why is not None:
            self.save()
            raise ValueError(f"step {self.step - 1}: {why}")

    def save(self) -> None:
        """Write a checkpoint. Every process must call this."""
        weights = {
            name: gather_weights(copy) for name in ("lora", "ema", "old_policy") if (copy := getattr(self, name))
        }
        stored: dict[str, Any] = {"step": self.step, **weights}
        stored["optimizer"] = state.optimizer_state(self.optimizer)
        if self.main:
            config = self.transformer.peft_config["default"]
            folders = {
                "lora": weights.get("ema", weights["lora"]),
                **({"lora_last": weights["lora"]} if self.ema else {}),
            }

            def fill(part: Path) -> None:
                torch.save(stored, part / "state.pt")
                for name, copy in folders.items():
                    save_lora(part / name, copy, config)

            save_checkpoint(self.out, self.step, fill, keep=self.recipe.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _publish(self) -> Path:
        """Copy the last checkpoint's LoRA to ``out/lora``, beside an average also the last weights
        to ``lora_last``.
        """
        if self.main:
            state.publish(self.out)
        self.accelerator.wait_for_everyone()
        return self.out / "lora"


def align(
    recipe: AlignRecipe,
    notify: Callable[[str], None] = lambda line: None,
    progress: Callable[..., Any] | None = None,
) -> AlignResult:
    """Run a recipe to its end, from its last checkpoint if there is one. Arguments: see ``AlignRun``."""
    try:
        return AlignRun(recipe, notify, progress).train()
    finally:
        release_folder(Path(recipe.out))
