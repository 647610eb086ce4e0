"""What a Vlm may return wrong: it costs the conversation's own answer, never a crash and never a number."""

import math

import numpy as np
import pytest

from cac_align.cac.readout import STATUS_READOUT
from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.rewards.unified import UnifiedReward
from cac_align.vlm.protocol import Reply
from cac_align.vlm.replies import checked_replies

GOOD = {"normal": -0.1, "abnormal": -3.0}
TEXT = '{"COT": "", "status": "normal"}'


class ThirdParty:
    provenance = {"model": "third party"}  # noqa: RUF012

    def __init__(self, second):
        self.second = second

    def answer(self, conversations, **_):
        return [Reply(TEXT, log_p=GOOD), self.second]


@pytest.mark.parametrize(
    "wrong",
    [None, 3, b"x", {}, np.float32(0.5), Reply(None), Reply(TEXT, log_p=3), Reply(TEXT, log_p={}), Reply(TEXT, error=3)]
    + [Reply(TEXT, log_p=GOOD, bounded=3), Reply(TEXT, log_p=GOOD, truncated=np.zeros(3))]
    + [Reply(TEXT, log_p={**GOOD, "abnormal": value}) for value in (None, "0", True, [], 1j, 10**400)]
    + [Reply(TEXT, log_p={**GOOD, "abnormal": value}) for value in (math.nan, math.inf, -math.inf, -9999.0, 0.5)],
    ids=repr,
)
def test_a_reply_that_breaks_the_protocol_costs_its_own_score(wrong):
    videos = [Video.open(np.zeros((5, 16, 16, 3), np.uint8), fps=16)] * 2
    good, bad = CaC(ThirdParty(wrong), VerdictOnly("json"))(["a", "b"], videos)
    assert good.value == pytest.approx(1 / (1 + math.exp(-2.9))) and not bad.scored and bad.error


class OwnLoop(ThirdParty):
    """Runs the dialogues itself, and hands on whatever it has."""

    def __init__(self, second, numbers=(0, 1)):
        super().__init__(second)
        self.numbers = numbers

    def run_dialogues(self, dialogues, done):
        for number, dialogue, reply in zip(
            self.numbers, dialogues, (Reply(TEXT, log_p=GOOD), self.second), strict=True
        ):
            asked = next(dialogue)
            try:
                while True:
                    asked = dialogue.send([reply] * len(asked))
            except StopIteration as end:
                done(number, end.value)


class Raises(dict):
    def get(self, *_):
        raise KeyError("its own")


@pytest.mark.parametrize(
    "wrong",
    [None, object(), Reply(None), Reply(TEXT, log_p=1j), Reply(TEXT, log_p=[None]), Reply(TEXT, log_p={"normal": {}})]
    + [Reply(TEXT, log_p={**GOOD, "normal": math.nan}), Reply(TEXT, log_p=Raises(GOOD)), Reply(TEXT, GOOD, bounded=3)],
    ids=["none", "object", "text", "complex", "list", "mapping in it", "nan", "raises", "bounded"],
)
@pytest.mark.parametrize("settings", [VerdictOnly("json"), TwoTurn()], ids=["verdict", "two turns"])
def test_a_vlm_that_runs_dialogues_itself_is_checked_as_well(wrong, settings):
    videos = [Video.open(np.zeros((5, 16, 16, 3), np.uint8), fps=16)] * 2
    good, bad = CaC(OwnLoop(wrong), settings)(["a", "b"], videos)
    assert good.value == pytest.approx(1 / (1 + math.exp(-2.9))) and not bad.scored and bad.error


@pytest.mark.parametrize("numbers", [(0, 7), (1, 1), (0, -1)])
def test_a_dialogue_without_an_end_is_said(numbers):
    videos = [Video.open(np.zeros((5, 16, 16, 3), np.uint8), fps=16)] * 2
    with pytest.raises(ValueError, match="of 2 dialogues"):
        CaC(OwnLoop(Reply(TEXT, log_p=GOOD), numbers))(["a", "b"], videos)


@pytest.mark.parametrize("provenance", [None, "text", {"a": 1}, {1: "a"}, {"a": None}, ["a"]], ids=repr)
def test_a_provenance_that_identifies_nothing_is_refused(provenance):
    vlm = ThirdParty(Reply(TEXT, log_p=GOOD))
    vlm.provenance = provenance
    for judge in (CaC(vlm), UnifiedReward(vlm)):
        with pytest.raises(ValueError, match="the provenance of the Vlm must map names to texts"):
            judge(["a"], [Video.open(np.zeros((5, 16, 16, 3), np.uint8), fps=16)])


@pytest.mark.parametrize("returned", [None, 3, "text", [], [Reply("a")] * 3, np.zeros(2)], ids=repr)
def test_without_one_reply_per_conversation_nobody_knows_whose_they_are(returned):
    with pytest.raises(ValueError, match="list of 2 replies"):
        checked_replies(returned, 2, None)


def test_numbers_of_numpy_are_plain_afterwards_and_good_replies_stay():
    reply = Reply(TEXT, log_p={"normal": np.float32(-0.5), "abnormal": np.float64(-1.0), "more": "x"})
    (read,) = checked_replies([reply], 1, STATUS_READOUT)
    assert read.log_p == {"normal": -0.5, "abnormal": -1.0} and {type(value) for value in read.log_p.values()} == {
        float
    }
    assert checked_replies([Reply("a", error="down")], 1, STATUS_READOUT) == [Reply("a", error="down")]
