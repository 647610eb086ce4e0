"""Dialogues: in rounds where a backend can only answer lists, and who may speak next."""

import pytest

from cac_align.vlm.dialogue import DialogueQueue, Question, run_dialogues, run_one_dialogue
from cac_align.vlm.protocol import Message, Reply
from cac_align.vlm.scripted import ScriptedVlm
from tests.support.tiny_qwen import WORDS


def ask(text, **settings):
    return Question((Message("user", text),), settings.pop("tokens", 9), **settings)


def counting(name, *sizes):
    """Asks ``sizes[n]`` questions at its n-th turn; returns everything it heard."""
    heard = []
    for turn, size in enumerate(sizes):
        heard += [reply.text for reply in (yield [ask(f"{name}{turn}{place}") for place in range(size)])]
    return heard


def test_rounds_ask_all_that_is_open_and_results_keep_their_order():
    vlm = ScriptedVlm(lambda conversation: conversation[-1].text.upper())
    finished = []
    results = run_dialogues(vlm, [counting("a", 1, 2), counting("b"), counting("c", 1)], progress=finished.append)
    assert results == [["A00", "A10", "A11"], [], ["C00"]] and finished == [1, 1, 1]
    assert [conversation[-1].text for conversation in vlm.asked] == ["a00", "c00", "a10", "a11"]


def test_questions_of_different_settings_are_different_calls():
    class Listing(ScriptedVlm):
        def answer(self, conversations, **settings):
            calls.append((len(conversations), settings["max_new_tokens"], settings["readout"]))
            return super().answer(conversations, **settings)

    def talk(question):
        (reply,) = yield [question]
        return reply.text

    calls = []
    asked = [ask("x"), ask("y", tokens=5), ask("z", readout=WORDS), ask("w")]
    assert run_dialogues(Listing(lambda conversation: conversation[0].text), [talk(q) for q in asked]) == [
        "x",
        "y",
        "z",
        "w",
    ]
    assert sorted(calls, key=str) == [(1, 5, None), (1, 9, WORDS), (2, 9, None)]


def test_a_dialogue_that_raises_is_heard():
    def broken():
        yield [ask("x")]
        raise ValueError("no such wording")

    with pytest.raises(ValueError, match="no such wording"):
        run_dialogues(ScriptedVlm(lambda conversation: "x"), [broken()])


def test_the_floor_starts_a_dialogue_only_when_it_needs_one():
    started = []

    def talk(name):
        started.append(name)
        (reply,) = yield [ask(name)]
        return reply.text

    results = {}
    queue = DialogueQueue([talk(name) for name in "abcd"], results.__setitem__)
    first, second = queue.take(2)
    assert started == ["a", "b"]
    queue.deliver(second, Reply("two"))
    assert results == {1: "two"} and [item.number for item in queue.take(9)] == [2, 3] and queue.take(9) == []
    queue.deliver(first, Reply("one"))
    assert results == {1: "two", 0: "one"}


def test_a_follow_up_names_the_question_it_comes_from():
    queue = DialogueQueue([counting("a", 1, 1)], lambda number, result: None)
    (first,) = queue.take()
    queue.deliver(first, Reply("x"))
    (second,) = queue.take()
    assert first.after is None and second.after is first


def test_one_dialogue_by_itself():
    assert run_one_dialogue(counting("a", 2, 1), lambda question: Reply(question.conversation[0].text * 2)) == [
        "a00a00",
        "a01a01",
        "a10a10",
    ]
