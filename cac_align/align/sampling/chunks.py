"""Chunks: some prompts of a step whose groups are complete over all processes, each of which
samples a part of their videos.

A process gives its part to the reward in portions, each as soon as it is sampled, so that sampling
and scoring overlap even where a step has one chunk only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cac_align.align.advantages.group import GroupAdvantages
from cac_align.align.async_reward import PendingScores
from cac_align.align.recipe import AlignRecipe
from cac_align.align.sampling.rollout import Flow, RolloutBatch, sample_batch, sample_seed
from cac_align.core.video import Video


@dataclass(frozen=True, eq=False)
class RolloutChunk:
    """One process's part of a chunk.

    first_group: the place of the chunk's first prompt in the step. numbers: which of the chunk's
    videos (counted group by group) this process sampled, in micro-batches ``rollouts``. pending:
    what was given to the reward, in the order of the videos.
    """

    first_group: int
    prompts: tuple[str, ...]
    numbers: range
    rollouts: tuple[RolloutBatch, ...]
    pending: tuple[PendingScores, ...]

    @property
    def videos(self) -> list[Video | None]:
        return [video for rollout in self.rollouts for video in rollout.videos]


def sample_chunk(
    flow: Flow,
    recipe: AlignRecipe,
    step: int,
    first_group: int,
    prompts: Sequence[str],
    numbers: range,
    sde_steps: Sequence[int],
    report: Callable[[str], None],
) -> Iterator[RolloutBatch]:
    """Sample the videos ``numbers`` of a chunk, a micro-batch at a time. report: called with a
    sentence before each of them.
    """
    first_video = first_group * recipe.group_size
    for start in range(numbers.start, numbers.stop, recipe.micro_batch):
        members = range(start, min(start + recipe.micro_batch, numbers.stop))
        batch = [prompts[n // recipe.group_size] for n in members]
        total = recipe.group_size * recipe.prompts_per_step
        report(f"step {step}, sampling video {first_video + start + 1} of {total}: {batch[0]!r}")
        noise_seeds = None
        if recipe.shared_noise:
            noise_seeds = [sample_seed(recipe.seed, 6, step, first_group + n // recipe.group_size) for n in members]
        yield sample_batch(
            flow,
            batch,
            [sample_seed(recipe.seed, 3, step, first_video + n) for n in members],
            sde_steps,
            dynamics=recipe.dynamics,
            noise_level=recipe.noise_level,
            noise_seeds=noise_seeds,
            own_sampler=recipe.sampler == "checkpoint",
        )


def videos_per_call(recipe: AlignRecipe, processes: int, *, whole_groups: bool) -> int:
    """How many videos a process samples before it gives them to the reward in one call.

    An eighth of its videos of a step (in whole micro-batches): the reward is then busy while seven
    eighths are sampled, and still scores several videos at once where a process has many.
    whole_groups: the reward compares the videos of a prompt, so a chunk goes to it in one call.
    """
    total = recipe.group_size * recipe.prompts_per_step // processes
    return total if whole_groups else -(-total // 8)


def batch_slice(chunk: RolloutChunk, index: int, micro_batch: int) -> slice:
    """The places of a micro-batch's videos among all videos of the chunk."""
    start = chunk.numbers.start + index * micro_batch
    return slice(start, min(start + micro_batch, chunk.numbers.stop))


def batches_to_train(
    chunk: RolloutChunk, advantages: GroupAdvantages, micro_batch: int, rank: int, processes: int
) -> list[int]:
    """The micro-batches of process ``rank`` that enter the loss.

    Every process must make as many backward passes as the others, because their gradients are
    averaged in each. A process with fewer such micro-batches repeats some others, whose videos all
    have weight 0.
    """
    per_process = len(chunk.numbers)
    entering = [
        [
            any(advantages.trained[r * per_process + start : r * per_process + min(start + micro_batch, per_process)])
            for start in range(0, per_process, micro_batch)
        ]
        for r in range(processes)
    ]
    own = [index for index, enters in enumerate(entering[rank]) if enters]
    others = [index for index, enters in enumerate(entering[rank]) if not enters]
    return own + others[: max(sum(row) for row in entering) - len(own)]
