"""The two-turn GRPO objective as functions of tensors: advantages, clipped surrogate, KL to the
reference (Eq. 8-12).

rewards (P, G) → advantages (P, G) · log p, old log p, reference log p, mask, all (R, T) → loss, with its figures

    Â_i = (R_i − mean R) / (std R + ε_A)            over the group's rollouts        (8)
    J_clip = 1/G Σ_i 1/|y_i| Σ_t min(r Â, clip(r, 1 − ε, 1 + ε) Â),   r = π_θ / π_old   (9, 10)
    D_KL = 1/G Σ_i 1/|y_i| Σ_t (ρ − log ρ − 1),   ρ = π_ref / π_θ   (11)
    loss = −(J_clip − β D_KL)   (12)

|y_i| counts the tokens that the policy wrote, in both turns. std is the sample's (n − 1), as in
TRL. A rollout without a score (NaN) has advantage 0 and does not enter its group's mean and std.

Source: CaC (arXiv 2605.11723) Appendix C.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def advantages(rewards: Float[Tensor, "P G"], eps: float = 1e-4) -> Float[Tensor, "P G"]:
    """Eq. 8 per row. NaN rewards get advantage 0; so does a row with fewer than two scores, or
    whose scores are all equal.
    """
    scored = ~torch.isnan(rewards)
    count = scored.sum(1, keepdim=True)
    values = rewards.nan_to_num(0.0)
    mean = values.sum(1, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(scored, values - mean, 0.0)
    std = (deviation.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    # A tied group must be exactly 0: the mean of equal numbers may differ from them in the last bit.
    tied = (values.masked_fill(~scored, -torch.inf).amax(1) == values.masked_fill(~scored, torch.inf).amin(1))[:, None]
    return torch.where(tied | (count < 2), 0.0, deviation / (std + eps))


def zero_std_groups(rewards: Float[Tensor, "P G"]) -> Bool[Tensor, " P"]:
    """Groups that teach nothing: every advantage is 0."""
    return (advantages(rewards) == 0).all(1)


def sequence_means(values: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]) -> Float[Tensor, " R"]:
    """1/|y_i| Σ_t over the written tokens of each row; 0 for a row without any."""
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def clipped(
    log_p: Float[Tensor, "R T"],
    old_log_p: Float[Tensor, "R T"],
    advantage: Float[Tensor, " R"],
    mask: Bool[Tensor, "R T"],
    epsilon: float = 0.2,
) -> Float[Tensor, " R"]:
    """Eq. 9's inner part per rollout: the token mean of the clipped surrogate. To be maximised."""
    ratio = torch.exp(torch.where(mask, log_p - old_log_p, 0.0))
    gain = advantage[:, None]
    return sequence_means(torch.minimum(ratio * gain, ratio.clamp(1 - epsilon, 1 + epsilon) * gain), mask)


def divergence(
    log_p: Float[Tensor, "R T"], reference_log_p: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"]
) -> Float[Tensor, " R"]:
    """Eq. 11's inner part per rollout: the token mean of ρ − log ρ − 1, which is never negative."""
    log_rho = torch.where(mask, reference_log_p - log_p, 0.0)
    return sequence_means(torch.exp(log_rho) - log_rho - 1, mask)


@dataclass(frozen=True)
class Loss:
    """loss: scalar, with gradients, summed over rows (divide by the number of rollouts). The
    figures are sums over rows, detached.
    """

    loss: Float[Tensor, ""]
    kl: float
    clipped_share: float


def loss(
    log_p: Float[Tensor, "R T"],
    old_log_p: Float[Tensor, "R T"],
    reference_log_p: Float[Tensor, "R T"] | None,
    advantage: Float[Tensor, " R"],
    mask: Bool[Tensor, "R T"],
    *,
    epsilon: float,
    beta: float,
) -> Loss:
    """Eq. 12, negated, as a sum over rollouts: what a micro-batch adds. ``reference_log_p`` None:
    no KL term (β must be 0).
    """
    if reference_log_p is None and beta:
        raise ValueError(f"beta = {beta} needs the reference's log-probabilities, received none")
    surrogate = clipped(log_p, old_log_p, advantage, mask, epsilon)
    kl = torch.zeros_like(surrogate) if reference_log_p is None else divergence(log_p, reference_log_p, mask)
    with torch.no_grad():
        ratio = torch.exp(torch.where(mask, log_p - old_log_p, 0.0))
        outside = sequence_means(((ratio - 1).abs() > epsilon).to(log_p.dtype), mask)
    return Loss((beta * kl - surrogate).sum(), kl.detach().sum().item(), outside.sum().item())
