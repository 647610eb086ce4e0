"""Skyra and VideoVeritas: what their answers say, over a real HTTP server, and which answers are no verdict."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from cac_align.core.judgement import Box, Window
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.evaluation.bench.detection import decide_verdict
from cac_align.rewards.judges import skyra, videoveritas
from cac_align.rewards.judges.frames import rate_indices
from cac_align.rewards.judges.real_or_fake import VERDICT, p_real, read_real_or_fake
from cac_align.rewards.judges.skyra import Skyra, judgement_of, read_findings
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, text_digest
from cac_align.rewards.judges.videoveritas import VideoVeritas
from cac_align.vlm.connect import connect
from cac_align.vlm.local import LocalVlm, encode
from cac_align.vlm.protocol import Message, Reply
from cac_align.vlm.scripted import ScriptedVlm
from tests.support import tiny_qwen
from tests.support.chat_server import Answer, broken_connection, completion, parts_of, serve  # noqa: F401 (a fixture)
from tests.support.tiny_qwen2 import answering, qwen25_vl, tokenizer_with

# 33 frames at 8 fps: 0 to 4 s.
CLIP = Video.open(np.zeros((33, 32, 32, 3), np.uint8), fps=8.0)


def finding(label="Shape Distortion", start="1.00", end="2.00", box="0.1, 0.2, 0.5, 0.6"):
    return f"The ball melts. <type>{label}</type> in <t>[{start}, {end}]</t> at <bbox>[{box}]</bbox>."


def fake(*findings):
    return f"<think>A ball rolls. {' '.join(findings)}</think>\n<answer>Fake</answer>"


REAL = "<think>Calm. <t>[1.50, 2.50]</t> at <bbox>[0.0, 0.0, 0.0, 0.0]</bbox></think><answer>Real</answer>"


@pytest.mark.parametrize(
    "text, verdict",
    [
        (REAL, "real"),
        ("<answer> fake. </answer>", "fake"),
        ("I will write <answer> tags.</think><answer>Fake</answer>", "fake"),
        ("<answer>Real</answer> so <answer>real</answer>", "real"),
    ],
)
def test_a_verdict_is_one_word(text, verdict):
    assert read_real_or_fake(text) == verdict
    place = VERDICT.locate(text)
    assert place is not None and text[place:].lower().startswith(verdict)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Fake",
        "<answer>Fake",
        "<answer></answer>",
        "<answer>Fake or Real</answer>",
        "<answer>not real</answer>",
        "<answer>Realistic</answer>",
        "<answer>Fake</answer><answer>Real</answer>",
        "<answer>假</answer>",
        "<answer>" * 20_000,
    ],
    ids=["empty", "bare", "open", "blank", "both", "negated", "longer word", "contradiction", "Chinese", "tags only"],
)
def test_other_answers_are_no_verdict(text):
    with pytest.raises(ValueError):
        read_real_or_fake(text)
    assert judgement_of(text, CLIP).error is not None and judgement_of(text, CLIP).status is None


def test_findings_become_anomalies_on_our_grid():
    text = fake(
        finding(),
        finding("Unnatural Blur", box="0.0, 0.0, 1.0, 1.0"),
        finding("Text Distortion", box="0.0, 0.0, 0.0, 0.0"),
        "Her hand has six fingers. " + finding("Structure Anomaly", "3.9", "9.0").removeprefix("The ball melts. "),
    )
    judgement = judgement_of(text, CLIP)
    assert judgement.status == "abnormal" and judgement.error is None
    shape, letters, hand = judgement.anomalies
    assert (shape.type, shape.window) == ("Object Distortion", Window(1.0, 2.0))
    # 1 to 2 s at 8 fps are the frames 8 to 16.
    assert shape.boxes == {frame: (Box(100, 200, 500, 600),) for frame in range(8, 17)}
    assert (letters.type, letters.boxes) == ("Character Anomalies", {})
    # The end is cut to the last frame's time.
    assert hand.type == "Human Distortion"
    assert judgement_of(fake(finding(start="3.5", end="4.4")), CLIP).anomalies[0].window == Window(3.5, 4.0)


def test_what_cannot_be_read_is_a_fault_and_never_normal():
    wrong_box = judgement_of(fake(finding(box="12, 40, 300, 410")), CLIP)
    assert wrong_box.status == "abnormal" and wrong_box.anomalies[0].boxes == {}
    assert "fractions" in wrong_box.turns[0].faults[0]
    for text in (
        fake(),
        fake("<type>Shape Distortion</type> somewhere"),
        fake(finding("Melting")),
        fake(finding(start="2.00", end="1.00")),
        fake(finding(start="7.00", end="8.00")),
        fake(finding(start="1.2.3")),
        fake(finding("Unnatural Blur"), finding("Color Over-saturation")),
        fake(finding("Text Distortion", box="0.0, 0.0, 0.0, 0.0")),
        fake(finding(box="left half")),
        fake(finding(box="0.5, 0.5, 0.1, 0.9")),
        fake(finding(box="0.1, 0.2, nan, 0.6")),
        fake(finding().replace("<bbox>", "<box>")),
        fake(finding().replace(" in <t>", " <t>")),
    ):
        judgement = judgement_of(text, CLIP)
        assert judgement.status is None and judgement.error is not None and judgement.error.startswith("the answer is")
    assert judgement_of(REAL.replace("<t>", "<type>Shape Distortion</type> in <t>"), CLIP).status == "normal"


def test_reading_findings_takes_linear_time():
    opened = "<type>Shape Distortion</type> in <t>[1, 2]</t> at <bbox>[" * 4000
    assert read_findings(opened, CLIP).anomalies == ()
    assert read_findings("<type>" + "a " * 100_000, CLIP).anomalies == ()


def replied(**log_p):
    words = dict.fromkeys(("Real", "real", "Fake", "fake"), -50.0)
    return Reply("<answer>Real</answer>", log_p=words | log_p)


def test_p_real_worked_by_hand():
    value, parts = p_real(replied(Real=math.log(0.5), real=math.log(0.1), Fake=math.log(0.2)), "real")
    assert value == pytest.approx(0.6 / 0.8) and parts["p_real"] == pytest.approx(0.6)
    # Known is P(Real) = 0.5 alone. A bound of 0.2 for each spelling of fake; that of "real" is not counted.
    log_p = {"Real": math.log(0.5), "real": math.log(0.2), "Fake": math.log(0.2), "fake": math.log(0.2)}
    value, parts = p_real(Reply("x", log_p=log_p, bounded=("Fake", "fake", "real")), "real")
    assert value == pytest.approx(0.5 / 0.9) and parts["p_fake_is_bound"] == 1.0 and "p_real_is_bound" not in parts
    # Where 0.7 is known, no more than 0.3 can be left.
    more = log_p | {"Real": math.log(0.7)}
    _, parts = p_real(Reply("x", log_p=more, bounded=("Fake", "fake", "real")), "real")
    assert parts["p_fake"] == pytest.approx(0.3)
    for reply in (
        replied(Fake=math.log(0.9), Real=math.log(0.1)),  # against the written verdict
        replied(Fake=math.log(0.001), Real=math.log(0.002)),  # the model wanted to write something else
        replied(Fake=math.log(0.9), Real=math.log(0.95)),  # more than 1
        Reply("x", readout_error="no logprobs"),
        Reply("x", log_p=log_p, bounded=tuple(log_p)),  # nothing but bounds
    ):
        with pytest.raises(ValueError):
            p_real(reply, "real")


@pytest.fixture
def prompts(monkeypatch, tmp_path):
    """Files with texts of our own in the place of upstream's, whose hashes are taken for upstream's."""
    texts = ("Find flaws.", "Frames and times:", "\nReal or fake?")
    known = [UpstreamPrompt(text, "a/b", "f.py", text_digest(text), ()) for text in texts]
    monkeypatch.setattr(skyra, "_PROMPTS", tuple(known))
    monkeypatch.setattr(videoveritas, "_SYSTEM", (known[0],))
    monkeypatch.setattr(videoveritas, "_QUESTION", (known[2],))
    path = tmp_path / "f.py"
    path.write_text("".join(f"T{number} = {text!r}\n" for number, text in enumerate(texts)))
    return path


def test_skyra_scores_the_verdict_and_keeps_the_findings(prompts):
    answers = [REAL, fake(finding()), fake(), Reply(REAL, truncated=True), Reply("", error="HTTP 503"), "Fake"]
    judge = Skyra(ScriptedVlm(answers, confidence=0.8), prompt_file=prompts)
    scores = judge(["a"] * 6, [CLIP] * 6)
    # The word's own form has 0.8, the three others a third of 0.2 each.
    assert scores[0].value == pytest.approx(0.8 + 0.2 / 3) and scores[1].value == pytest.approx(0.2 / 3 * 2)
    assert scores[1].evidence is not None and scores[1].evidence.status == "abnormal"
    assert not any(score.scored for score in scores[2:])
    assert scores[2].evidence is not None and scores[2].evidence.status is None
    record = Record("1", "v.mp4", "a", 8.0, 33, 32, 32, "normal")
    told = [decide_verdict(record, score).status for score in scores]
    assert told == ["normal", "abnormal", None, None, None, None]


def logprobs(text, word, p_word, others):
    """Token by token, as the protocol reports them; the word is one token."""
    head, _, tail = text.partition(word)

    def row(token, log_p, top=()):
        entry = {"token": token, "logprob": log_p, "bytes": list(token.encode())}
        return {**entry, "top_logprobs": [entry, *({"token": t, "logprob": p, "bytes": None} for t, p in top)]}

    return {"content": [row(head, 0.0), row(word, math.log(p_word), others), row(tail, 0.0)]}


def test_skyra_over_http(serve, prompts):  # noqa: F811
    text = fake(finding())
    found = logprobs(text, "Fake", 0.75, [("Real", math.log(0.25))])
    server = serve(lambda body, number: Answer(completion(text, found)))
    vlm = connect(server.url, served_model="cac", dialect="openai", retries=0)
    (score,) = Skyra(vlm, prompt_file=prompts)(["a ball"], [CLIP])
    assert score.value == pytest.approx(0.25) and score.parts == pytest.approx({"p_real": 0.25, "p_fake": 0.75})
    assert score.evidence is not None and score.evidence.status == "abnormal"
    system, user = server.requests[0]["messages"]
    assert system == {"role": "system", "content": "Find flaws."}
    kinds = [part["type"] for part in user["content"]]
    assert kinds == ["text", "image_url"] * 16 + ["text"]
    texts = [part["text"] for part in user["content"] if part["type"] == "text"]
    assert (
        texts[0] == "Frames and times:\n[T=0.00s] " and texts[15] == "\n[T=4.00s] " and texts[16] == "\n\nReal or fake?"
    )


def test_videoveritas_over_http_by_votes(serve, prompts):  # noqa: F811
    def respond(body, number):
        return Answer(completion(f"It moves.\n<answer>{'Real' if body['seed'] in (1, 3) else 'fake'}</answer>"))

    server = serve(respond)
    voters = tuple(
        connect(server.url, served_model="cac", retries=0, temperature=0.7, seed=seed, frames="video")
        for seed in range(5)
    )
    (score,) = VideoVeritas(voters, prompts)(["a ball"], [CLIP])
    assert score.value == pytest.approx(2 / 5) and score.parts == {"votes": 5.0, "votes_real": 2.0}
    body = server.requests[0]
    assert body["temperature"] == 0.7 and body["messages"][0]["content"] == "Find flaws."
    video, question = parts_of(body, 1)
    assert video["type"] == "video_url" and question == {"type": "text", "text": "\nReal or fake?"}
    # 33 frames at 8 fps are 12 at 3 fps.
    assert body["media_io_kwargs"]["video"]["frames_indices"] == list(rate_indices(33, 8.0, 3.0))
    assert body["mm_processor_kwargs"] == {"do_sample_frames": False}


@pytest.mark.parametrize("change_at", [1, 2, 3])
def test_votes_of_two_checkpoints_make_no_score(serve, prompts, change_at):  # noqa: F811
    """The server is restarted with another checkpoint before a vote; the voters before it keep their connection."""
    server = serve(lambda body, number: respond(number))

    def respond(number):
        if number == change_at:
            server.models = Answer({"object": "list", "data": [{"id": "cac", "root": "another/checkpoint"}]})
            return broken_connection()
        return Answer(completion("<answer>Real</answer>"))

    def reward():
        voters = (
            connect(server.url, served_model="cac", retries=2, backoff_s=0.01, temperature=0.7, seed=seed)
            for seed in range(4)
        )
        return VideoVeritas(tuple(voters), prompts)

    (score,) = reward()(["a"], [CLIP])
    assert not score.scored and "checkpoint" in str(score.error)
    (score,) = reward()(["a"], [CLIP])
    assert score.value == 1.0 and score.provenance["vlm/served"] == "another/checkpoint"


def test_a_random_qwen3_vl_answers_as_videoveritas(prompts):
    """The probability is the one that a forward pass of transformers gives at the verdict."""
    tokenizer = tokenizer_with("<answer>", "</answer>", "Real", "Fake")
    ids = tokenizer.convert_tokens_to_ids
    net = tiny_qwen.model(tokenizer)
    start, real, fakes, end = (ids(word) for word in ("<answer>", "Real", "Fake", "</answer>"))
    newline = tokenizer("\n").input_ids[0]
    tiny_qwen.teach_chain(
        net, [newline, start, real, end, ids("<|im_end|>")], log_odds=12, rivals=[(start, fakes, 11.0)]
    )
    reader = tiny_qwen.processor(tokenizer)
    vlm = LocalVlm(net, reader, name="tiny")
    judge = VideoVeritas((vlm,), prompts, max_new_tokens=16)
    (score,) = judge(["a"], [CLIP])
    (conversation,) = [judge.conversation("a", CLIP)]
    inputs = encode(reader, [(*conversation, Message("assistant", "<answer>"))])
    with torch.no_grad():
        p = net(**inputs).logits[0, -1].softmax(-1)
    assert score.parts["p_real"] == pytest.approx(float(p[real]), abs=1e-3)
    assert score.value == pytest.approx(float(p[real] / (p[real] + p[fakes])), abs=1e-3)
    assert 0.5 < score.value < 0.99


def test_a_random_qwen25_vl_answers_as_skyra(serve, prompts):  # noqa: F811
    """16 images with their times go through the real processor, and the verdict comes back with its probability."""
    tokenizer = tokenizer_with("<answer>", "</answer>", "Real", "Fake")
    ids = tokenizer.convert_tokens_to_ids
    net = qwen25_vl(tokenizer)
    chain = [tokenizer("\n").input_ids[0], *(ids(word) for word in ("<answer>", "Real", "</answer>", "<|im_end|>"))]
    tiny_qwen.teach_chain(net, chain, log_odds=12, rivals=[(ids("<answer>"), ids("Fake"), 11.0)])
    server = serve(answering(net, tokenizer))
    vlm = connect(server.url, served_model="cac", dialect="openai", retries=0)
    (score,) = Skyra(vlm, prompt_file=prompts)(["a ball"], [CLIP])
    assert 0.5 < score.value < 0.99 and score.parts["p_real"] + score.parts["p_fake"] > 0.9
    assert score.evidence is not None and score.evidence.status == "normal"
    untaught = serve(answering(qwen25_vl(tokenizer, seed=1), tokenizer))
    vlm = connect(untaught.url, served_model="cac", dialect="openai", retries=0)
    (score,) = Skyra(vlm, prompt_file=prompts)(["a ball"], [CLIP])
    assert not score.scored and score.error is not None


def test_a_vote_without_verdict_leaves_no_score(prompts):
    voters = tuple(ScriptedVlm([f"<answer>{word}</answer>"]) for word in ("Real", "perhaps", "Real"))
    (score,) = VideoVeritas(voters, prompts)(["a"], [CLIP])
    assert not score.scored and "1 of 3 votes" in str(score.error)


def test_rate_indices_worked_by_hand():
    # int(33 / 8 * 3) = 12 frames over 0 … 32: a step of 32 / 11.
    assert rate_indices(33, 8.0, 3.0) == (0, 3, 6, 9, 12, 15, 17, 20, 23, 26, 29, 32)
    assert rate_indices(9, 16.0, 3.0) == (0, 3, 5, 8)  # at least 4: step 8 / 3
    assert rate_indices(2, 16.0, 3.0) == (0, 1)
    assert len(rate_indices(10_000, 10.0, 3.0)) == 768


def test_provenance_tells_settings_apart(prompts):
    one, three = ScriptedVlm([]), tuple(ScriptedVlm([]) for _ in range(3))
    five = tuple(ScriptedVlm([]) for _ in range(5))
    made = [VideoVeritas((one,), prompts), VideoVeritas(three, prompts), VideoVeritas(five, prompts)]
    made.append(VideoVeritas((one,), prompts, max_new_tokens=64))
    assert len({json.dumps(dict(judge.provenance), sort_keys=True) for judge in made}) == 4
