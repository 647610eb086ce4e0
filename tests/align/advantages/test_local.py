"""Local advantages: the latent grid, masks from judgements, and advantages by position."""

import math

import numpy as np

from cac_align.align.advantages.local import LatentGrid, anomaly_mask, local_advantages
from cac_align.align.advantages.uniform import summed_advantages
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video

NAN = math.nan


def judged(*anomalies, status="abnormal"):
    return Judgement(status, tuple(anomalies))


def clip(frames, height, width, fps=16):
    return Video.open(np.zeros((frames, height, width, 3), np.uint8), fps=fps)


def test_the_latent_grid_by_hand():
    wan = LatentGrid(81, 480, 832)
    assert wan.shape == (21, 60, 104)
    assert [wan.latent_frame(frame) for frame in (0, 1, 4, 5, 8, 9, 80)] == [0, 1, 1, 2, 2, 3, 20]
    assert wan.cells(Box(0, 0, 1000, 1000)) == (slice(0, 60), slice(0, 104))
    # x: 250/1000 · 832 = 208 px = cell 26, 300/1000 · 832 = 249.6 px inside cell 31; y: 100 → 48 px = 6, 117 → 56.16 px inside cell 7
    assert wan.cells(Box(250, 100, 300, 117)) == (slice(6, 8), slice(26, 32))
    small = LatentGrid(33, 64, 64, temporal=2, spatial=4)
    assert small.shape == (17, 16, 16)
    assert [small.latent_frame(frame) for frame in (0, 1, 2, 3, 32)] == [0, 1, 1, 2, 16]


def test_boxes_and_windows_become_a_mask():
    grid, video = LatentGrid(33, 64, 64, 2, 4), clip(33, 64, 64)
    box = Box(0, 0, 250, 125)  # 16 × 8 px: 2 rows, 4 columns of cells
    window = Window(4 / 16, 8 / 16)  # frames 4 … 8: latent times 2, 3, 4
    mask = anomaly_mask(judged(Anomaly("Object Distortion", window, boxes={6: (box,)})), video, grid)
    expected = np.zeros(grid.shape, bool)
    expected[2:5, :2, :4] = True
    assert np.array_equal(mask, expected)
    later = Box(500, 500, 750, 750)
    mask = anomaly_mask(judged(Anomaly("Object Distortion", window, boxes={4: (box,), 8: (later,)})), video, grid)
    assert mask[2, 0, 0] and not mask[2, 8, 8] and mask[4, 8, 8] and not mask[4, 0, 0]
    whole = anomaly_mask(judged(Anomaly("Motion Anomalies", window)), video, grid)
    assert whole[2:5].all() and whole.sum() == 3 * 256
    alone = anomaly_mask(judged(Anomaly("Motion Anomalies", None, boxes={0: (box,)})), video, grid)
    assert alone[0, :2, :4].all() and alone.sum() == 8
    for nowhere in (judged(status="normal"), judged(), None):
        assert anomaly_mask(nowhere, video, grid).all()


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
