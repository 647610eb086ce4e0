"""Measured windows and boxes against the renderer's own truth, on clips of the miniature's world."""

from collections import defaultdict
from dataclasses import replace

import numpy as np

from cac_align.miniature.world.settings import STUDIO
from research.experiments.injection_exactness import compare_injections, compare_renderers_twins

# Signs are left to the injectors of text.
WORLD = replace(
    STUDIO,
    kinds=("ball", "box", "figure"),
    types=("Object Distortion", "Motion Anomalies", "Physical Violations"),
)


def test_what_is_injected_through_pixels_is_where_the_renderer_says():
    counts = defaultdict(int)
    found = compare_injections(range(2_000_000, 2_000_024), WORLD, counts)
    assert len(found) >= 70
    assert np.mean([one.window_right for one in found]) >= 0.98
    assert np.mean([one.iou for one in found]) >= 0.9


def test_the_windows_of_the_renderers_own_twins_are_measured_within_a_frame():
    found = compare_renderers_twins(range(2_000_000, 2_000_024), WORLD)
    assert len(found) >= 6
    assert np.mean([right for rows in found.values() for right, _ in rows]) >= 0.98
