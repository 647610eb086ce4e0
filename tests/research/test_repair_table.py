"""The canvases of docs/repair.md, against probabilities by hand."""

import numpy as np
import pytest

from research.experiments.repair_table import Tiles, canvas_arms, read_judged_tiles, read_tiles


@pytest.mark.parametrize("k", [1, 2, 4])
def test_canvases_follow_from_their_tiles(k):
    """Half of the tiles are normal; of the broken half a repair of 7 of 10 steps mends one in two."""
    normal, whole = np.array([True, True, False, False]), np.array([True, False, True, False])
    tiles = Tiles(
        broken=~normal,
        normal=normal,
        follows=np.ones(4, bool),
        mended=np.array([True, True, True, False]),
        mended_follows=np.ones(4, bool),
        steps=np.array([0, 0, 7, 7]),
        whole=whole,
        whole_broken=~whole,
        slot=np.arange(4),
    )
    arms = canvas_arms(tiles, np.arange(4), k, np.random.default_rng(0))
    p = 0.5**k
    assert arms["one sample"][0] == pytest.approx(p, abs=0.03)
    assert arms["Best-of-4"][0] == pytest.approx(1 - (1 - p) ** 4, abs=0.03)
    assert arms["one new seed where broken"][0] == pytest.approx(1 - (1 - p) ** 2, abs=0.03)
    assert arms["one new seed where broken"][2] == pytest.approx(2 - p, abs=0.03)
    assert arms["repair"][0] == pytest.approx(0.75**k, abs=0.03)
    assert arms["repair"][2] == pytest.approx(1 + 0.7 * (1 - p), abs=0.03)
    # A canvas made anew is normal with p whatever it was before; one that was normal is left alone.
    assert arms["whole canvas"][0] == pytest.approx(p + (1 - p) * p, abs=0.03)
    assert arms["whole canvas"][2] == pytest.approx(1 + 0.7 * (1 - p), abs=0.03)


def test_the_judge_as_the_expert_keeps_a_repair_where_its_score_rises():
    def row(normal, r, judge, steps=0):
        return {"normal": normal, "follows": True, "steps": steps, "R": r, "judge": judge}

    rows = {
        "000-0": row(False, 0.2, "abnormal"), "000-0 judge": row(True, 0.26, "abnormal", 7),  # kept
        "001-0": row(False, 0.2, "abnormal"), "001-0 judge": row(True, 0.24, "abnormal", 7),  # rose by less than .05
        "002-0": row(False, 0.9, "normal"),  # missed
        "003-0": row(True, 0.2, "abnormal"), "003-0 judge": row(False, 0.9, "normal", 7),  # a false alarm, made broken
        "004-0": row(True, None, None),  # no score: not a tile
        **{f"00{n}-0 whole": row(True, 0.9, "normal", 7) for n in range(4)},
    }  # fmt: skip
    tiles = read_judged_tiles(rows)
    assert tiles.broken.tolist() == [True, True, False, True]
    assert tiles.mended.tolist() == [True, False, False, False]
    assert tiles.steps.tolist() == [7, 7, 0, 7]


def test_a_second_attempt_counts_where_the_first_did_not_mend():
    def row(normal, steps=0):
        return {"normal": normal, "follows": True, "steps": steps}

    rows = {
        "000-0": row(True), "001-0": row(False), "001-0 exact": row(True, 7), "002-0": row(False), "002-0 exact": row(False, 7),
        "002-0 exact 2": row(True, 8), "003-0": row(False), "003-0 exact": row(False, 7),
        **{f"00{n}-0 whole": row(False, 7) for n in range(4)},
    }  # fmt: skip
    once, twice = read_tiles(rows, ["exact"]), read_tiles(rows, ["exact", "exact 2"])
    assert once.mended.tolist() == [True, True, False, False] and once.steps.tolist() == [0, 7, 7, 7]
    assert twice.mended.tolist() == [True, True, True] and twice.steps.tolist() == [
        0,
        7,
        15,
    ]  # 003's second one is not there yet
