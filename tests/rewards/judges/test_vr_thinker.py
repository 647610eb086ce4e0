"""VR-Thinker: its verdicts, the frames that it asks for, and answers that are no verdict."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.rewards.cached import cached
from cac_align.rewards.judges.vr_thinker import VrThinker, read_dimensions, read_thinker_turn
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.pairwise.tournament import Tournament
from cac_align.vlm.connect import connect
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm
from tests.support import tiny_qwen
from tests.support.chat_server import Answer, completion, parts_of, pixels_of, serve  # noqa: F401 (a fixture)
from tests.support.tiny_qwen2 import answering, qwen25_vl, tokenizer_with

FINAL = "<Snapshot>two balls</Snapshot><Think>…</Think><Answer>TA=1, VQ=1, MQ=0, OA={}</Answer>"
RECOMMENDED = "<Think>…</Think><Recommend Answer>TA=0, VQ=1, MQ=0, OA={}, CF=2</Recommend Answer>"


def call(*numbers):
    return f'<tool_call>\n{{"name": "select_frames", "arguments": {{"target_frames": {list(numbers)}}}}}\n</tool_call>'


def clip(brightness, frames=20, size=32):
    """Frame i has the brightness ``brightness + i``."""
    pixels = np.arange(frames, dtype=np.uint8)[:, None, None, None] + np.uint8(brightness)
    pixels = np.broadcast_to(pixels, (frames, size, size, 3)).copy()
    return Video.open(pixels, fps=8.0, name=str(brightness), layout="THWC")


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "thinker.txt"
    path.write_text("Call select_frames, 1 to {N}.\n=== user ===\nCompare for {prompt}, {N} frames.\n")
    return path


def thinker(vlm, prompt, **options):
    return VrThinker(vlm, prompt_file=prompt, allow_other_prompt=True, **options)


@pytest.mark.parametrize(
    "block, overall",
    [
        ("TA=1, VQ=1, MQ=0, OA=1", "1"),
        (" ta = 0 ; oa = 2 ", "2"),
        ("OA=0, TA=2, CF=3", "0"),
        ("TA=1 VQ=2 MQ=1 OA=2", "2"),
        ("\nTA=1\nOA=1\n", "1"),
        ("**OA=1**.", "1"),
    ],
)
def test_a_verdict_is_read_in_any_order_and_case(block, overall):
    assert read_dimensions(block)["OA"] == overall


@pytest.mark.parametrize(
    "block",
    [
        "OA=1.5",
        "OA=1 or 2",
        "OA=1/2",
        "OA=12",
        "OA=3",
        "OA=-1",
        "OA: 1",
        "OA=1, OA=2",
        "OA=1, OA=1",
        "OA=one",
        "TA=1, VQ=1",
        "TA=1.5, OA=1",
        "OA=1, CF=0",
        "OA=1 because Video 1 moves",
        "OA=1=2",
        "总体=1",
        "",
    ],
)
def test_other_verdicts_are_refused(block):
    with pytest.raises(ValueError):
        read_dimensions(block)


def test_what_an_answer_says():
    assert read_thinker_turn(FINAL.format(1), 40).overall == "1"
    assert read_thinker_turn(FINAL.format(1) + "No: " + FINAL.format(2), 40).overall == "2"
    assert read_thinker_turn("<final answer>\nTA = 1, OA = 1\n</final answer>", 40).final
    asked = read_thinker_turn(RECOMMENDED.format(2) + call(12, 3, 12), 40)
    assert (asked.overall, asked.frames, asked.final) == ("2", (3, 12), False)
    assert read_thinker_turn(call(*range(1, 30)), 40).frames == tuple(range(1, 13))
    assert read_thinker_turn('<tool_call>{"target_frames": [7]}</tool_call>', 40).frames == (7,)
    # What is only recommended may be unreadable as long as it asks for more.
    assert read_thinker_turn(RECOMMENDED.format("1 or 2") + call(1), 40).overall is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Video 1 is better",
        "<Answer>OA=1",
        FINAL.format("1.5"),
        FINAL.format("1 or 2"),
        FINAL.format("1 or 2") + call(1),
        RECOMMENDED.format("1.5"),
        RECOMMENDED.format(1) + call(),
        call(0),
        call(41),
        RECOMMENDED.format(1) + '<tool_call>{"target_frames": [1.5]}</tool_call>',
        RECOMMENDED.format(1) + '<tool_call>{"target_frames": "1-4"}</tool_call>',
        RECOMMENDED.format(1) + "<tool_call>select_frames(1)</tool_call>",
        "<tool_call>" + "[" * 5000 + "</tool_call>",
        "<Answer>" * 20_000,
    ],
    ids=map(str, range(15)),
)
def test_answers_without_verdict_and_without_call_are_refused(text):
    with pytest.raises(ValueError):
        read_thinker_turn(text, 40)


def test_it_is_shown_the_frames_that_it_asks_for(prompt):
    answers = [
        RECOMMENDED.format(1) + call(1, 20, 21, 40),
        call(5),
        FINAL.format(2),
    ]
    vlm = ScriptedVlm(answers)
    (answer,) = thinker(vlm, prompt).compare(["a {N}"], [clip(0)], [clip(100, frames=25)])
    assert answer.p == pytest.approx((0.05 + 0.05 / 2), abs=0.1) and answer.answered
    first, second, third = vlm.asked
    assert [message.text for message in first] == ["Call select_frames, 1 to 40.", "Compare for a {N}, 40 frames."]

    def shown(message):
        return [int(frame[0, 0, 0]) for frame in message.frames.pixels]

    # Pool of 20 + 20: linspace(0, 19, 4) = 0, 6.3, 12.7, 19; the second video's pool is linspace(0, 24, 20).
    assert shown(first[1]) == [0, 6, 12, 19, 100, 107, 115, 124]
    assert [message.role for message in second] == ["system", "user", "assistant", "user"]
    assert shown(second[3]) == [0, 19, 100, 124]
    assert second[3].captions[1:] == ("\nFrame 20: ", "\nFrame 21: ", "\nFrame 40: ")
    # The memory lasts one turn: the eight first frames stay, those of the first call go.
    assert len(third) == 6 and third[3].frames is None and shown(third[1]) == shown(first[1])
    assert shown(third[5]) == [4]


def test_after_six_answers_the_recommended_one_counts_or_none(prompt):
    vlm = ScriptedVlm([RECOMMENDED.format(1) + call(n + 1) for n in range(6)])
    (answer,) = thinker(vlm, prompt).compare(["a"], [clip(0)], [clip(9)])
    assert answer.p == 1.0 and len(vlm.asked) == 6
    vlm = ScriptedVlm([RECOMMENDED.format(1) + call(1)] * 5 + [call(1)])
    (answer,) = thinker(vlm, prompt).compare(["a"], [clip(0)], [clip(9)])
    assert not answer.answered and "6 answers" in str(answer.error)


def test_p_comes_from_the_three_digits(prompt):
    def replied(digit, **p):
        return Reply(FINAL.format(digit), {name[1:]: math.log(value) for name, value in p.items()})

    answers = [
        replied("1", d1=0.6, d2=0.1, d0=0.2),
        replied("0", d1=0.2, d2=0.2, d0=0.4),
        replied("1", d1=0.1, d2=0.6, d0=0.2),  # against the written digit
        Reply(FINAL.format("2"), readout_error="no logprobs"),
    ]
    judge = thinker(ScriptedVlm(answers), prompt)
    found = judge.compare(["a"] * 4, [clip(0)] * 4, [clip(9)] * 4)
    assert [each.p for each in found] == pytest.approx([0.7 / 0.9, 0.5, 1.0, 0.0])


def test_what_fails_is_no_vote(prompt):
    answers = ["I cannot compare", Reply("", error="HTTP 429"), Reply(FINAL.format(1), truncated=True), call(77)]
    judge = thinker(ScriptedVlm(answers), prompt)
    found = judge.compare(["a"] * 6, [clip(0)] * 5 + [clip(0, 3)], [clip(9)] * 4 + [clip(9, size=64), clip(9)])
    assert not any(each.answered for each in found)
    assert "429" in str(found[1].error) and "frame 77" in str(found[3].error) and "64×64" in str(found[4].error)


def test_equal_files_tie_without_a_question(prompt):
    judge = thinker(ScriptedVlm([]), prompt)
    (answer,) = judge.compare(["a"], [clip(5)], [clip(5)])
    assert answer.p == 0.5
    assert [score.value for score in Tournament(judge)(["a"] * 2, [clip(5), clip(5)])] == [0.5, 0.5]


def test_a_group_that_was_asked_in_part_is_asked_whole(prompt, tmp_path):
    """A ledger of an interrupted run serves no comparison: the value of a video depends on its group."""

    def script(conversation):
        pixels = conversation[1].frames.pixels
        return FINAL.format(1 if pixels[0].mean() > pixels[4].mean() else 2)

    vlm = ScriptedVlm(script)
    reward = cached(Tournament(thinker(vlm, prompt)), Ledger(tmp_path / "ledger.jsonl"))
    part = reward(["a"] * 2, [clip(5), clip(9)])
    asked = len(vlm.asked)
    whole = reward(["a"] * 3, [clip(5), clip(9), clip(40)])
    assert len(vlm.asked) - asked == 6  # three pairs in both orders
    assert whole[2].value > whole[1].value > whole[0].value and part[1].value != whole[1].value


def test_what_is_missing_in_the_prompt_file_is_named(tmp_path, prompt):
    text = prompt.read_text()
    cases = [
        (None, "qunwang13/vrthinker"),
        (text.replace("=== user ===", "---"), "=== user ==="),
        (text.replace("{N}", "96"), "{N}"),
        (text.replace("frames.", "frames: {dim_name_1}."), "dim_name_1"),
    ]
    for number, (changed, message) in enumerate(cases):
        path = None if changed is None else tmp_path / f"{number}.txt"
        if path is not None:
            path.write_text(changed)
        with pytest.raises(ValueError, match=message):
            thinker(ScriptedVlm([]), path)
    with pytest.raises(ValueError, match="allow_other_prompt=true"):
        VrThinker(ScriptedVlm([]), prompt_file=prompt)
    judge = thinker(ScriptedVlm([]), prompt)
    assert pickle.loads(pickle.dumps(judge)).provenance == judge.provenance


def test_over_http_the_turns_are_a_chat(serve, prompt):  # noqa: F811
    def respond(body, number):
        asked = len(body["messages"]) == 2
        return Answer(completion(RECOMMENDED.format(1) + call(2, 30) if asked else FINAL.format(1)))

    server = serve(respond)
    vlm = connect(server.url, served_model="cac", dialect="openai", retries=0)
    (answer,) = thinker(vlm, prompt).compare(["a ball"], [clip(0)], [clip(100)])
    assert answer.p == 1.0 and answer.tokens == {"read": 22, "written": 14}
    messages = server.requests[1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in parts_of(server.requests[1], 1)] == ["image_url"] * 8 + ["text"]
    returned = parts_of(server.requests[1], 3)
    assert [part["type"] for part in returned] == ["text", "image_url", "text", "image_url", "text"]
    assert returned[0]["text"] == "<tool_response>\nFrame 2: " and returned[-1]["text"] == "\n</tool_response>"
    (frame,) = pixels_of(returned[3]["image_url"]["url"])
    assert frame.mean() == pytest.approx(109, abs=2)  # frame 30 is the second video's tenth


def test_a_random_qwen25_vl_answers_as_vr_thinker(serve, prompt):  # noqa: F811
    """Eight images go through the real processor, and P comes back from the three digits; untaught, it says nothing."""
    words = ("<Answer>OA=", "0", "1", "2", "</Answer>")
    tokenizer = tokenizer_with(*words)
    ids = tokenizer.convert_tokens_to_ids
    net = qwen25_vl(tokenizer)
    start, zero, one, two, end = map(ids, words)
    chain = [tokenizer("\n").input_ids[0], start, one, end, ids("<|im_end|>")]
    tiny_qwen.teach_chain(net, chain, log_odds=12, rivals=[(start, two, 11.0), (start, zero, 10.0)])
    server = serve(answering(net, tokenizer))
    vlm = connect(server.url, served_model="cac", dialect="openai", retries=0)
    (answer,) = thinker(vlm, prompt).compare(["a ball"], [clip(0)], [clip(100)])
    assert answer.text == "<Answer>OA=1</Answer>" and 0.5 < answer.p < 0.95
    untaught = serve(answering(qwen25_vl(tokenizer, seed=1), tokenizer))
    vlm = connect(untaught.url, served_model="cac", dialect="openai", retries=0)
    (answer,) = thinker(vlm, prompt).compare(["a ball"], [clip(0)], [clip(100)])
    assert not answer.answered
