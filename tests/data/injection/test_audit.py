"""The audit finds a shortcut that is there and none that is not."""

import numpy as np
import pytest

from cac_align.data.injection.audit import shortcut_auc, twin_features
from cac_align.data.injection.injectors.presence import flicker
from cac_align.data.injection.pairs import TwinPair
from cac_align.data.injection.truth import anomaly_of, measure
from tests.data.injection.squares import square_clip


def twins_with(shift: float, pairs: int = 120, width: int = 8) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    clip = rng.normal(size=(pairs, 1, width))
    features = np.repeat(clip, 2, axis=1) + 0.3 * rng.normal(size=(pairs, 2, width))
    features[:, 0, 3] += shift
    return features.astype(np.float32), [f"video {index // 2}" for index in range(pairs)]


def test_a_planted_shortcut_is_found_and_none_is_invented():
    found = shortcut_auc(*twins_with(1.5))
    assert found is not None and found.auc > 0.8 and found.low > 0.7
    nothing = shortcut_auc(*twins_with(0.0))
    assert nothing is not None and abs(nothing.auc - 0.5) < 0.1 and nothing.low < 0.5 < nothing.high + 0.05


def test_twins_that_are_equal_off_the_box_give_one_half_and_few_sources_give_nothing():
    features, sources = twins_with(0.0)
    features[:, 1] = features[:, 0]
    found = shortcut_auc(features, sources)
    assert found is not None and found.auc == 0.5
    assert shortcut_auc(features[:4], sources[:4]) is None


def test_more_features_than_clips_are_no_hindrance():
    found = shortcut_auc(*twins_with(6.0, pairs=20, width=300))
    assert found is not None and found.auc > 0.7


@pytest.mark.parametrize("leak", [0, 12])
def test_what_leaks_off_the_box_is_in_the_features(leak):
    source = square_clip()
    edit = flicker(source, np.random.default_rng(2), 0.8)
    truth = measure(edit)
    assert truth is not None
    edit.anomalous[:, :10, :30] += np.uint8(leak)  # after the truth was measured: nobody has told the audit
    pair = TwinPair("flicker", 0.8, edit, truth, anomaly_of(edit, truth, source.fps))
    features = twin_features(pair, (100, 100), source.fps)
    differs = np.abs(features["thumbnail"][0] - features["thumbnail"][1]).max()
    assert (differs > 5) == (leak > 0) and (differs < 1e-3) == (leak == 0)
