"""Weight maps of a judge's defects: of mean 1, heavier by the contrast inside, uniform where nothing is named."""

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid
from cac_align.generation.weight_maps import weight_maps

GRID = LatentGrid(9, 32, 32)  # latents of 3 × 4 × 4
VIDEO = Video.open(np.zeros((9, 32, 32, 3), np.uint8), fps=8)


def judged(*anomalies):
    return Judgement("abnormal", tuple(anomalies))


def test_a_box_weighs_by_the_contrast_and_the_map_by_one():
    # Frame 0 alone is latent frame 0; the box covers its upper left quarter: 4 of 48 cells.
    anomaly = Anomaly("Object Distortion", None, boxes={0: (Box(0, 0, 500, 500),)})
    (found,) = weight_maps([judged(anomaly)], [VIDEO], GRID, contrast=5)
    low = 48 / (4 * 5 + 44)
    assert found.dtype == np.float32 and found.mean() == pytest.approx(1, abs=1e-6)
    assert found[0, :2, :2] == pytest.approx(5 * low) and np.delete(found.ravel(), [0, 1, 4, 5]) == pytest.approx(low)


def test_no_place_is_uniform():
    whole = Anomaly("Object Distortion", Window(0, 1))  # a window without boxes that covers the video
    maps = weight_maps([None, judged(), judged(whole)], [VIDEO] * 3, GRID)
    assert maps.shape == (3, 3, 4, 4) and (maps == 1).all()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="contrast must be 1 or more, received 0.5"):
        weight_maps([None], [VIDEO], GRID, contrast=0.5)
    with pytest.raises(ValueError):
        weight_maps([None, None], [VIDEO], GRID)
