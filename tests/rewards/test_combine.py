"""Combined scores against numbers worked by hand; missing stays missing, ties stay tied, nothing is hidden."""

import json
import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cac_align.core.judgement import Judgement
from cac_align.core.video import Video
from cac_align.rewards.combine import Combined, combine
from cac_align.rewards.reward import Reward, Score


@dataclass(frozen=True)
class Table:
    """A reward that reads its value off the video's name: "0.25", or "!reason" for no score."""

    name: str = "table"
    column: int = 0
    bounds: tuple[float, float] | None = (0.0, 1.0)
    evidence: bool = False

    @property
    def provenance(self):
        return {"reward": self.name, "column": str(self.column)}

    def __call__(self, prompts, videos):
        scores = []
        for video in videos:
            cell = video.name.split()[self.column]
            judged = Judgement("normal", log_p_normal=-0.1, log_p_abnormal=-3.0) if self.evidence else None
            if cell.startswith("!"):
                scores.append(Score.missing(cell[1:], evidence=judged))
            else:
                scores.append(Score(float(cell), {"half": float(cell) / 2}, judged))
        return scores


PIXELS = np.zeros((2, 16, 16, 3), np.uint8)


def videos(*names):
    return [Video.open(PIXELS, fps=16, name=name) for name in names]


UR = Table("ur", 0, (1.0, 5.0))
CAC = Table("cac", 1, (0.0, 1.0), evidence=True)
BOTH = {"ur": UR, "cac": CAC}


def values(scores):
    return [score.value for score in scores]


def test_range_is_the_mean_on_zero_to_one():
    scores = combine(BOTH)(["p", "p"], videos("3 0.9", "5 0.1"))
    # (3-1)/4 = .5 and .9 → .7; (5-1)/4 = 1 and .1 → .55
    assert values(scores) == [0.7, 0.55]
    assert scores[0].parts["ur"] == 3 and scores[0].parts["cac"] == 0.9
    assert scores[0].parts["ur/half"] == 1.5 and scores[0].parts["cac/half"] == 0.45
    assert scores[0].parts["normalised/ur"] == 0.5 and scores[0].parts["normalised/cac"] == 0.9
    # terms ur (.25, .5), cac (.45, .05): total (.7, .55); cov(ur, t) = .125·(-.075) = …; shares -5/3 and 8/3
    assert scores[0].parts["share/ur"] == pytest.approx(-5 / 3) and scores[1].parts["share/cac"] == pytest.approx(8 / 3)
    assert scores[0].evidence is not None and scores[0].evidence.status == "normal"


def test_weights_are_scaled_to_one():
    scores = combine(BOTH, weights={"cac": 3, "ur": 1})(["p"], videos("5 0.2"))
    assert values(scores) == [0.4]  # (1·1 + 3·0.2) / 4
    assert json.loads(combine(BOTH, weights={"cac": 3, "ur": 1}).provenance["weights"]) == {"cac": 0.75, "ur": 0.25}


def test_group_normalises_each_prompt_alone():
    scores = combine(BOTH, normalise="group")(["a", "b", "a", "b"], videos("1 0.1", "4 0.5", "3 0.3", "2 0.7"))
    # prompt a: ur z = (-1, 1), cac z = (-1, 1); prompt b: ur z = (1, -1), cac z = (-1, 1)
    assert values(scores) == [-1, 0, 1, 0]
    assert scores[0].parts["share/ur"] == pytest.approx(0.5)
    assert math.isnan(scores[1].parts["share/ur"])  # they cancel exactly


def test_a_still_component_leaves_the_decision_to_the_other():
    scores = combine(BOTH, normalise="group")(["p"] * 3, videos("3.1 0.2", "3.1 0.4", "3.1 0.6"))
    assert values(scores) == pytest.approx([-(1.5**0.5) / 2, 0, (1.5**0.5) / 2], abs=1e-6)
    assert [score.parts["normalised/ur"] for score in scores] == [0, 0, 0]
    assert scores[0].parts["share/ur"] == 0 and scores[0].parts["share/cac"] == pytest.approx(1)


def test_rank():
    scores = combine(BOTH, normalise="rank")(["p"] * 3, videos("1 0.9", "2 0.9", "3 0.1"))
    assert values(scores) == [0.375, 0.625, 0.5]  # ranks (0, .5, 1) and (.75, .75, 0)


def test_reference(tmp_path):
    path = tmp_path / "statistics.json"
    rows = {
        "ur": {"mean": 3, "std": 0.5, "n": 40, "source": "s"},
        "cac": {"mean": 0.5, "std": 0.25, "n": 40, "source": "s"},
    }
    path.write_text(json.dumps(rows))
    reward = combine(BOTH, normalise="reference", statistics=path)
    assert values(reward(["p"], videos("4 0.75"))) == [1.5]  # (2 + 1) / 2: one video alone has a value
    assert "(x - 3.0) / 0.5, n=40, s" in reward.provenance["normalise"]
    assert reward.bounds is None


@pytest.mark.parametrize("normalise", ["group", "rank"])
def test_one_video_has_no_place_in_a_group(normalise):
    (score,) = combine(BOTH, normalise=normalise)(["p"], videos("4 0.75"))
    assert score.error == f"{normalise} normalisation needs >= 2 scored videos per prompt, received 1"
    assert score.parts["ur"] == 4 and score.evidence is not None


def test_a_missing_component_is_a_missing_score_with_its_reason():
    scores = combine(BOTH)(["p"] * 3, videos("3 0.9", "3 !timeout", "!no_answer !timeout"))
    assert values(scores[:1]) == [0.7]
    assert scores[1].error == "cac: timeout" and scores[1].parts == {"ur": 3, "ur/half": 1.5}
    assert scores[2].error == "ur: no_answer; cac: timeout"
    assert scores[1].evidence is not None  # what was judged is not thrown away


def test_the_unscored_do_not_move_their_groups_statistics():
    whole = combine(BOTH, normalise="group")(["p"] * 2, videos("1 0.1", "3 0.3"))
    mixed = combine(BOTH, normalise="group")(["p"] * 3, videos("1 0.1", "5 !gone", "3 0.3"))
    assert [mixed[0].value, mixed[2].value] == values(whole)
    assert not mixed[1].scored


def test_a_group_with_one_scored_member_is_missing():
    scores = combine(BOTH, normalise="group")(["p"] * 2, videos("1 0.1", "5 !gone"))
    assert [score.error for score in scores] == [
        "group normalisation needs >= 2 scored videos per prompt, received 1",
        "cac: gone",
    ]


def test_a_value_outside_the_declared_bounds_is_no_score():
    (score,) = combine(BOTH)(["p"], videos("7.5 0.5"))
    assert score.error == "ur: scored 7.5, outside its declared bounds (1.0, 5.0)"


cell = st.integers(0, 4).map(lambda n: f"{n / 4}")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(cell, cell), min_size=2, max_size=9),
    st.sampled_from(["range", "group", "rank"]),
    st.floats(0.1, 10),
    st.randoms(),
)
def test_ties_stay_exactly_tied(rows, normalise, weight, random):
    reward = combine({"a": Table("a", 0), "b": Table("b", 1)}, normalise=normalise, weights={"a": weight, "b": 1})
    rows = rows + [rows[0]]
    found = values(reward(["p"] * len(rows), videos(*[" ".join(row) for row in rows])))
    by_row = {}
    for row, value in zip(rows, found, strict=True):
        assert by_row.setdefault(row, value) == value
    # and the order of the videos in the call changes nothing
    order = list(range(len(rows)))
    random.shuffle(order)
    again = values(reward(["p"] * len(rows), videos(*[" ".join(rows[i]) for i in order])))
    assert again == pytest.approx([found[i] for i in order], abs=2e-6)


def test_rounding_does_not_break_a_tie():
    reward = combine({"a": Table("a", 0)}, normalise="group")
    found = values(reward(["p"] * 3, videos("0.3", f"{0.1 + 0.2!r}", "0.9")))
    assert found[0] == found[1]


def test_an_empty_call_is_an_empty_answer():
    assert combine(BOTH)([], []) == []


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 prompts and 2 videos"):
        combine(BOTH)(["p"], videos("1 1", "1 1"))


def test_a_component_that_loses_a_video_is_named():
    class Short(Table):
        def __call__(self, prompts, videos):
            return super().__call__(prompts, videos)[1:]

    with pytest.raises(ValueError, match="'ur' returned 1 scores for 2 videos"):
        combine({"ur": Short("ur", 0)})(["p"] * 2, videos("1", "1"))


def test_a_combination_is_a_picklable_reward_and_nests():
    reward = combine({"both": combine(BOTH), "ur": UR})
    assert isinstance(reward, Reward) and isinstance(reward, Combined)
    assert values(reward(["p"], videos("3 0.9"))) == [0.6]  # (.7 + .5) / 2
    clone = pickle.loads(pickle.dumps(reward))
    assert clone == reward and values(clone(["p"], videos("3 0.9"))) == [0.6]


def test_the_provenance_says_everything():
    provenance = combine(BOTH).provenance
    assert provenance["normalise"] == "range: ur (x - 1) / 4, cac (x - 0) / 1"
    assert provenance["ur/reward"] == "ur" and provenance["cac/column"] == "1"
    assert all(isinstance(value, str) for value in provenance.values())
    assert combine(BOTH).provenance != combine(BOTH, normalise="group").provenance
    assert combine(BOTH)(["p"], videos("3 0.9"))[0].provenance == provenance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": {}}, "at least one component"),
        ({"components": {"a/b": UR}}, "cannot be used"),
        ({"components": {"share": UR}}, "cannot be used"),
        ({"components": BOTH, "normalise": "softmax"}, "one of range, reference, group, rank; received 'softmax'"),
        ({"components": BOTH, "weights": {"ur": 1}}, "one weight per component"),
        ({"components": BOTH, "weights": {"ur": 1, "cac": 0}}, "leave a component out"),
        ({"components": BOTH, "weights": {"ur": 1, "cac": math.nan}}, "positive and finite"),
        ({"components": {"x": Table("x", 0, None)}}, "x declares none"),
        ({"components": BOTH, "normalise": "reference"}, "needs statistics="),
        ({"components": BOTH, "normalise": "group", "statistics": "f.json"}, "takes no statistics file"),
    ],
)
def test_what_cannot_be_combined_is_refused(arguments, message):
    components = arguments.pop("components")
    with pytest.raises(ValueError, match=message):
        combine(components, **arguments)
