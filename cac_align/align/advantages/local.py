"""Local advantages: an advantage for every latent position, from where the judge saw the anomaly.

judgement (windows, boxes by source frame) → mask (t, h, w) → reward per position → normalised over the group

The paper names this as future work. A CaC score R in [0, 1] says how normal a video is, and the
judgement's boxes say where it is not. Every video i of a group gets a reward for each latent
position p:

    r_i(p) = 1 − m_i(p)·(1 − R_i)         m_i: the judgement's mask; 1 everywhere when it names no place
    A_i(p) = (r_i(p) − mean_j r_j(p)) / s + c·B_i          s² = mean_{j,p} (r_j(p) − mean_k r_k(p))²

The mean is taken over the group at that position, so an anomaly at p counts as far as the other
videos have none there. One scale s for all positions keeps them comparable; a scale per position
would enlarge places where the videos hardly differ. B is the group advantage of the other rewards,
added everywhere with c = ½. On a tiny Wan with an exact oracle this form did better than uniform
advantages with both seeds tried; multiplying one advantage by the mask did not. With masks of 1
everywhere r_i(p) = R_i, s is the std of R, and A_i(p) is the plain advantage of R. The losses split
A(p) into a mean and a deviation (``grpo_loss``, ``nft_loss``).

The masks are those of ``generation.latent_masks``. Source: CaC (arXiv 2605.11723), conclusion.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from cac_align.align.advantages.uniform import normalise_in_group
from cac_align.rewards.normalise import QUANTUM


def local_advantages(
    scores: Float[np.ndarray, " G"],
    masks: Bool[np.ndarray, "G t h w"],
    others: Float[np.ndarray, " G"] | None = None,
    *,
    others_weight: float = 0.5,
    clip: float = 5.0,
    min_group_std: float = 0.0,
) -> tuple[Float[np.ndarray, "G t h w"], bool]:
    """(advantage of each video of one group at each latent position, whether the group has zero
    std).

    scores: R in [0, 1]; NaN where there is no score, and the advantage is then 0 everywhere.
    others: the group advantage of the other rewards (B above), added with ``others_weight``. clip:
    bound on the result. min_group_std: the least standard deviation of r over the group, at the
    position where it is largest, that counts. With masks of 1 everywhere this is the standard
    deviation of R, so a judge's noise gives no advantage here either, while an anomaly in a small
    box still counts.
    """
    scored = ~np.isnan(scores)
    found = np.zeros(masks.shape)
    zero_std = True
    if scored.sum() >= 2:
        if masks[scored].all():  # the plain advantage, by the same arithmetic
            plain, zero_std = normalise_in_group(scores, min_group_std=min_group_std)
            found[:] = plain[:, None, None, None]
        else:
            rewards = 1 - masks[scored] * (1 - scores[scored])[:, None, None, None]
            centred = rewards - rewards.mean(0)
            scale = math.sqrt((centred**2).mean())
            if scale > QUANTUM and math.sqrt((centred**2).mean(0).max()) >= min_group_std:
                found[scored], zero_std = centred / scale, False
    if others is not None and np.abs(others[scored]).max(initial=0.0) > 0:
        found[scored] += others_weight * others[scored][:, None, None, None]
        zero_std = False
    return np.clip(found, -clip, clip), zero_std
