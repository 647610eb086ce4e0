"""Local advantages: advantages by position, from masks of the latent grid."""

import math

import numpy as np

from cac_align.align.advantages.local import local_advantages
from cac_align.align.advantages.uniform import summed_advantages

NAN = math.nan


def test_the_advantage_map_by_hand():
    """Two videos, two positions: the first is blamed at position 0 alone. r = [[.2, 1], [1, 1]], mean over the group [.6, 1]."""
    masks = np.array([[[[True, False]]], [[[False, True]]]])
    found, zero_std = local_advantages(np.array([0.2, 1.0]), masks)
    scale = math.sqrt((0.16 + 0.16) / 4)
    np.testing.assert_allclose(found[:, 0, 0], [[-0.4 / scale, 0], [0.4 / scale, 0]])
    assert not zero_std
    partner = np.array([1.0, -1.0])
    with_partner, _ = local_advantages(np.array([0.2, 1.0]), masks, partner)
    np.testing.assert_allclose(with_partner[:, 0, 0], [[-0.4 / scale + 0.5, 0.5], [0.4 / scale - 0.5, -0.5]])


def test_masks_that_are_everywhere_give_the_plain_advantage_exactly():
    scores = np.array([0.9, 0.2, NAN, 0.55])
    found, zero_std = local_advantages(scores, np.ones((4, 2, 3, 3), bool))
    plain = summed_advantages(scores[None], 5.0).values[0]
    assert not zero_std
    for video in range(4):
        assert np.array_equal(found[video], np.full((2, 3, 3), plain[video]))
    equal, zero_std = local_advantages(np.full(4, 0.7), np.ones((4, 2, 3, 3), bool))
    assert zero_std and not equal.any()
    carried, zero_std = local_advantages(np.full(4, 0.7), np.ones((4, 2, 3, 3), bool), np.array([1.0, -1.0, 0.0, 0.0]))
    assert not zero_std and carried[0, 0, 0, 0] == 0.5


def test_a_video_without_a_score_gets_no_map():
    masks = np.zeros((3, 1, 2, 2), bool)
    masks[0, 0, 0, 0] = masks[1, 0, 1, 1] = masks[2, 0, 0, 0] = True
    found, _ = local_advantages(np.array([0.1, 0.4, NAN]), masks, np.array([1.0, -1.0, 0.0]))
    assert not found[2].any() and found[0].any()


NOISE = np.array([0.99901, 0.99899] * 8)  # 16 scores of .999 ± 1e-5: their standard deviation is 1e-5


def test_local_advantages_of_noise_is_nothing_and_of_a_small_box_as_much_as_ever():
    everywhere = np.ones((16, 2, 3, 3), bool)
    found, zero_std = local_advantages(NOISE, everywhere, min_group_std=1e-3)
    assert zero_std and not found.any()
    boxes = np.zeros((2, 2, 10, 10), bool)
    boxes[0, 0, 0, 0] = boxes[1, 1, 9, 9] = True
    found, zero_std = local_advantages(
        np.array([0.999, 0.99901]), boxes, min_group_std=1e-3
    )  # r differs by .001: a deviation of .0005
    assert zero_std and not found.any()
    scores = np.array(
        [0.95, 0.95]
    )  # equally bad, in different places: by .05 at one cell of 200 each, a deviation of .025
    found, zero_std = local_advantages(scores, boxes, min_group_std=1e-3)
    assert not zero_std and np.array_equal(found, local_advantages(scores, boxes)[0])
    assert found[0, 0, 0, 0] < 0 < found[1, 0, 0, 0] and found[0, 0, 5, 5] == 0
