"""Eq. 8-12 by hand, against a naive implementation, and their gradients against finite differences."""

import math

import pytest
import torch

from cac_align.training.objective import advantages, clipped, divergence, loss, zero_std_groups


def test_advantages_by_hand():
    # rewards 1, 2, 3: mean 2, std 1 (n − 1)
    found = advantages(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), eps=0.0)
    assert torch.allclose(found, torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64))
    with_eps = advantages(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), eps=1.0)
    assert torch.allclose(with_eps, found / 2)


def test_a_rollout_without_a_score_has_advantage_zero_and_does_not_move_its_group():
    with_nan = advantages(torch.tensor([[1.0, math.nan, 3.0, 2.0]]))
    without = advantages(torch.tensor([[1.0, 3.0, 2.0]]))
    assert with_nan[0, 1] == 0 and torch.equal(with_nan[0, [0, 2, 3]], without[0])


def test_tied_groups_are_exactly_zero_and_called_dead():
    rewards = torch.tensor([[0.1] * 3, [0.1, 0.1, 0.3], [math.nan, math.nan, 0.7], [math.nan] * 3])
    assert torch.equal(advantages(rewards)[0], torch.zeros(3))
    assert zero_std_groups(rewards).tolist() == [True, False, True, True]


def rows(seed=0, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    log_p = -torch.rand(3, 5, generator=generator, dtype=torch.float64) * 2
    old = log_p + spread * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    reference = log_p + spread * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    return log_p, old, reference, torch.tensor([1.2, -0.7, 0.4], dtype=torch.float64), mask


def test_against_a_naive_implementation():
    log_p, old, reference, gain, mask = rows()
    total_clip, total_kl = 0.0, 0.0
    for i in range(3):
        inner, kl, count = 0.0, 0.0, 0
        for t in range(5):
            if mask[i, t]:
                ratio = math.exp(float(log_p[i, t]) - float(old[i, t]))
                limited = min(max(ratio, 0.8), 1.2)
                inner += min(ratio * float(gain[i]), limited * float(gain[i]))
                rho = math.exp(float(reference[i, t])) / math.exp(float(log_p[i, t]))
                kl += rho - math.log(rho) - 1
                count += 1
        total_clip += inner / count
        total_kl += kl / count
    found = loss(log_p, old, reference, gain, mask, epsilon=0.2, beta=0.1)
    assert found.loss.item() == pytest.approx(-(total_clip - 0.1 * total_kl), abs=1e-12)
    assert found.kl == pytest.approx(total_kl) and 0 < found.clipped_share < 3


def test_per_sequence_means_by_hand():
    # ratio 1 everywhere: Eq. 9's inner part is the advantage itself, whatever the length; KL is 0 where both models agree
    log_p, _, _, gain, mask = rows()
    assert torch.allclose(clipped(log_p, log_p, gain, mask), gain)
    assert torch.equal(divergence(log_p, log_p, mask), torch.zeros(3, dtype=torch.float64))
    # one token with ratio 2 and advantage 1 is clipped to 1.2; with advantage −1 it is not: min(−2, −1.2) = −2
    one = torch.tensor([[math.log(2.0)], [math.log(2.0)]])
    assert torch.allclose(
        clipped(one, torch.zeros(2, 1), torch.tensor([1.0, -1.0]), torch.ones(2, 1, dtype=torch.bool)),
        torch.tensor([1.2, -2.0]),
    )


@pytest.mark.parametrize("what", ["eq9", "eq11"])
def test_gradients_by_finite_differences(what):
    log_p, old, reference, gain, mask = rows()

    def value(x):
        return clipped(x, old, gain, mask).mean() if what == "eq9" else divergence(x, reference, mask).mean()

    x = log_p.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step = 1e-6
    for i in range(3):
        for t in range(5):
            bump = torch.zeros_like(log_p)
            bump[i, t] = step
            slope = (value(log_p + bump) - value(log_p - bump)) / (2 * step)
            assert gradient[i, t].item() == pytest.approx(slope.item(), abs=1e-7)
            if not mask[i, t]:
                assert gradient[i, t] == 0
    assert gradient.abs().max() > 0.01


def test_unwritten_tokens_may_hold_anything():
    log_p, old, reference, gain, mask = rows()
    poisoned = torch.where(mask, log_p, math.inf).requires_grad_()
    found = loss(poisoned, old, reference, gain, mask, epsilon=0.2, beta=0.1)
    (gradient,) = torch.autograd.grad(found.loss, poisoned)
    assert torch.isfinite(gradient).all()
    assert found.loss.item() == pytest.approx(
        loss(log_p, old, reference, gain, mask, epsilon=0.2, beta=0.1).loss.item()
    )


def test_a_kl_term_needs_a_reference():
    log_p, old, _, gain, mask = rows()
    with pytest.raises(ValueError, match="beta = 0.1 needs the reference"):
        loss(log_p, old, None, gain, mask, epsilon=0.2, beta=0.1)
    assert loss(log_p, old, None, gain, mask, epsilon=0.2, beta=0.0).kl == 0.0
