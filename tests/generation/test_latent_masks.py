"""Where a judge saw a defect, on the latent grid: what repair and local advantages share."""

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, anomaly_mask, grow_and_soften, marked_cells, pixel_mask


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


def test_an_anomaly_without_a_place_or_outside_the_clip_marks_no_cell():
    grid, video = LatentGrid(33, 64, 64, 2, 4), clip(33, 64, 64)
    beyond = Anomaly("Object Distortion", None, boxes={40: (Box(0, 0, 500, 500),)})
    for anomalies in ((), (beyond,), (Anomaly("Motion Anomalies", None),)):
        assert not marked_cells(anomalies, video, grid).any()


def test_a_mask_grows_and_falls_off_by_hand():
    mask = np.zeros((5, 9, 9), bool)
    mask[2, 4, 4] = True
    weights = grow_and_soften(mask, grow=1, border=1)
    assert weights[1:4, 3:6, 3:6].min() == 1.0 and (weights == 1).sum() == 27  # one cell to every side, in time too
    assert weights[0, 4, 4] == weights[2, 2, 2] == weights[4, 6, 6] == 0.5
    assert (weights > 0).sum() == 5 * 5 * 5
    hard = grow_and_soften(mask, grow=0, border=0)
    assert np.array_equal(hard, mask)
    two = grow_and_soften(mask, grow=0, border=2)
    np.testing.assert_allclose(two[2, 4, 4:7], [1, 2 / 3, 1 / 3])
    corner = np.zeros((3, 3, 3), bool)
    corner[0, 0, 0] = True
    assert grow_and_soften(corner, grow=1, border=0).sum() == 8  # nothing wraps around the edge
    with pytest.raises(ValueError, match="latent cells"):
        grow_and_soften(mask, grow=-1)


def test_pixels_of_a_mask_belong_to_the_frames_that_its_cells_hold():
    grid = LatentGrid(9, 16, 24, temporal=4, spatial=8)  # 3 latent frames of 2 × 3 cells: frame 0, frames 1-4, 5-8
    weights = np.zeros(grid.shape, np.float32)
    weights[0, 0, 0], weights[1, 1, 2] = 1.0, 0.5
    pixels = pixel_mask(weights, grid)
    assert pixels.shape == (9, 16, 24)
    assert pixels[0, :8, :8].all() and pixels[0].sum() == 64
    assert pixels[1:5, 8:, 16:].all() and pixels[1:5].sum() == 4 * 64 and not pixels[5:].any()
