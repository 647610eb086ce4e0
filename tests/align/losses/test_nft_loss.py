"""The DiffusionNFT loss against known answers."""

import numpy as np
import pytest
import torch

from cac_align.align.losses.nft_loss import add_noise, good_share, nft_loss, shares_by_position

SHAPE = (2, 3, 2, 2, 2)


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_nft_loss_against_a_loop_over_elements():
    v, v_old, z, noise = (numbers(n, *SHAPE) for n in range(4))
    sigma, beta, share = torch.tensor([0.4, 0.1], dtype=torch.float64), 0.7, [0.9, 0.2]
    x = add_noise(z, noise, sigma)
    torch.testing.assert_close(x[0], 0.6 * z[0] + 0.4 * noise[0])
    torch.testing.assert_close(x[1], 0.9 * z[1] + 0.1 * noise[1])
    for b in range(2):

        def weighted(name, b=b):
            errors = []
            for c, t, h, w in np.ndindex(*SHAPE[1:]):
                at = (b, c, t, h, w)
                mixed = beta * v[at] + (1 - beta) * v_old[at] if name == "+" else (1 + beta) * v_old[at] - beta * v[at]
                errors.append(float(x[at] - sigma[b] * mixed - z[at]))
            return np.mean(np.square(errors)) / np.mean(np.abs(errors))

        expected = share[b] * weighted("+") + (1 - share[b]) * weighted("-")
        found = nft_loss(v, v_old, x, z, sigma, torch.tensor(share, dtype=torch.float64), beta=beta)[b]
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_nft_pulls_towards_good_clips_and_away_from_bad_ones():
    z, noise = numbers(0, 2, 2, 1, 2, 2), numbers(1, 2, 2, 1, 2, 2)
    v_old = noise - z + 0.1  # misses both clips by the same amount
    v = v_old.clone().requires_grad_()
    sigma = torch.full((2,), 0.5)
    nft_loss(v, v_old, add_noise(z, noise, sigma), z, sigma, torch.tensor([1.0, 0.0])).sum().backward()
    assert (v.grad[0] > 0).all(), "the good clip: less of the miss"
    assert (v.grad[1] < 0).all(), "the bad clip: more of it"
    v.grad = None
    nft_loss(v, v_old, add_noise(z, noise, sigma), z, sigma, torch.tensor([0.5, 0.5])).sum().backward()
    torch.testing.assert_close(v.grad, torch.zeros_like(v.grad))


def test_shares_of_good_by_hand_and_the_uniform_map_is_plain():
    assert good_share(torch.tensor([-9.0, -5.0, 0.0, 2.5, 7.0]), 5.0).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
    advantage = numbers(3, 2).float()
    base, deviation = shares_by_position(advantage[:, None, None, None].expand(2, 2, 2, 2), 5.0)
    assert torch.equal(base, good_share(advantage, 5.0)) and not deviation.any()
    v, v_old, x, z = (numbers(n, *SHAPE).float() for n in range(4))
    sigma = torch.full((2,), 0.3)
    plain, by_position = (nft_loss(v, v_old, x, z, sigma, base, deviation=d) for d in (None, deviation))
    assert torch.equal(plain, by_position)
