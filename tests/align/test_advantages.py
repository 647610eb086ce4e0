"""The least spread that counts: a judge's own noise is no advantage: of the sum, of a component, at a position."""

import math

import numpy as np
import pytest

from cac_align.align.advantages import decoupled, still, summed
from cac_align.align.async_reward import Verdict
from cac_align.align.group_advantages import credit, summary
from cac_align.align.local_advantages import local_advantages
from cac_align.align.recipe import FlowGrpoRecipe, check

NOISE = np.array([0.99901, 0.99899] * 8)  # 16 scores of .999 ± 1e-5: their standard deviation is 1e-5
CLEAR = np.array([0.2, 0.8] * 8)  # .3


def test_noise_of_a_server_is_no_advantage_and_the_group_is_dead():
    told = summed(np.stack([NOISE, CLEAR]), 5.0, min_spread=1e-3)
    assert told.dead.tolist() == [True, False] and not told.values[0].any() and not told.live[0].any()
    assert told.values[1] == pytest.approx([-1, 1] * 8)
    loud = summed(np.stack([NOISE, CLEAR]), 5.0)
    assert loud.values[0] == pytest.approx([1, -1] * 8) and not loud.dead.any()  # what it would be without
    assert summed(np.stack([NOISE, CLEAR]), 5.0, global_std=True, min_spread=1e-3).dead.tolist() == [True, False]


def test_the_least_spread_is_a_standard_deviation_and_changes_nothing_above_it():
    pair = np.array([[0.5, 0.502, math.nan]])  # ± .001 of .501, over the two that have a score
    assert still(pair[0], 1.001e-3) and not still(pair[0], 0.999e-3) and not still(pair[0])
    for given in (pair, np.stack([CLEAR, CLEAR + 0.1])):
        assert np.array_equal(summed(given, 5.0, min_spread=0.9e-3).values, summed(given, 5.0).values)
    tied = np.array([0.3, 0.1 + 0.2, 0.3])
    assert still(tied) and still(np.array([0.7, math.nan])) and still(np.array([math.nan, math.nan]))


def test_decoupled_a_component_of_noise_says_nothing_beside_one_that_differs():
    """In raw units the first component (1 to 5) moves by .003, four times what it adds on [0, 1]: both are measured on [0, 1]."""
    unified = np.array([4.003, 3.997, 4.003, 3.997])  # on [0, 1] ± .00075
    cac = np.array([0.1, 0.1, 0.9, 0.9])
    raw, normalised = np.stack([unified, cac])[:, None], np.stack([(unified - 1) / 4, cac])[:, None]
    totals = normalised.mean(0)
    weights = np.array([0.5, 0.5])
    told = decoupled(raw, weights, totals, 5.0, normalised=normalised, min_spread=1e-3)
    assert told.values[0] == pytest.approx([-1, -1, 1, 1]) and not told.dead.any()
    both = decoupled(raw, weights, totals, 5.0, normalised=normalised, min_spread=0.5e-3)
    # ½(1 − 1), ½(−1 − 1), ½(1 + 1), ½(−1 + 1), over their standard deviation √½
    assert both.values[0] == pytest.approx([0, -math.sqrt(2), math.sqrt(2), 0])
    quiet = decoupled(raw[:1], weights[:1], totals, 5.0, normalised=normalised[:1], min_spread=1e-3)
    assert quiet.dead.all() and not quiet.values.any()


def test_local_credit_of_noise_is_nothing_and_of_a_small_box_as_much_as_ever():
    everywhere = np.ones((16, 2, 3, 3), bool)
    found, dead = local_advantages(NOISE, everywhere, min_spread=1e-3)
    assert dead and not found.any()
    boxes = np.zeros((2, 2, 10, 10), bool)
    boxes[0, 0, 0, 0] = boxes[1, 1, 9, 9] = True
    found, dead = local_advantages(
        np.array([0.999, 0.99901]), boxes, min_spread=1e-3
    )  # r differs by .001: a deviation of .0005
    assert dead and not found.any()
    scores = np.array(
        [0.95, 0.95]
    )  # equally bad, in different places: by .05 at one cell of 200 each, a deviation of .025
    found, dead = local_advantages(scores, boxes, min_spread=1e-3)
    assert not dead and np.array_equal(found, local_advantages(scores, boxes)[0])
    assert found[0, 0, 0, 0] < 0 < found[1, 0, 0, 0] and found[0, 0, 5, 5] == 0


class Two:
    """A reward's components and their weights."""

    components = {"unified": 0.5, "cac": 0.5}  # noqa: RUF012


def judged(unified, cac, mask=None):
    """Verdicts as a combination of ranges leaves them: unified is given on 1 to 5."""
    mapped = [(u, c, (u - 1) / 4) for u, c in zip(unified, cac, strict=True)]
    return [
        Verdict((z + c) / 2, {"unified": u, "cac": c, "normalised/unified": z, "normalised/cac": c}, None, 0.1, mask)
        for u, c, z in mapped
    ]


UNIFIED, CAC, NEARLY = [4.003, 3.997, 4.003, 3.997], [0.9, 0.9, 0.1, 0.1], [0.9003, 0.8997, 0.9003, 0.8997]


@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "sum"},
        {"aggregation": "sum", "global_std": True},
        {"aggregation": "decoupled"},
        {"credit": "local"},
    ],
)
def test_the_recipes_least_spread_reaches_every_way_to_credit(options):
    recipe = FlowGrpoRecipe(group_size=4, **options)
    quiet, clear = judged(UNIFIED, NEARLY, np.ones((1, 2, 2), bool)), judged(UNIFIED, CAC, np.ones((1, 2, 2), bool))
    (told,) = credit([quiet + clear], recipe, Two())
    assert told.dead.tolist() == [True, False] and told.live.tolist() == [False] * 4 + [True] * 4
    assert not told.advantage[:4].any() and (told.advantage[4:] * [1, 1, -1, -1] > 0).all()
    numbers = summary([told], Two.components)
    assert numbers["zero_std_groups"] == 1 and numbers["shares"]["cac"] > 0.99, "a dead group has no shares"
    (open_to_all,) = credit([quiet + clear], FlowGrpoRecipe(group_size=4, min_spread=0.0, **options), Two())
    assert not open_to_all.dead.any() and open_to_all.advantage[0] > 0 > open_to_all.advantage[1]


def test_a_least_spread_that_is_no_number_of_at_least_zero_is_refused():
    check(FlowGrpoRecipe(min_spread=0.0))
    for wrong in (-1e-3, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"min_spread must be a number of at least 0, received {wrong}"):
            check(FlowGrpoRecipe(min_spread=wrong))
