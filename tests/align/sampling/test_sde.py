"""Sampling as an SDE: marginals, probabilities and the schedule, against known answers."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from cac_align.align.sampling.sde import log_prob, log_prob_by_location, ode_step, read_schedule, transition
from cac_align.miniature.models.wan import MiniWan, build_scheduler


def gaussian_velocity(x, sigma, mean, tau):
    """E[x1 − x0 | x] where x0 ~ N(mean, tau²), x1 ~ N(0, 1), x = (1 − σ)x0 + σx1: known in closed form."""
    variance = (1 - sigma) ** 2 * tau**2 + sigma**2
    x0 = mean + (1 - sigma) * tau**2 / variance * (x - (1 - sigma) * mean)
    return (x - (1 - sigma) * x0) / sigma - x0


def sampled(dynamics, noise_level, mean, tau, steps, count, seed=0):
    """Samples at the end of a schedule of ``steps`` steps; the last tenth is ODE, as in training."""
    sigmas = tuple(np.linspace(1.0, 0.0, steps + 1).tolist())
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 1, 1, 1, generator=generator, dtype=torch.float64)
    for index in range(steps):
        v = gaussian_velocity(x, sigmas[index], mean, tau)
        if dynamics is None or index >= steps * 0.9:
            x = ode_step(x, v, sigmas, index)
        else:
            drawn = transition(dynamics, x, v, sigmas, index, noise_level)
            x = drawn.mean + drawn.std * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x.flatten()


@pytest.mark.parametrize(("dynamics", "noise_level"), [(None, 0.0), ("flow", 0.7), ("flow", 0.3), ("dance", 0.3)])
def test_the_sde_ends_in_the_same_distribution_as_the_ode(dynamics, noise_level):
    """Data N(1.5, 0.5²): mean and standard deviation of 40,000 samples within four standard errors and the steps' own error."""
    mean, tau, count = 1.5, 0.5, 40_000
    x = sampled(dynamics, noise_level, mean, tau, 400, count)
    assert abs(x.mean().item() - mean) < 4 * tau / math.sqrt(count) + 0.004
    assert abs(x.std().item() - tau) < 4 * tau / math.sqrt(2 * count) + 0.004
    standard = (x - x.mean()) / x.std()
    assert abs((standard**3).mean().item()) < 4 * math.sqrt(6 / count)  # no skew: still a Gaussian


def test_without_the_drift_correction_the_marginals_would_differ():
    """The test above can fail: noise alone, without the term that takes it back, widens the distribution."""
    sigmas = tuple(np.linspace(1.0, 0.0, 401).tolist())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator, dtype=torch.float64)
    for index in range(360):
        v = gaussian_velocity(x, sigmas[index], 1.5, 0.5)
        std = transition("flow", x, v, sigmas, index, 0.7).std
        x = ode_step(x, v, sigmas, index) + std * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    assert x.std().item() > 0.55


def test_cps_keeps_the_noise_level_exactly_where_the_clip_is_known():
    """With one possible clip (tau = 0) x̂0 is exact, and after every step x must be N((1 − σ)·mean, σ²)."""
    mean, count, steps = 1.5, 40_000, 12
    sigmas = tuple(np.linspace(1.0, 0.0, steps + 1).tolist())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, generator=generator, dtype=torch.float64)
    for index in range(steps - 1):
        drawn = transition("cps", x, gaussian_velocity(x, sigmas[index], mean, 0.0), sigmas, index, 0.8)
        x = drawn.mean + drawn.std * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        after = sigmas[index + 1]
        assert abs(x.mean().item() - (1 - after) * mean) < 4 * after / math.sqrt(count)
        assert abs(x.std().item() - after) < 4 * after / math.sqrt(2 * count)


@pytest.mark.parametrize("dynamics", ["flow", "dance", "cps"])
def test_without_noise_every_dynamics_is_the_ode(dynamics):
    sigmas = (1.0, 0.9, 0.7, 0.4, 0.0)
    x, v = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64), torch.randn(2, 3, 2, 2, 2, dtype=torch.float64)
    almost = transition(dynamics, x, v, sigmas, 1, 1e-7)
    torch.testing.assert_close(almost.mean, ode_step(x, v, sigmas, 1), atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="step 1 of 4 has no noise under .* raise noise_level, or leave the step out"):
        transition(dynamics, x, v, sigmas, 1, 0.0)


@pytest.mark.parametrize(("steps", "noise_level"), [(10, 0.7), (50, 0.3), (50, 0.7)])
def test_the_first_step_is_finite_and_keeps_the_noise_level(steps, noise_level):
    """UniPC starts at 0.999999, where the plain formula gives s = 700: the first step must not be wider than the noise it goes to."""
    schedule = read_schedule(build_scheduler(MiniWan(flow_shift=3.0)), steps)
    assert schedule.sigmas[0] > 0.99999 and len(schedule) == steps and schedule.sigmas[-1] == 0.0
    x = torch.randn(20_000, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = gaussian_velocity(x, schedule.sigmas[0], 1.0, 0.0)
    drawn = transition("flow", x, v, schedule.sigmas, 0, noise_level)
    capped = schedule.sigmas[1]
    assert drawn.std == pytest.approx(
        noise_level * math.sqrt(capped / (1 - capped) * (schedule.sigmas[0] - capped)), rel=1e-6
    )
    after = drawn.mean + drawn.std * torch.randn(
        x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    assert after.std().item() == pytest.approx(schedule.sigmas[1], rel=0.1)
    later = transition("flow", x, v, schedule.sigmas, 1, noise_level)
    sigma = schedule.sigmas[1]
    assert later.std == pytest.approx(
        noise_level * math.sqrt(sigma / (1 - sigma) * (sigma - schedule.sigmas[2])), rel=1e-6
    )


def test_log_probabilities_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    x, mean = (torch.randn(3, 4, 2, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = Normal(mean, 0.37).log_prob(x)
    torch.testing.assert_close(log_prob(x, mean, 0.37), expected.flatten(1).mean(1))
    torch.testing.assert_close(log_prob_by_location(x, mean, 0.37), expected.mean(1))


def test_the_schedule_is_the_checkpoints_own():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    ten = read_schedule(build_scheduler(MiniWan(flow_shift=5.0)), 10)
    u = np.linspace(1, 1 / 1000, 11)[:-1]
    np.testing.assert_allclose(ten.sigmas[:-1], 5 * u / (1 + 4 * u), atol=2e-6)
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = euler.sigmas.clone()
    assert read_schedule(euler, 7).sigmas[0] == pytest.approx(1.0) and len(read_schedule(euler, 7)) == 7
    assert torch.equal(before, euler.sigmas), "the checkpoint's scheduler must stay as it was"
    with pytest.raises(ValueError, match="DDIMScheduler: expected a flow-matching schedule"):
        read_schedule(DDIMScheduler(), 10)
