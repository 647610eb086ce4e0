"""Every ugly answer that the judges' users report is read or refused, and no refusal becomes a number."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.rewards.judges.questions import SamenessAlarm
from cac_align.rewards.judges.unified_pairs import UnifiedPairs, even_indices, read_flex, read_think
from cac_align.rewards.judges.upstream_prompt import (
    UpstreamPrompt,
    fill_slots,
    read_upstream_prompt,
    text_digest,
    texts_in,
)
from cac_align.rewards.judges.videophy2 import VideoPhy2, middle_indices, read_rating
from cac_align.rewards.judges.videoscore2 import VideoScore2, read_axes_of_videoscore2
from cac_align.rewards.pairwise.tournament import Tournament
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm


def clip(brightness: int, size: int = 16, frames: int = 20) -> Video:
    return Video.open(np.full((frames, size, size, 3), brightness, np.uint8), fps=8.0, name=str(brightness))


@pytest.mark.parametrize(
    "text, winner",
    [
        ("<think>1. …</think><answer>Video 1 is better</answer>", 1),
        ("<think>x</think>\n<answer> Video 2 is better. </answer>", 2),
        ("<answer>Video 1 is better</answer> no, <answer>Video 2 is better</answer>", 2),
    ],
)
def test_think_names_a_winner(text, winner):
    assert read_think(text) == winner


@pytest.mark.parametrize(
    "text",
    [
        "Video 1 is better",
        "<answer>Both are good</answer>",
        "<answer>Video 1 is better than Video 2 is better</answer>",
        "",
    ],
)
def test_think_without_a_winner_is_refused(text):
    with pytest.raises(ValueError):
        read_think(text)


@pytest.mark.parametrize(
    "text, winner",
    [
        ('{"winner": "Video 1"}', 1),
        ('```json\n{"categories": [{"cat_winner": "Video 1"}], "winner": "video 2"}\n```', 2),
    ],
)
def test_flex_names_a_winner(text, winner):
    assert read_flex(text) == winner


@pytest.mark.parametrize(
    "text",
    [
        '{"winner": "Video 12"}',
        '{"winner": "tie"}',
        '{"winner": 1}',
        '["Video 1"]',
        "Video 1 wins",
        '{"winner": "Video 1"',
        "{" * 5000,
    ],
)
def test_flex_without_a_winner_is_refused(text):
    with pytest.raises(ValueError):
        read_flex(text)


@pytest.mark.parametrize("text, rating", [("4", 4), (" 5, a perfect match", 5), ("3.", 3), ("2\n", 2)])
def test_videophy_ratings(text, rating):
    assert read_rating(text) == rating


@pytest.mark.parametrize("text", ["45", "rated 5, not 1", "none", "100000", "", "0", "6", "4.5", "3/5", "five"])
def test_videophy_answers_that_upstream_misreads_are_refused(text):
    with pytest.raises(ValueError):
        read_rating(text)


def test_a_rule_that_cannot_be_told_is_no_score(template):
    judge = VideoPhy2(ScriptedVlm(["2", "1", "0", "3"]), prompt_file=template)
    told = judge.rules(["gravity"] * 4, [clip(9)] * 4)
    assert [score.value for score in told[1:3]] == [1.0, 0.0]
    assert not told[0].scored and not told[3].scored


@pytest.fixture
def template(monkeypatch, tmp_path):
    """A file with texts of our own in the place of VideoPhy-2's, whose hashes are taken for upstream's."""
    from cac_align.rewards.judges import videophy2

    texts = {"sa": "Does it show {caption}?", "pc": "Is it physical?", "rule": "Does it keep {rule}?"}
    known = {
        axis: UpstreamPrompt(axis, "a/b", "t.py", text_digest(text), videophy2._PROMPTS[axis].slots)
        for axis, text in list(texts.items())[:2]
    }
    monkeypatch.setattr(videophy2, "_PROMPTS", known)
    monkeypatch.setattr(videophy2, "_RULE", UpstreamPrompt("rule", "a/b", "t.py", text_digest(texts["rule"]), ()))
    path = tmp_path / "template.py"
    path.write_text("".join(f"{name.upper()} = ({text[:5]!r} {text[5:]!r})\n" for name, text in texts.items()))
    return path


def test_videophy_needs_both_ratings(template):
    vlm = ScriptedVlm(lambda conversation: "4" if "show" in conversation[0].text else "5")
    (score,) = VideoPhy2(vlm, prompt_file=template)(["a {rule}"], [clip(10)])
    assert score.value == 4.5 and score.parts == {"sa": 4.0, "pc": 5.0, "joint": 1.0}
    assert vlm.asked[0][0].text == "Does it show a {rule}?"
    half = ScriptedVlm(lambda conversation: "4" if "show" in conversation[0].text else "It is fine")
    (score,) = VideoPhy2(half, prompt_file=template)(["a"], [clip(10)])
    assert not score.scored and "physics" in str(score.error)


def test_frames_worked_by_hand():
    # N = 65: s = 2, so 1 + 2 i. N = 5: s = 1/8, so round(i / 8).
    assert middle_indices(65) == tuple(range(1, 65, 2))
    assert middle_indices(5) == (0, 1, 2, 3, 4)
    # linspace(0, 14, 8) = 0, 2, …, 14; of three frames each once.
    assert even_indices(15, 8) == (0, 2, 4, 6, 8, 10, 12, 14)
    assert even_indices(3, 8) == (0, 1, 2)


ANSWER = """<think>(1) visual quality: 2</think>
(1) Visual Quality (sharp enough): 4
(2) text-to-video alignment: 3
(3) physical/common-sense consistency - 5"""


def test_videoscore2_is_read_after_its_thought():
    assert read_axes_of_videoscore2(ANSWER) == {"visual_quality": 4, "text_alignment": 3, "physical_consistency": 5}


@pytest.mark.parametrize(
    "change",
    [
        ("(2) text-to-video alignment: 3", ""),
        (": 3", ": 0"),
        (": 3", ": 6"),
        (": 3", ": 3.5"),
        (": 3", ": 35"),
        (": 3", ": three"),
    ],
)
def test_videoscore2_answers_that_are_refused(change):
    with pytest.raises(ValueError):
        read_axes_of_videoscore2(ANSWER.replace(*change))


def test_videoscore2_as_a_reward(tmp_path):
    path = tmp_path / "question.txt"
    path.write_text("Rate: $t2v_prompt")
    answers = [ANSWER, Reply(ANSWER, truncated=True), "nothing", Reply("", error="timeout")]
    judge = VideoScore2(ScriptedVlm(answers), prompt_file=path, allow_other_prompt=True)
    scores = judge(["a $t2v_prompt"] * 4, [clip(10)] * 4)
    assert scores[0].value == 4.0
    assert not any(score.scored for score in scores[1:])
    with pytest.raises(ValueError, match="FastVideo"):
        VideoScore2(ScriptedVlm([ANSWER]), prompt_file=path)


def brightness_pairs(first_lead: float = 0.0):
    """A Think judge that prefers the brighter video, and the one shown first by ``first_lead``."""

    def script(conversation):
        frames = conversation[0].frames
        half = len(frames) // 2
        lead = float(frames.pixels[:half].mean()) - float(frames.pixels[half:].mean())
        p = 1 / (1 + math.exp(-(0.05 * lead + first_lead)))
        log_p = {"1": math.log(p), "2": math.log(1 - p)}
        return Reply(f"<think>…</think><answer>Video {1 if p >= 0.5 else 2} is better</answer>", log_p)

    return ScriptedVlm(script)


@pytest.fixture
def think_prompt(tmp_path):
    path = tmp_path / "think.txt"
    path.write_text("Compare: {prompt}")
    return path


def test_think_plays_a_tournament(think_prompt):
    judge = UnifiedPairs("unified_think", brightness_pairs(0.3), prompt_file=think_prompt, allow_other_prompt=True)
    scores = Tournament(judge)(["a {x}"] * 3, [clip(90), clip(110), clip(70)])
    assert scores[1].value > scores[0].value > scores[2].value
    assert scores[0].parts["group/position_bias"] > 0.02
    (answer,) = judge.compare(["p"], [clip(100)], [clip(110)])
    assert answer.p == pytest.approx(1 / (1 + math.exp(-(0.3 - 0.5))))


def test_pairs_that_cannot_be_shown_or_read_have_no_answer(think_prompt):
    script = ScriptedVlm(["<answer>They are equal</answer>", Reply("", error="HTTP 429")])
    judge = UnifiedPairs("unified_think", script, prompt_file=think_prompt, allow_other_prompt=True)
    answers = judge.compare(["p"] * 3, [clip(1), clip(1, size=16), clip(2)], [clip(2), clip(2, size=32), clip(3)])
    assert not any(answer.answered for answer in answers)
    copy = pickle.loads(pickle.dumps(judge))
    assert (copy.name, copy.template, copy.provenance) == (judge.name, judge.template, judge.provenance)
    assert "16×16" in str(answers[1].error) and "429" in str(answers[2].error)


def test_a_prompt_is_found_in_the_literal_of_a_python_file(tmp_path):
    source = 'prompt = ""\nproblem = f"""Judge {{this}}: [{prompt}]"""\n'
    path = tmp_path / "script.py"
    path.write_text(source)
    text = "Judge {this}: [{prompt}]"
    assert text in list(texts_in(source))
    known = UpstreamPrompt("x", "owner/name", "script.py", text_digest(text))
    assert read_upstream_prompt((known,), path)[0] == text
    for wrong in (None, tmp_path / "absent.txt"):
        with pytest.raises(ValueError, match="owner/name"):
            read_upstream_prompt((known,), wrong)
    path.write_text(source.replace("Judge", "judge"))
    with pytest.raises(ValueError, match="sha256"):
        read_upstream_prompt((known,), path)


def test_a_caption_with_slots_is_filled_literally():
    assert fill_slots("[{prompt}] {rule}", {"{prompt}": "{rule} [x]", "{rule}": "r"}) == "[{rule} [x]] r"


def test_a_judge_that_always_says_the_same_is_told_once(capsys):
    alarm = SamenessAlarm("videophy2")
    alarm.see([Score(float(n)) for n in range(3)] + [Score(4.0)] * 46)
    assert not alarm.raised
    alarm.see([Score(4.0), Score.missing("x"), Score(4.0)])
    assert alarm.raised and "48 of its last 50" in capsys.readouterr().err
    alarm.see([Score(4.0)] * 50)
    assert capsys.readouterr().err == ""
