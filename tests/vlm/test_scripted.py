"""ScriptedVlm: texts from a function or a list, probabilities from the stated confidence, failures one by one."""

import math
import pickle
import subprocess
import sys

import pytest

from cac_align.vlm.protocol import Message, Readout, Reply, Vlm
from cac_align.vlm.scripted import ScriptedVlm

ASK = (Message("user", "look"),)


def locate(text: str) -> int | None:
    key = '"status": "'
    at = text.rfind(key)
    return None if at < 0 else at + len(key)


WORDS = Readout(("normal", "abnormal"), locate)


def shout(conversation):
    return conversation[-1].text.upper()


def test_it_is_a_vlm_and_answers_in_order():
    vlm = ScriptedVlm(["one", "two", Reply("three", truncated=True)])
    assert isinstance(vlm, Vlm)
    assert [reply.text for reply in vlm.answer([ASK, ASK], max_new_tokens=5)] == ["one", "two"]
    assert vlm.answer([ASK], max_new_tokens=5)[0] == Reply("three", truncated=True)
    assert vlm.asked == [ASK, ASK, ASK]
    assert "asked 4 times" in vlm.answer([ASK], max_new_tokens=5)[0].error


def test_the_word_that_is_written_gets_the_confidence():
    vlm = ScriptedVlm(['{"status": "abnormal"}', '{"status": "normal"}', "no json"], confidence=0.8)
    first, second, third = vlm.answer([ASK] * 3, max_new_tokens=5, readout=WORDS)
    assert math.isclose(math.exp(first.log_p["abnormal"]), 0.8) and math.isclose(math.exp(first.log_p["normal"]), 0.2)
    assert math.isclose(math.exp(second.log_p["normal"]), 0.8)
    assert third.log_p is None and third.text == "no json"


def test_a_begun_answer_is_part_of_what_locate_sees():
    begun = (*ASK, Message("assistant", '{"status": "'))
    assert math.isclose(
        ScriptedVlm(['normal"}']).answer([begun], max_new_tokens=5, readout=WORDS)[0].log_p["normal"], math.log(0.9)
    )


def test_a_failing_script_fails_one_conversation():
    def moody(conversation):
        if conversation[-1].text == "bad":
            raise RuntimeError("no video")
        return "fine"

    replies = ScriptedVlm(moody).answer([ASK, (Message("user", "bad"),), ASK, ()], max_new_tokens=5)
    assert [reply.error for reply in replies[:3]] == [None, "RuntimeError: no video", None]
    assert "user message" in replies[3].error


def test_it_pickles_and_rejects_nonsense():
    copy = pickle.loads(pickle.dumps(ScriptedVlm(shout, name="loud")))
    assert copy.answer([ASK], max_new_tokens=5)[0].text == "LOOK" and copy.provenance["model"] == "loud"
    with pytest.raises(ValueError, match="between 0 and 1"):
        ScriptedVlm(shout, confidence=1.0)
    with pytest.raises(ValueError, match="into a list"):
        ScriptedVlm("one answer")
    with pytest.raises(ValueError, match="no empty"):
        ScriptedVlm(shout).answer([ASK], max_new_tokens=5, readout=Readout(("",), locate))


def test_it_stays_light():
    code = "import sys, cac_align.vlm.scripted; print([m for m in ('torch', 'transformers', 'decord') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
