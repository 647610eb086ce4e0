"""The canvases of docs/repair.md, against probabilities by hand."""

import numpy as np
import pytest

from research.experiments.repair_table import Tiles, canvas_arms, read_tiles


@pytest.mark.parametrize("k", [1, 2, 4])
def test_canvases_follow_from_their_tiles(k):
    """Half of the tiles are normal; of the broken half a repair of 7 of 10 steps mends one in two."""
    normal = np.array([True, True, False, False])
    tiles = Tiles(
        normal,
        np.ones(4, bool),
        np.array([True, True, True, False]),
        np.ones(4, bool),
        np.array([0, 0, 7, 7]),
        np.arange(4),
    )
    arms = canvas_arms(tiles, np.arange(4), k, np.random.default_rng(0))
    p = 0.5**k
    assert arms["one sample"][0] == pytest.approx(p, abs=0.03)
    assert arms["Best-of-4"][0] == pytest.approx(1 - (1 - p) ** 4, abs=0.03)
    assert arms["one new seed where broken"][0] == pytest.approx(1 - (1 - p) ** 2, abs=0.03)
    assert arms["one new seed where broken"][2] == pytest.approx(2 - p, abs=0.03)
    assert arms["repair"][0] == pytest.approx(0.75**k, abs=0.03)
    assert arms["repair"][2] == pytest.approx(1 + 0.7 * (1 - p), abs=0.03)


def test_a_second_attempt_counts_where_the_first_did_not_mend():
    def row(normal, steps=0):
        return {"normal": normal, "follows": True, "steps": steps}

    rows = {
        "000-0": row(True), "001-0": row(False), "001-0 exact": row(True, 7), "002-0": row(False), "002-0 exact": row(False, 7),
        "002-0 exact 2": row(True, 8), "003-0": row(False), "003-0 exact": row(False, 7),
    }  # fmt: skip
    once, twice = read_tiles(rows, ["exact"]), read_tiles(rows, ["exact", "exact 2"])
    assert once.mended.tolist() == [True, True, False, False] and once.steps.tolist() == [0, 7, 7, 7]
    assert twice.mended.tolist() == [True, True, True] and twice.steps.tolist() == [
        0,
        7,
        15,
    ]  # 003's second one is not there yet
