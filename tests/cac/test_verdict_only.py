"""The verdict alone: what is asked, what is read, and that nobody can take it for the two-turn reward."""

import json
import math

import numpy as np
import pytest

from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.verdict_only import ANSWER_PREFIX, VerdictOnly, _written_status
from cac_align.core.judgement import LENGTH_UNVERIFIED
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm
from tests.support import tiny_qwen


def judge(vlm, prompts, shown, settings=VerdictOnly()):  # through the reward, as a user does
    return CaC(vlm, settings).judge(prompts, shown)


def videos(count=3):
    rng = np.random.default_rng(0)
    return [Video.open(rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8), fps=16.0) for _ in range(count)]


def test_the_readout_form_writes_nothing_and_reads_one_distribution():
    vlm = ScriptedVlm(lambda conversation: "abnormal", confidence=0.8)
    (judgement,) = judge(vlm, ["a ball"], videos(1))
    (asked,) = vlm.asked
    assert [message.role for message in asked] == ["user", "assistant"] and asked[-1].text == ANSWER_PREFIX
    assert "a ball" in asked[0].text and asked[0].frames.indices == (0, 4, 8)
    assert judgement.status == "abnormal" and judgement.reward == pytest.approx(0.2) and judgement.anomalies == ()
    assert judgement.turns[0].text == ANSWER_PREFIX and judgement.turns[0].number == 1


def test_the_json_form_reads_what_was_written_and_refuses_anything_else():
    said = iter(['{"COT": "", "status": "normal"}', "normal", '{"status": "fine"}'])
    vlm = ScriptedVlm(lambda conversation: Reply(next(said), {"normal": math.log(0.6), "abnormal": math.log(0.2)}))
    good, bare, other = judge(vlm, ["a"] * 3, videos(), VerdictOnly(form="json"))
    assert good.status == "normal" and good.reward == pytest.approx(0.75)
    assert "not the JSON that was asked for: 'normal'" in bare.error and math.isnan(bare.reward) and other.error


@pytest.mark.parametrize("form", ["readout", "json"])
def test_a_real_model_gives_a_verdict_per_video_in_either_form(form):
    vlm = LocalVlm(tiny_qwen.model(seed=4), tiny_qwen.processor(), name="x", batch_size=2)
    shown = videos()
    together = judge(vlm, ["a"] * 3, shown, VerdictOnly(form=form, wording="brief"))
    for judgement, video in zip(together, shown, strict=True):
        (alone,) = judge(vlm, ["a"], [video], VerdictOnly(form=form, wording="brief"))
        assert judgement.error is None and judgement.status == alone.status
        assert judgement.reward == pytest.approx(alone.reward, abs=1e-4)
        if form == "json":
            assert json.loads(judgement.turns[0].text) == {"COT": "", "status": judgement.status}


def test_it_is_another_reward_by_name_and_provenance():
    vlm = ScriptedVlm(lambda conversation: "normal")
    full, short, written = (CaC(vlm, settings) for settings in (TwoTurn(), VerdictOnly(), VerdictOnly(form="json")))
    assert (full.name, short.name) == ("cac", "cac_verdict_only") and CaC(
        vlm, VerdictOnly(), name="mine"
    ).name == "mine"
    assert short.provenance["reward"] == "cac verdict only" and "no chain of thought" in short.provenance["mode"]
    assert len({json.dumps(dict(reward.provenance)) for reward in (full, short, written)}) == 3
    (score,) = short(["a"], videos(1))
    assert score.value == pytest.approx(0.9) and score.provenance["form"] == "readout"


def test_failures_are_reasons_and_unknown_forms_are_refused():
    (judgement,) = judge(ScriptedVlm([Reply("", error="server gone")]), ["a"], videos(1))
    assert judgement.error == "verdict: server gone"
    (judgement,) = judge(ScriptedVlm([Reply("normal")]), ["a"], videos(1))
    assert "no probabilities" in judgement.error
    with pytest.raises(ValueError, match="form must be 'readout' or 'json', received 'words'"):
        VerdictOnly(form="words")


def test_the_evidence_says_that_a_videos_length_is_unverified(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.ts"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    vlm = ScriptedVlm(lambda conversation: "normal")
    for tta in (("as_is",), ("as_is", "mirrored")):
        (score,) = CaC(vlm, VerdictOnly(), tta=tta)(["a"], [Video.open(tmp_path / "clip.ts")])
        assert score.scored and score.evidence.warnings == (LENGTH_UNVERIFIED,)
    (score,) = CaC(vlm, VerdictOnly())(["a"], videos(1))
    assert score.evidence.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        '{"COT": "", "status": "abnormal", "status": "normal"}',
        '{"COT": NaN, "status": "normal"}',
        '{"COT": Infinity, "status": "normal"}',
        '{"COT": "", "status": ["normal"]}',
        "[" * 100_000,
    ],
)
def test_the_written_verdict_is_read_strictly(text):
    assert _written_status(text) is None
    assert _written_status('{"COT": "", "status": "normal"}') == "normal"
