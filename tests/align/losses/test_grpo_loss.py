"""The Flow-GRPO loss against known answers."""

import math

import numpy as np
import pytest
import torch

from cac_align.align.losses.grpo_loss import grpo_loss, split_by_position


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
    """One element per sample_batch, std 1, so log-ratio = (x' − old)²/2 − (x' − mean)²/2."""
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
        base, deviation = split_by_position(advantage[:, None, None, None].expand(3, 5, 6, 7))
        assert torch.equal(base, advantage) and not deviation.any()
        plain = grpo_loss(mean, old, x_next, 0.4, -0.1, advantage, clip=0.1)
        local = grpo_loss(mean, old, x_next, 0.4, -0.1, base, clip=0.1, deviation=deviation)
        assert torch.equal(plain.per_sample, local.per_sample)


def test_local_advantages_weigh_each_position_by_its_own():
    """At ratio 1 the gradient must be −mean_p A(p)·∇log p(p), written out here position by position."""
    advantage = numbers(7, 2, 2, 2, 2).float()
    base, deviation = split_by_position(advantage)
    old, x_next = numbers(1, *SHAPE).float(), numbers(2, *SHAPE).float()
    mean = old.clone().requires_grad_()
    grpo_loss(mean, old, x_next, 0.5, -0.1, base, clip=1e-3, deviation=deviation).per_sample.sum().backward()
    expected = torch.zeros(SHAPE)
    for b, c, t, h, w in np.ndindex(*SHAPE):
        slope = (x_next[b, c, t, h, w] - old[b, c, t, h, w]) / 0.5**2
        expected[b, c, t, h, w] = -advantage[b, t, h, w] * slope / (3 * 8)
    torch.testing.assert_close(mean.grad, expected)
