"""The contract of a score: a value or a reason, never both, never neither; exact through JSON."""

import json
import math
import pickle

import numpy as np
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Box, Judgement, Turn, Window
from cac_align.core.video import Video
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.normal_flow_speed import NormalFlowSpeed
from cac_align.rewards.reward import Reward, Score, check_pairs

JUDGEMENT = Judgement(
    status="abnormal",
    anomalies=(
        Anomaly("Human Distortion", Window(0.5, 1.25), 'six "fingers" – 手', "left hand", {12: (Box(1, 2, 3, 4),)}),
    ),
    turns=(Turn(1, "{…}", (0, 4, 8), "abnormal", log_p_normal=-2.25, log_p_abnormal=-0.111),),
    log_p_normal=-2.25,
    log_p_abnormal=-0.111,
)


def test_a_value_and_an_error_exclude_each_other():
    with pytest.raises(ValueError, match="without a value needs its reason"):
        Score(math.nan)
    with pytest.raises(ValueError, match="both a value"):
        Score(0.5, error="server down")
    with pytest.raises(ValueError, match="finite or NaN"):
        Score(math.inf)
    assert not Score.missing("why").scored
    assert Score(0.0).scored  # zero is a score


def test_missing_always_says_why():
    assert Score.missing("").error == "no reason given"


def test_a_score_survives_json_exactly():
    score = Score(0.1 + 0.2, {"a": 1 / 3, "b": math.nan}, JUDGEMENT, None, {"model": "x"})
    back = Score.from_json(json.loads(json.dumps(score.to_json(), allow_nan=False)))
    assert back.value == 0.30000000000000004
    assert back.parts["a"] == 1 / 3 and math.isnan(back.parts["b"])
    assert back.evidence == JUDGEMENT
    assert back.provenance == {"model": "x"}


def test_a_missing_score_survives_json_as_missing():
    back = Score.from_json(json.loads(json.dumps(Score.missing("torn file", evidence=JUDGEMENT).to_json())))
    assert math.isnan(back.value) and back.error == "torn file" and back.evidence == JUDGEMENT


def test_pickle_keeps_a_score():
    score = Score(0.25, {"a": 1.0}, JUDGEMENT)
    assert pickle.loads(pickle.dumps(score)) == score


def test_check_pairs_names_both_numbers():
    video = Video.open(np.zeros((2, 16, 16, 3), np.uint8), fps=16)
    check_pairs(["a"], [video])
    with pytest.raises(ValueError, match="2 prompts and 1 videos"):
        check_pairs(["a", "b"], [video])


def test_anything_of_that_shape_is_a_reward():
    class Brightness:
        name = "brightness"

        @property
        def provenance(self):
            return {"reward": self.name}

        def __call__(self, prompts, videos):
            return [Score(1.0) for _ in videos]

    assert isinstance(Brightness(), Reward)
    assert not isinstance(object(), Reward)


@pytest.mark.parametrize("wrap", ["alone", "combined", "cached"])
def test_rewards_open_paths_and_take_one_prompt_and_one_video(wrap, tmp_path):
    path = tmp_path / "a.mp4"
    write_mp4(path, np.full((8, 32, 32, 3), 128, np.uint8), 16)
    reward = NormalFlowSpeed(0.1)
    if wrap == "combined":
        reward = combine({"speed": reward})
    elif wrap == "cached":
        reward = cached(combine({"speed": reward}), Ledger(tmp_path / "ledger.jsonl"))
    (expected,) = reward(["p"], [Video.open(path)])
    for prompts, videos in (
        (["p"], [str(path)]),
        (["p"], [path]),
        ("p", path),
        ("p", str(path)),
        ("p", Video.open(path)),
    ):
        assert [score.value for score in reward(prompts, videos)] == [expected.value] and expected.scored
    with pytest.raises(ValueError, match=r"videos\[1\]: .*none\.mp4"):
        reward(["p", "q"], [path, tmp_path / "none.mp4"])
    with pytest.raises(ValueError, match=r"videos\[0\]: expected a Video or the path.*ndarray.*Video\.open"):
        reward("p", [np.zeros((8, 32, 32, 3), np.uint8)])
    with pytest.raises(ValueError, match=r"prompts\[0\]: expected a text, received NoneType"):
        reward([None], [path])
    with pytest.raises(ValueError, match="1 prompts and 2 videos"):
        reward("p", [path, path])
