"""One sampled micro-batch: seeds, stochastic steps, the ODE and the checkpoint's own sampler."""

import numpy as np
import pytest
import torch

from cac_align.align.sampling.rollout import Flow, guided_velocity, latent_shape, sample_batch, sample_seed
from cac_align.generation.wan import Wan
from tests.support.tiny_flow import every, write_wan


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return Wan.load(write_wan(tmp_path_factory.mktemp("wan")), device="cpu")


def flow_of(wan):
    return Flow.of(wan, wan.pipeline.transformer, torch.device("cpu"))


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(wan):
    flow = flow_of(wan)
    both = sample_batch(flow, ["a red ball", "a blue box"], [1, 2], (0, 2), noise_level=0.7)
    alone = sample_batch(flow, ["a blue box"], [2], (0, 2), noise_level=0.7)
    torch.testing.assert_close(both.latents[1:], alone.latents)
    assert [step.index for step in both.steps] == [0, 2]
    assert latent_shape(flow) == (4, 3, 4, 4) == tuple(both.latents.shape[1:])
    assert all(every(video).shape == (5, 16, 16, 3) for video in both.videos)
    other = sample_batch(flow, ["a blue box"], [3], (0, 2), noise_level=0.7)
    assert not torch.allclose(other.latents, alone.latents)
    assert len({sample_seed(0, 3, step, n) for step in range(50) for n in range(64)}) == 3200


def test_videos_with_shared_first_noise_part_at_the_first_stochastic_step(wan):
    flow = flow_of(wan)
    words = ["a red ball"] * 3
    step = sample_batch(flow, words, [1, 2, 3], (1,), noise_level=0.7, noise_seeds=[7, 7, 8]).steps[0]
    torch.testing.assert_close(step.x[0], step.x[1])
    assert not torch.allclose(step.x[0], step.x[2]) and not torch.allclose(step.x_next[0], step.x_next[1])
    own = sample_batch(flow, words, [1, 2, 3], (), noise_seeds=[1, 2, 3])
    assert torch.equal(own.latents, sample_batch(flow, words, [1, 2, 3], ()).latents)


def test_the_kept_steps_chain_and_recompute_exactly(wan):
    flow = flow_of(wan)
    made = sample_batch(flow, ["a red ball", "a blue box"], [1, 2], (1, 2), noise_level=0.7)
    first, second = made.steps
    assert torch.equal(first.x_next, second.x)
    from cac_align.align.sampling.sde import transition

    with torch.enable_grad():
        again = transition(
            "flow", first.x, guided_velocity(flow, first.x, 1, made.embeds), flow.schedule.sigmas, 1, 0.7
        )
    assert torch.equal(again.mean, first.mean) and again.std == first.std


def test_the_ode_is_wan_pipelines_own_up_to_the_solver(wan):
    """With the pipeline's scheduler replaced by Euler, our loop and ``WanPipeline`` must agree: guidance, timesteps, decoding."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    parts = wan.pipeline.components
    euler = WanPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
    euler.set_progress_bar_config(disable=True)
    swapped_wan = Wan(euler, wan.setting, wan.folder)
    expected = swapped_wan.batch(["a red ball", "a blue box"], [5, 6])
    found = sample_batch(flow_of(swapped_wan), ["a red ball", "a blue box"], [5, 6]).videos
    for one, two in zip(expected, found, strict=True):
        assert np.abs(every(one).astype(int) - every(two).astype(int)).max() <= 1


def test_with_the_checkpoints_own_sampler_a_rollout_is_what_its_pipeline_makes(wan):
    flow, words, seeds = flow_of(wan), ["a red ball", "a blue box"], [5, 6]
    taken, euler = sample_batch(flow, words, seeds, own_sampler=True), sample_batch(flow, words, seeds)
    again = sample_batch(flow, words, seeds, own_sampler=True)
    for one, two in zip(wan.batch(words, seeds), taken.videos, strict=True):
        assert np.abs(every(one).astype(int) - every(two).astype(int)).max() <= 1
    assert not torch.allclose(taken.latents, euler.latents), "UniPC is of second order"
    assert torch.equal(again.latents, taken.latents), "nothing is left of a sampler that has run"
    with pytest.raises(ValueError, match="no stochastic steps, received \\[1\\]"):
        sample_batch(flow, words, seeds, (1,), noise_level=0.7, own_sampler=True)


def test_latents_that_are_not_finite_have_no_video(wan):
    from cac_align.align.sampling.rollout import decode_latents

    latents = torch.randn(2, 4, 3, 4, 4)
    latents[0, 0, 0, 0, 0] = float("nan")
    first, second = decode_latents(flow_of(wan), latents, ["a", "b"], [0, 1])
    assert first is None and second is not None
