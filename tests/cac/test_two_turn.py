"""Two-turn judging: every decision of the method, asked of a scripted judge that records what it was shown."""

import json
import math

import numpy as np
import pytest

from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.two_turn import TwoTurn, judge, merge_windows
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.judgement import Judgement, Window
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.vlm.protocol import Reply

PROMPT = "a red ball rolls to the right"


def video(num_frames=81, fps=16.0):
    pixels = np.zeros((num_frames, 32, 32, 3), np.uint8)
    pixels[..., 0] = np.arange(num_frames)[:, None, None] % 256
    return Video.open(pixels, fps=fps)


def answer(status, *anomalies, thought="Step 1: looked."):
    return json.dumps({"COT": thought, "status": status, "anomalies": list(anomalies)})


def anomaly(region=None, label="Object Distortion", boxes=None):
    item = {"Attributed Label": label, "Reason for Anomaly": "the ball melts", "Problem Region": "centre"}
    if region:
        item["Attributed Time Region"] = region
    if boxes:
        item["BBOX"] = boxes
    return item


class Script:
    """Answers in the order given (text, or text with P(normal) and P(abnormal)); remembers every conversation."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    @property
    def provenance(self):
        return {"model": "script"}

    def answer(self, conversations, *, max_new_tokens, schema=None, readout=None):
        replies = []
        for conversation in conversations:
            self.asked.append(conversation)
            given = self.answers.pop(0)
            if isinstance(given, Reply):
                replies.append(given)
                continue
            text, normal, abnormal = (
                given
                if isinstance(given, tuple)
                else (given, *((0.9, 0.1) if '"status": "normal"' in given else (0.1, 0.9)))
            )
            replies.append(Reply(text, {"normal": math.log(normal), "abnormal": math.log(abnormal)}))
        return replies


def ask(*answers, settings=TwoTurn(), videos=None):
    script = Script(*answers)
    videos = videos or [video()]
    return judge(script, [PROMPT] * len(videos), videos, settings), script


def test_normal_in_turn_one_ends_there_and_reads_turn_one():
    (judgement,), script = ask((answer("normal"), 0.6, 0.2))
    assert judgement.status == "normal" and len(judgement.turns) == 1 and len(script.asked) == 1
    assert judgement.reward == pytest.approx(0.75)  # 0.6 / (0.6 + 0.2)
    assert judgement.mass == pytest.approx(0.8)


def test_turn_two_sees_the_8_fps_clip_of_the_window_and_decides():
    boxes = {"Frame 0": [10, 20, 30, 40], "Frame 2": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    (judgement,), script = ask(
        answer("abnormal", anomaly("Frame 4-6")), (answer("abnormal", anomaly(boxes=boxes)), 0.05, 0.9)
    )
    scan, look = script.asked
    assert scan[-1].frames.indices == tuple(range(0, 81, 4))  # 81 frames at 16 fps are 21 at 4 fps
    # frames 4-6 of the scan are source frames 16-24 (1.0-1.5 s); at 8 fps: 16, 18, 20, 22, 24
    assert look[-1].frames.indices == (16, 18, 20, 22, 24)
    assert len(look) == 1 and "the ball melts" in look[-1].text  # fresh context, with what turn 1 wrote
    assert judgement.status == "abnormal"
    assert judgement.reward == pytest.approx(0.05 / 0.95)
    found = judgement.anomalies[0]
    assert set(found.boxes) == {16, 20} and len(found.boxes[20]) == 2
    assert found.window == Window(1.0, 1.5)


def test_a_margin_shows_turn_two_what_came_before_and_after():
    # frames 4-6 of the scan are 1.0-1.5 s; with 0.25 s more on either side the clip runs from 0.75 to 1.75 s: source frames 12 to 28.
    _, look = ask(answer("abnormal", anomaly("Frame 4-6")), answer("normal"), settings=TwoTurn(margin_s=0.25))[1].asked
    assert look[-1].frames.indices == tuple(range(12, 29, 2))
    # at the video's ends there is nothing more to show: 81 frames at 16 fps end at 5.0 s
    for frames, indices in (("Frame 0-1", range(0, 13, 2)), ("Frame 19-20", range(68, 81, 2))):
        looks = ask(answer("abnormal", anomaly(frames)), answer("normal"), settings=TwoTurn(margin_s=0.5))[1].asked
        assert looks[1][-1].frames.indices == tuple(indices)
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match="margin_s must be seconds, 0 or more"):
            TwoTurn(margin_s=wrong)
    for made in (TwoTurn, SingleTurn, VerdictOnly):
        for wrong in (0.0, -4.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="scan_fps must be a positive number of frames per second"):
                made(scan_fps=wrong)
    with pytest.raises(ValueError, match="look_fps must be a positive number of frames per second, received 0"):
        TwoTurn(look_fps=0)
    assert "margin_s" not in TwoTurn().provenance() and TwoTurn(margin_s=0.25).provenance()["margin_s"] == "0.25"


@pytest.mark.parametrize(
    "named", ['["six fingers"]', '[{"a": 1}]', '{"a": 1}', '[{"Attributed Label": "human distortion"}]']
)
def test_an_answer_that_says_normal_and_names_something_unreadable_is_no_verdict(named):
    """It contradicts itself as one does whose anomaly can be read: asked again, and then without a verdict."""
    torn = '{"COT": "six fingers", "status": "normal", "anomalies": %s}' % named  # noqa: UP031
    (judgement,), script = ask((torn, 0.9, 0.1), (torn, 0.9, 0.1))
    assert (
        judgement.status is None
        and "no usable status (anomalies: must be empty when status is normal" in judgement.error
    )
    assert len(script.asked) == 2
    for nothing in ("[]", "null", '"none"', "{}"):
        (judgement,), _ = ask(('{"COT": "x", "status": "normal", "anomalies": %s}' % nothing, 0.9, 0.1))  # noqa: UP031
        assert judgement.status == "normal"


def test_half_a_surrogate_pair_in_an_answer_can_be_sent_on():
    (judgement,), _ = ask(('{"COT": "a fast ball \\ud83d ok", "status": "normal", "anomalies": []}', 0.9, 0.1))
    assert (
        judgement.turns[0].chain_of_thought == "a fast ball ? ok"
        and json.dumps(judgement.to_json(), ensure_ascii=False).encode()
    )


def test_turn_two_not_confirming_means_normal_and_reads_turn_two():
    (judgement,), _ = ask((answer("abnormal", anomaly("Frame 4-6")), 0.1, 0.9), (answer("normal"), 0.7, 0.1))
    assert judgement.status == "normal" and judgement.anomalies == () and len(judgement.turns) == 2
    assert judgement.reward == pytest.approx(0.875)


def test_continued_context_keeps_the_whole_video_in_view():
    _, script = ask(
        answer("abnormal", anomaly("Frame 4-6")),
        answer("normal"),
        settings=TwoTurn(context="continued"),
    )
    look = script.asked[1]
    assert [message.role for message in look] == ["user", "assistant", "user"]
    assert len(look[0].frames) == 21 and len(look[2].frames) == 5


def test_hull_covers_all_windows_and_each_asks_per_disjoint_window_with_the_worst_deciding():
    first = answer("abnormal", anomaly("Frame 1-2"), anomaly("Frame 2-3"), anomaly("Frame 10-12"))
    _, script = ask(first, answer("normal"))
    assert script.asked[1][-1].frames.indices[0] == 4 and script.asked[1][-1].frames.indices[-1] == 48
    (judgement,), script = ask(
        first,
        (answer("normal"), 0.9, 0.1),
        (answer("abnormal", anomaly(boxes={"Frame 0": [1, 2, 3, 4]})), 0.2, 0.6),
        settings=TwoTurn(windows="each"),
    )
    assert [c[-1].frames.indices[0] for c in script.asked[1:]] == [4, 40]
    assert judgement.status == "abnormal" and judgement.reward == pytest.approx(0.25)


def test_disjoint_merges_touching_windows():
    assert merge_windows([Window(2, 3), Window(0, 1), Window(1, 1.5)]) == [Window(0, 1.5), Window(2, 3)]


@pytest.mark.parametrize(
    "bad, fault",
    [
        (answer("abnormal", anomaly("Frame 6-4")), "inverted: 6-4"),
        (answer("abnormal", anomaly("Frame 4-99")), "outside the video"),
        (answer("abnormal", anomaly("somewhere")), "expected 'Frame a-b'"),
        (answer("abnormal"), "at least one anomaly"),
        ("I think it is fine.", "no JSON object"),
        (answer("normal", anomaly("Frame 1-2")), "must be empty"),
    ],
)
def test_an_unusable_answer_is_asked_again_once_with_its_fault_quoted_then_there_is_no_score(bad, fault):
    (judgement,), script = ask(bad, answer("normal"))
    assert judgement.status == "normal" and len(judgement.turns) == 2
    retry = script.asked[1]
    assert [message.role for message in retry] == ["user", "assistant", "user"]
    assert fault in retry[-1].text and retry[1].text == bad
    (judgement,), script = ask(bad, bad)
    assert judgement.status is None and math.isnan(judgement.reward) and fault in judgement.error
    assert len(script.asked) == 2 and len(judgement.turns) == 2


def test_turn_two_without_a_readable_status_is_no_verdict_not_normal():
    (judgement,), _ = ask(answer("abnormal", anomaly("Frame 4-6")), "hm", "hm")
    assert judgement.status is None and judgement.error.startswith("turn 2") and len(judgement.turns) == 3


def test_backend_failures_and_missing_probabilities_are_reasons_never_numbers():
    (judgement,), _ = ask(Reply("", error="server gone"))
    assert math.isnan(judgement.reward) and "server gone" in judgement.error
    (judgement,), _ = ask(Reply(answer("normal")))
    assert math.isnan(judgement.reward) and "no probabilities" in judgement.error


def test_one_bad_video_of_a_batch_leaves_the_others_alone(tmp_path):
    path = tmp_path / "short.mp4"
    from cac_align.core.encoding import write_mp4

    write_mp4(path, np.zeros((20, 32, 32, 3), np.uint8), fps=16)
    broken = Video.open(path)
    path.write_bytes(path.read_bytes()[:400])  # the file is cut short after it was opened
    good = video()
    judgements, _ = ask(answer("normal"), videos=[broken, good])
    assert judgements[0].error.startswith("video:") and judgements[1].status == "normal"


def test_sub_second_and_one_frame_videos_are_ordinary():
    for frames in (1, 2, 9):
        (judgement,), script = ask(answer("abnormal", anomaly("Frame 0-0")), answer("normal"), videos=[video(frames)])
        assert judgement.status == "normal"
        assert len(script.asked[1][-1].frames) == min(frames, 2)


def test_a_prompt_with_braces_quotes_and_markup_reaches_the_judge_unchanged():
    hostile = 'a {turn_one} "quoted" <b>{frame_list}</b> {0} %s'
    script = Script(answer("abnormal", anomaly("Frame 4-6")), answer("normal"))
    judge(script, [hostile], [video()])
    assert all(hostile in conversation[-1].text for conversation in script.asked)


def test_judgements_round_trip_through_json():
    (judgement,), _ = ask(
        answer("abnormal", anomaly("Frame 4-6")), answer("abnormal", anomaly(boxes={"Frame 1": [0, 0, 1000, 1000]}))
    )
    assert Judgement.from_json(json.loads(json.dumps(judgement.to_json()))) == judgement


def test_prompt_and_video_counts_must_agree():
    with pytest.raises(ValueError, match="1 prompts and 2 videos"):
        judge(Script(), [PROMPT], [video(), video()])


def test_cac_is_a_reward_with_evidence_and_provenance():
    reward = CaC(Script((answer("normal"), 0.6, 0.2), (answer("normal"), 1e-6, 1e-6)))
    good, low = reward([PROMPT, PROMPT], [video(), video()])
    assert good.value == pytest.approx(0.75) and good.evidence.status == "normal"
    assert (
        good.provenance["scan_fps"] == "4.0"
        and good.provenance["vlm/model"] == "script"
        and good.provenance["prompt_sha256"]
    )
    assert not low.scored and "2e-06" in low.error  # the two words hold almost no probability: no number


def test_a_temperature_brings_back_what_certainty_ties():
    # P(abnormal) 1e-8 and 1e-12: log-odds 18.42 and 27.63; at T = 10 these are 1.842 and 2.763, so R = 0.8632 and 0.9407.
    said = [(answer("normal"), 1 - 1e-8, 1e-8), (answer("normal"), 1 - 1e-12, 1e-12)]
    plain = CaC(Script(*said))([PROMPT, PROMPT], [video(), video()])
    tempered = CaC(Script(*said), temperature=10.0)([PROMPT, PROMPT], [video(), video()])
    assert [round(score.value, 6) for score in plain] == [1.0, 1.0]
    assert [score.value for score in tempered] == pytest.approx([0.8632, 0.9407], abs=1e-4)
    assert [score.evidence for score in tempered] == [score.evidence for score in plain]
    assert tempered[0].provenance["temperature"] == "10.0" and "temperature" not in plain[0].provenance
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be a positive number"):
            CaC(Script(), temperature=wrong)
    for wrong in (2.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="min_mass is a share of the probability, 0 to 1, received"):
            CaC(Script(), min_mass=wrong)


def test_a_judges_folder_brings_its_temperature(tmp_path):
    from cac_align.core.weights import shipped
    from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward

    fitted = CaC.miniature().temperature
    assert fitted == json.loads((shipped("cac") / "cac_align.json").read_text())["temperature"] != 1
    assert (
        load_reward(RewardRecipe(components={"cac": JudgeRecipe(temperature=1.0)})).provenance.get("temperature")
        is None
    )
    assert load_reward(RewardRecipe(components={"cac": JudgeRecipe()})).provenance["temperature"] == repr(fitted)
    assert (
        load_reward(RewardRecipe(components={"cac": JudgeRecipe(mode="readout")})).provenance.get("temperature") is None
    )


def test_changing_any_setting_changes_the_provenance():
    base = CaC(Script()).provenance
    for change in (
        TwoTurn(wording="brief"),
        TwoTurn(windows="each"),
        TwoTurn(look_fps=4.0),
        TwoTurn(constrained=True),
        TwoTurn(margin_s=0.25),
    ):
        assert CaC(Script(), change).provenance != base


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="context must be 'fresh' or 'continued', received 'chat'"):
        TwoTurn(context="chat")
    with pytest.raises(ValueError, match="wording 'long' has no"):
        ask(answer("normal"), settings=TwoTurn(wording="long"))
