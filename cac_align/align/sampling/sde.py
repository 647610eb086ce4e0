"""Sampling as an SDE: the mean and standard deviation of a step, its log-probability, and the ODE
step it replaces.

checkpoint's scheduler → schedule (σ, timesteps) → v = model(x, t)
→ Flow-SDE | Dance-SDE | CPS → x' = μ + std·ε, log p(x')

σ falls from 1 (noise) to 0 (video). x = (1 − σ)·x0 + σ·x1 and v = x1 − x0, so x̂0 = x − σv and x̂1
= x + (1 − σ)v. dt = σ' − σ < 0, and a is the noise level. All three keep the ODE's marginal
distributions (CPS: where x̂0 is exact); a = 0 gives the ODE step x' = x + v·dt.

    flow   s = a·√(σ / (1 − σ))    μ = x(1 + s²dt / 2σ) + v(1 + s²(1 − σ) / 2σ)dt       std = s√(−dt)
    dance  s = a                   μ = x + (v + ½s²(x − (1 − σ)x̂0) / σ²)dt              std = s√(−dt)
    cps    s = σ'·sin(aπ / 2)      μ = (1 − σ')x̂0 + √(σ'² − s²)·x̂1                       std = s

First step: s of ``flow`` is infinite at σ = 1 (and very large at UniPC's 0.999999), so σ in the
formula of s, and only there, is at most the second σ of the schedule. Log-probabilities are means
over elements: as sums, the size of the probability ratio would depend on the size of the video.
Sources: Flow-GRPO (arXiv 2505.05470), DanceGRPO (arXiv 2505.07818), CPS (arXiv 2509.05952).
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

DYNAMICS = ("flow", "dance", "cps")


@dataclass(frozen=True)
class Schedule:
    """The noise levels of N steps. sigmas: N + 1 numbers that fall to 0. timesteps: (N), the
    model's time input.
    """

    sigmas: tuple[float, ...]
    timesteps: Tensor

    def __len__(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class Transition:
    """The Gaussian that x' is drawn from: its mean, its std and dt; the latter two are equal for
    all elements.
    """

    mean: Float[Tensor, "B C t h w"]
    std: float
    dt: float


def read_schedule(scheduler: Any, num_steps: int, device: torch.device | str = "cpu") -> Schedule:
    """The checkpoint's own σ and timesteps (UniPC or Euler, with its flow shift); the scheduler is
    not changed.

    Raises ``ValueError`` for a scheduler that does not sample by flow matching.
    """
    name, config = type(scheduler).__name__, scheduler.config
    flows = config.get("use_flow_sigmas", name == "FlowMatchEulerDiscreteScheduler")
    if not flows or config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise ValueError(
            f"{name}: expected a flow-matching schedule (UniPC with use_flow_sigmas and flow_prediction, "
            "or FlowMatchEuler), "
            f"received use_flow_sigmas={config.get('use_flow_sigmas')}, prediction_type={config.get('prediction_type')}"
        )
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps, device=device)
    sigmas = tuple(float(sigma) for sigma in own.sigmas)
    if len(sigmas) != len(own.timesteps) + 1 or sigmas[-1] != 0 or any(a <= b for a, b in itertools.pairwise(sigmas)):
        raise ValueError(f"{name}: expected {num_steps} noise levels that fall to 0, received {sigmas}")
    return Schedule(sigmas, own.timesteps)


def transition(
    dynamics: str,
    x: Float[Tensor, "B C t h w"],
    v: Float[Tensor, "B C t h w"],
    sigmas: tuple[float, ...],
    index: int,
    noise_level: float,
) -> Transition:
    """Mean and standard deviation of step ``index``, from sigmas[index] to sigmas[index + 1].

    Raises ``ValueError`` for unknown dynamics, and for a step whose standard deviation would be 0.
    """
    sigma, after = sigmas[index], sigmas[index + 1]
    dt = after - sigma
    if dynamics == "flow":
        capped = min(sigma, sigmas[1])
        s = noise_level * math.sqrt(capped / (1 - capped))
        mean = x * (1 + s * s * dt / (2 * sigma)) + v * ((1 + s * s * (1 - sigma) / (2 * sigma)) * dt)
        std = s * math.sqrt(-dt)
    elif dynamics == "dance":
        s = noise_level
        towards_noise = (x - (x - sigma * v) * (1 - sigma)) / sigma**2
        mean = x + (v + 0.5 * s * s * towards_noise) * dt
        std = s * math.sqrt(-dt)
    elif dynamics == "cps":
        s = after * math.sin(noise_level * math.pi / 2)
        mean = (x - sigma * v) * (1 - after) + (x + (1 - sigma) * v) * math.sqrt(max(after * after - s * s, 0.0))
        std = s
    else:
        raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}; received {dynamics!r}")
    if std <= 0:
        raise ValueError(
            f"step {index} of {len(sigmas) - 1} has no noise under {dynamics} with noise level "
            f"{noise_level:g} (σ {sigma:.4g} to "
            f"{after:.4g}); the log-probability needs noise: raise noise_level, or leave the step out of sde_window"
        )
    return Transition(mean, std, dt)


def ode_step(
    x: Float[Tensor, "B C t h w"], v: Float[Tensor, "B C t h w"], sigmas: tuple[float, ...], index: int
) -> Float[Tensor, "B C t h w"]:
    """One Euler step of the deterministic flow."""
    return x + v * (sigmas[index + 1] - sigmas[index])


def log_prob_by_location(
    x_next: Float[Tensor, "B C t h w"], mean: Float[Tensor, "B C t h w"], std: float
) -> Float[Tensor, "B t h w"]:
    """log N(x'; μ, std²) at each latent position, a mean over channels."""
    square = ((x_next - mean) ** 2).mean(1)
    return -square / (2 * std * std) - math.log(std) - 0.5 * math.log(2 * math.pi)


def log_prob(x_next: Float[Tensor, "B C t h w"], mean: Float[Tensor, "B C t h w"], std: float) -> Float[Tensor, " B"]:
    """log N(x'; μ, std²) as a mean over all elements of a sample."""
    return log_prob_by_location(x_next, mean, std).flatten(1).mean(1)
