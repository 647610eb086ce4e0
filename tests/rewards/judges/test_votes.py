"""Votes of a sampling judge over a real HTTP server: the share that is counted, and votes that fail."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cac_align.cac.two_turn import TwoTurn
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.rewards.judges.votes import VotedCaC, api_voters
from cac_align.vlm.connect import connect
from tests.support.chat_server import Answer, broken_connection, completion, serve  # noqa: F401 (a fixture)

ANOMALY = {
    "Attributed Time Region": "Frame 1-2",
    "Attributed Label": "Object Distortion",
    "Reason for Anomaly": "the ball melts",
    "Problem Region": "ball",
    "BBOX": {"Frame 1": [1, 2, 300, 400]},
}
NORMAL = json.dumps({"COT": "", "status": "normal", "anomalies": []})
ABNORMAL = json.dumps({"COT": "", "status": "abnormal", "anomalies": [ANOMALY]})
CLIP = Video.open(np.zeros((17, 32, 32, 3), np.uint8), fps=16.0)


def voted(url: str, votes: int = 5, **backend) -> VotedCaC:
    def connected(**sampling):
        options = {"retries": 0, "backoff_s": 0.01, **sampling, **backend}
        return connect(url, served_model="cac", dialect="openai", **options)

    return VotedCaC(api_voters(connected, votes, 0.7))


def test_the_value_is_the_share_of_votes_for_normal(serve):  # noqa: F811
    server = serve(lambda body, number: Answer(completion(NORMAL if body["seed"] in (0, 3, 4) else ABNORMAL)))
    (score,) = voted(server.url)(["a ball"], [CLIP])
    assert score.value == pytest.approx(3 / 5)
    assert score.parts == {"votes": 5.0, "votes_normal": 3.0}
    assert score.evidence is not None and score.evidence.status == "normal"
    assert {body["seed"] for body in server.requests} == set(range(5))
    assert all(body["temperature"] == 0.7 and "logprobs" not in body for body in server.requests)
    # Two turns for each of the two votes against, one for the others.
    assert len(server.requests) == 3 + 2 * 2


@pytest.mark.parametrize(
    "bad",
    [Answer({"error": "quota"}, status=429), Answer(completion("Das Video ist in Ordnung.")), Answer(raw=b"<html>")],
)
def test_a_vote_without_verdict_leaves_no_score(serve, bad):  # noqa: F811
    server = serve(lambda body, number: bad if body["seed"] == 2 else Answer(completion(NORMAL)))
    (score,) = voted(server.url)(["a ball"], [CLIP])
    assert math.isnan(score.value) and "1 of 5 votes" in str(score.error)


def test_votes_of_two_checkpoints_make_no_score(serve):  # noqa: F811
    """The server is restarted with another checkpoint during the second vote; the first has its old connection."""

    def respond(body, number):
        if number == 1:
            server.models = Answer({"object": "list", "data": [{"id": "cac", "root": "another/checkpoint"}]})
            return broken_connection()
        return Answer(completion(NORMAL))

    server = serve(respond)
    (score,) = voted(server.url, votes=3, retries=2)(["a ball"], [CLIP])
    assert math.isnan(score.value) and "checkpoint" in str(score.error)


def test_votes_must_be_able_to_differ():
    with pytest.raises(ValueError, match="above 0"):
        api_voters(lambda **sampling: None, 5, 0.0)
    with pytest.raises(ValueError, match="3 or more"):
        voted("http://127.0.0.1:1", votes=2)


def test_without_probabilities_there_is_a_verdict_and_no_reward(serve):  # noqa: F811
    server = serve(lambda body, number: Answer(completion(ABNORMAL)))
    vlm = connect(server.url, served_model="cac", dialect="openai")
    judge = CaC(vlm, TwoTurn(probabilities=False))
    (judgement,) = judge.judge(["a ball"], [CLIP])
    assert judgement.status == "abnormal" and judgement.error is None and math.isnan(judgement.reward)
    (score,) = judge(["a ball"], [CLIP])
    assert not score.scored
