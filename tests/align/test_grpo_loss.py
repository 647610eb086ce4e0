"""The equations of alignment: SDE marginals and probabilities, both objectives, advantages, local credit; all against known answers."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from cac_align.align.advantages import decoupled, summed
from cac_align.align.grpo_loss import grpo_loss, split
from cac_align.align.local_advantages import Grid, local_advantages, mask_of
from cac_align.align.nft_loss import good_share, nft_loss, noised, shares_by_position
from cac_align.align.sde import log_prob, log_prob_by_location, ode_step, schedule_of, transition
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.miniature.models.wan import MiniWan, build_scheduler

NAN = math.nan


# ---- sampling as an SDE --------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="step 1 of 4 has no noise under .* raise noise_level, or take the step out"):
        transition(dynamics, x, v, sigmas, 1, 0.0)


@pytest.mark.parametrize(("steps", "noise_level"), [(10, 0.7), (50, 0.3), (50, 0.7)])
def test_the_first_step_is_finite_and_keeps_the_noise_level(steps, noise_level):
    """UniPC starts at 0.999999, where the plain formula gives s = 700: the first step must not be wider than the noise it goes to."""
    schedule = schedule_of(build_scheduler(MiniWan(flow_shift=3.0)), steps)
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

    ten = schedule_of(build_scheduler(MiniWan(flow_shift=5.0)), 10)
    u = np.linspace(1, 1 / 1000, 11)[:-1]
    np.testing.assert_allclose(ten.sigmas[:-1], 5 * u / (1 + 4 * u), atol=2e-6)
    euler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = euler.sigmas.clone()
    assert schedule_of(euler, 7).sigmas[0] == pytest.approx(1.0) and len(schedule_of(euler, 7)) == 7
    assert torch.equal(before, euler.sigmas), "the checkpoint's scheduler must stay as it was"
    with pytest.raises(ValueError, match="DDIMScheduler: expected a flow-matching schedule"):
        schedule_of(DDIMScheduler(), 10)


# ---- the Flow-GRPO objective ---------------------------------------------------------------------------------------


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPE = (2, 3, 2, 2, 2)


@pytest.mark.parametrize("normalise_ratio", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_the_gradient_agrees_with_finite_differences(local, normalise_ratio):
    old, x_next, reference = numbers(1, *SHAPE), numbers(2, *SHAPE), numbers(3, *SHAPE)
    advantage = torch.tensor([0.8, -1.3], dtype=torch.float64)
    deviation = 0.3 * numbers(4, 2, 2, 2, 2) if local else None

    def total(mean):
        loss = grpo_loss(
            mean, old, x_next, 0.6, -0.05, advantage, clip=10.0, deviation=deviation, mean_ref=reference, kl_beta=0.2,
            normalise_ratio=normalise_ratio,
        )  # fmt: skip
        return loss.per_sample.sum()

    mean = (old + 0.05 * numbers(5, *SHAPE)).requires_grad_()
    assert torch.autograd.gradcheck(total, (mean,), atol=1e-7)


def test_the_clipped_objective_by_hand():
    """One element per sample, std 1, so log-ratio = (x' − old)²/2 − (x' − mean)²/2."""
    shape = (4, 1, 1, 1, 1)
    old = torch.zeros(shape)
    x_next = torch.ones(shape)
    mean = torch.full(shape, 0.5)  # log-ratio 1/2 − 1/8 = 3/8, ratio 1.45499
    advantage = torch.tensor([1.0, -1.0, 2.0, 0.0])
    loss = grpo_loss(mean, old, x_next, 1.0, -0.1, advantage, clip=0.2, mean_ref=old, kl_beta=0.1)
    ratio, kl = math.exp(3 / 8), 0.125
    expected = [-1.2 + 0.1 * kl, ratio + 0.1 * kl, -2.4 + 0.1 * kl, 0.1 * kl]
    torch.testing.assert_close(loss.per_sample, torch.tensor(expected))
    assert loss.clipped.tolist() == [1, 0, 1, 0] and loss.kl.tolist() == [kl] * 4
    torch.testing.assert_close(loss.ratio, torch.full((4,), ratio))


def test_ratio_normalisation_by_hand():
    """(δ + ‖μ − μ_old‖² / 2std²)·std with std ½: δ = (1 − ¼)/(2·¼) = 3/2, ‖·‖²/2std² = ½, so log-ratio = 1; the loss is over −dt."""
    shape = (1, 1, 1, 1, 1)
    loss = grpo_loss(
        torch.full(shape, 0.5), torch.zeros(shape), torch.ones(shape), 0.5, -0.1, torch.tensor([-2.0]), clip=10.0,
        normalise_ratio=True,
    )  # fmt: skip
    torch.testing.assert_close(loss.per_sample, torch.tensor([2 * math.exp(1.0) / 0.1]))


def test_unchanged_weights_have_ratio_exactly_one():
    mean, x_next = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    for normalise_ratio in (False, True):
        loss = grpo_loss(
            mean, mean.clone(), x_next, 0.3, -0.1, torch.ones(3), clip=1e-3, normalise_ratio=normalise_ratio
        )
        assert loss.ratio.tolist() == [1.0, 1.0, 1.0]


def test_a_uniform_map_is_the_plain_objective_to_the_last_bit():
    shape = (3, 4, 5, 6, 7)
    mean, old, x_next = (numbers(n, *shape).float() for n in (1, 2, 3))
    for seed in range(20):
        advantage = numbers(10 + seed, 3).float()
        base, deviation = split(advantage[:, None, None, None].expand(3, 5, 6, 7))
        assert torch.equal(base, advantage) and not deviation.any()
        plain = grpo_loss(mean, old, x_next, 0.4, -0.1, advantage, clip=0.1)
        local = grpo_loss(mean, old, x_next, 0.4, -0.1, base, clip=0.1, deviation=deviation)
        assert torch.equal(plain.per_sample, local.per_sample)


def test_local_credit_credits_each_position_with_its_own_advantage():
    """At ratio 1 the gradient must be −mean_p A(p)·∇log p(p), written out here position by position."""
    advantage = numbers(7, 2, 2, 2, 2).float()
    base, deviation = split(advantage)
    old, x_next = numbers(1, *SHAPE).float(), numbers(2, *SHAPE).float()
    mean = old.clone().requires_grad_()
    grpo_loss(mean, old, x_next, 0.5, -0.1, base, clip=1e-3, deviation=deviation).per_sample.sum().backward()
    expected = torch.zeros(SHAPE)
    for b, c, t, h, w in np.ndindex(*SHAPE):
        slope = (x_next[b, c, t, h, w] - old[b, c, t, h, w]) / 0.5**2
        expected[b, c, t, h, w] = -advantage[b, t, h, w] * slope / (3 * 8)
    torch.testing.assert_close(mean.grad, expected)


# ---- DiffusionNFT --------------------------------------------------------------------------------------------------


def test_the_nft_loss_against_a_loop_over_elements():
    v, v_old, z, noise = (numbers(n, *SHAPE) for n in range(4))
    sigma, beta, share = 0.4, 0.7, [0.9, 0.2]
    x = noised(z, noise, sigma)
    torch.testing.assert_close(x, 0.6 * z + 0.4 * noise)
    for b in range(2):

        def weighted(name, b=b):
            errors = []
            for c, t, h, w in np.ndindex(*SHAPE[1:]):
                at = (b, c, t, h, w)
                mixed = beta * v[at] + (1 - beta) * v_old[at] if name == "+" else (1 + beta) * v_old[at] - beta * v[at]
                errors.append(float(x[at] - sigma * mixed - z[at]))
            return np.mean(np.square(errors)) / np.mean(np.abs(errors))

        expected = share[b] * weighted("+") + (1 - share[b]) * weighted("-")
        found = nft_loss(v, v_old, x, z, sigma, torch.tensor(share, dtype=torch.float64), beta=beta)[b]
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_nft_pulls_towards_good_clips_and_away_from_bad_ones():
    z, noise = numbers(0, 2, 2, 1, 2, 2), numbers(1, 2, 2, 1, 2, 2)
    v_old = noise - z + 0.1  # misses both clips by the same amount
    v = v_old.clone().requires_grad_()
    nft_loss(v, v_old, noised(z, noise, 0.5), z, 0.5, torch.tensor([1.0, 0.0])).sum().backward()
    assert (v.grad[0] > 0).all(), "the good clip: less of the miss"
    assert (v.grad[1] < 0).all(), "the bad clip: more of it"
    v.grad = None
    nft_loss(v, v_old, noised(z, noise, 0.5), z, 0.5, torch.tensor([0.5, 0.5])).sum().backward()
    torch.testing.assert_close(v.grad, torch.zeros_like(v.grad))


def test_shares_of_good_by_hand_and_the_uniform_map_is_plain():
    assert good_share(torch.tensor([-9.0, -5.0, 0.0, 2.5, 7.0]), 5.0).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
    advantage = numbers(3, 2).float()
    base, deviation = shares_by_position(advantage[:, None, None, None].expand(2, 2, 2, 2), 5.0)
    assert torch.equal(base, good_share(advantage, 5.0)) and not deviation.any()
    v, v_old, x, z = (numbers(n, *SHAPE).float() for n in range(4))
    assert torch.equal(nft_loss(v, v_old, x, z, 0.3, base), nft_loss(v, v_old, x, z, 0.3, base, deviation=deviation))


# ---- advantages ----------------------------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    totals = np.array([[1.0, 2.0, 3.0, NAN], [0.5, 0.5, 0.5 + 1e-8, 0.5], [NAN, NAN, NAN, 1.0], [0.0, 0.0, 0.0, 1.0]])
    told = summed(totals, clip=1.5)
    a = math.sqrt(1.5)
    np.testing.assert_allclose(told.values[0], [-a, 0, a, 0])
    np.testing.assert_allclose(told.values[1:3], 0)
    np.testing.assert_allclose(told.values[3], [-1 / math.sqrt(3)] * 3 + [1.5])  # √3 clipped
    assert told.dead.tolist() == [False, True, True, False]
    assert told.unscored.sum() == 4 and told.live.sum() == 3 + 4
    assert (
        summed(np.array([[0.3, 0.1 + 0.2, 0.7]]), 5.0).values[0, 0]
        == summed(np.array([[0.3, 0.3, 0.7]]), 5.0).values[0, 1]
    )


def test_in_units_of_the_batch_a_group_says_as_much_as_its_scores_differ():
    totals = np.array([[0.2, 0.8], [0.9, 0.902], [0.5, NAN]])
    # The scored five: mean 3.302 / 5 = 0.6604, mean square 2.553604 / 5 = 0.5107208, variance 0.0745926, std 0.2731165.
    told = summed(totals, 5.0, global_std=True)
    assert told.values[0] == pytest.approx([-0.3 / 0.2731165, 0.3 / 0.2731165], rel=1e-5)
    assert told.values[1] == pytest.approx([-0.001 / 0.2731165, 0.001 / 0.2731165], rel=1e-5)
    assert told.values[2].tolist() == [0, 0] and told.dead.tolist() == [False, False, True]
    assert summed(totals, 5.0).values[1] == pytest.approx(
        [-1, 1]
    )  # by itself the second group shouts as loudly as the first
    for silent in (np.full((2, 3), NAN), np.full((2, 3), 0.4)):
        told = summed(silent, 5.0, global_std=True)
        assert told.dead.all() and (told.values == 0).all()


def test_decoupled_advantages_by_hand():
    """A component with a hundredth of the other's spread counts as much; a still one counts nothing; the batch is scaled to 1."""
    components = np.array([[[0.0, 0.0, 1.0, 1.0]], [[0.51, 0.5, 0.51, 0.5]], [[3.0, 3.0, 3.0, 3.0]]])
    totals = components.sum(0)
    told = decoupled(components, np.array([0.5, 0.5, 0.5]), totals, 5.0)
    mixed = np.array([0.0, -1.0, 1.0, 0.0])  # ½(−1 + 1), ½(−1 − 1), ½(1 + 1), ½(1 − 1)
    np.testing.assert_allclose(told.values[0], mixed / mixed.std(), atol=1e-12)
    totals[0, 3] = NAN
    told = decoupled(components, np.array([0.5, 0.5, 0.5]), totals, 5.0)
    assert told.values[0, 3] == 0 and told.unscored[0, 3] and told.live.sum() == 3
    still = decoupled(np.ones((2, 1, 4)), np.array([0.5, 0.5]), np.ones((1, 4)), 5.0)
    assert still.dead.tolist() == [True] and not still.values.any()


# ---- local credit --------------------------------------------------------------------------------------------------


def judged(*anomalies, status="abnormal"):
    return Judgement(status, tuple(anomalies))


def clip(frames, height, width, fps=16):
    return Video.open(np.zeros((frames, height, width, 3), np.uint8), fps=fps)


def test_the_latent_grid_by_hand():
    wan = Grid(81, 480, 832)
    assert wan.shape == (21, 60, 104)
    assert [wan.time_of(frame) for frame in (0, 1, 4, 5, 8, 9, 80)] == [0, 1, 1, 2, 2, 3, 20]
    assert wan.cells(Box(0, 0, 1000, 1000)) == (slice(0, 60), slice(0, 104))
    # x: 250/1000 · 832 = 208 px = cell 26, 300/1000 · 832 = 249.6 px inside cell 31; y: 100 → 48 px = 6, 117 → 56.16 px inside cell 7
    assert wan.cells(Box(250, 100, 300, 117)) == (slice(6, 8), slice(26, 32))
    small = Grid(33, 64, 64, temporal=2, spatial=4)
    assert small.shape == (17, 16, 16)
    assert [small.time_of(frame) for frame in (0, 1, 2, 3, 32)] == [0, 1, 1, 2, 16]


def test_boxes_and_windows_become_a_mask():
    grid, video = Grid(33, 64, 64, 2, 4), clip(33, 64, 64)
    box = Box(0, 0, 250, 125)  # 16 × 8 px: 2 rows, 4 columns of cells
    window = Window(4 / 16, 8 / 16)  # frames 4 … 8: latent times 2, 3, 4
    mask = mask_of(judged(Anomaly("Object Distortion", window, boxes={6: (box,)})), video, grid)
    expected = np.zeros(grid.shape, bool)
    expected[2:5, :2, :4] = True
    assert np.array_equal(mask, expected)
    later = Box(500, 500, 750, 750)
    mask = mask_of(judged(Anomaly("Object Distortion", window, boxes={4: (box,), 8: (later,)})), video, grid)
    assert mask[2, 0, 0] and not mask[2, 8, 8] and mask[4, 8, 8] and not mask[4, 0, 0]
    whole = mask_of(judged(Anomaly("Motion Anomalies", window)), video, grid)
    assert whole[2:5].all() and whole.sum() == 3 * 256
    alone = mask_of(judged(Anomaly("Motion Anomalies", None, boxes={0: (box,)})), video, grid)
    assert alone[0, :2, :4].all() and alone.sum() == 8
    for nowhere in (judged(status="normal"), judged(), None):
        assert mask_of(nowhere, video, grid).all()


def test_the_advantage_map_by_hand():
    """Two videos, two positions: the first is blamed at position 0 alone. r = [[.2, 1], [1, 1]], mean over the group [.6, 1]."""
    masks = np.array([[[[True, False]]], [[[False, True]]]])
    found, dead = local_advantages(np.array([0.2, 1.0]), masks)
    scale = math.sqrt((0.16 + 0.16) / 4)
    np.testing.assert_allclose(found[:, 0, 0], [[-0.4 / scale, 0], [0.4 / scale, 0]])
    assert not dead
    partner = np.array([1.0, -1.0])
    with_partner, _ = local_advantages(np.array([0.2, 1.0]), masks, partner)
    np.testing.assert_allclose(with_partner[:, 0, 0], [[-0.4 / scale + 0.5, 0.5], [0.4 / scale - 0.5, -0.5]])


def test_masks_that_are_everywhere_give_the_plain_advantage_exactly():
    scores = np.array([0.9, 0.2, NAN, 0.55])
    found, dead = local_advantages(scores, np.ones((4, 2, 3, 3), bool))
    plain = summed(scores[None], 5.0).values[0]
    assert not dead
    for video in range(4):
        assert np.array_equal(found[video], np.full((2, 3, 3), plain[video]))
    still, dead = local_advantages(np.full(4, 0.7), np.ones((4, 2, 3, 3), bool))
    assert dead and not still.any()
    carried, dead = local_advantages(np.full(4, 0.7), np.ones((4, 2, 3, 3), bool), np.array([1.0, -1.0, 0.0, 0.0]))
    assert not dead and carried[0, 0, 0, 0] == 0.5


def test_a_video_without_a_score_gets_no_map():
    masks = np.zeros((3, 1, 2, 2), bool)
    masks[0, 0, 0, 0] = masks[1, 0, 1, 1] = masks[2, 0, 0, 0] = True
    found, _ = local_advantages(np.array([0.1, 0.4, NAN]), masks, np.array([1.0, -1.0, 0.0]))
    assert not found[2].any() and found[0].any()
