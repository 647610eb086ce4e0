"""The per-type scan: one pass of turn 1 per type, one look per window of their union."""

import math

import pytest

from cac_align.cac.per_type import joined_suspicions, union_by_iou
from cac_align.cac.prompts import wording_text
from cac_align.cac.two_turn import TwoTurn
from cac_align.core.judgement import ANOMALY_TYPES, Anomaly, Turn, Window
from cac_align.vlm.protocol import Reply
from tests.cac.test_two_turn import anomaly, answer, ask

PER_TYPE = TwoTurn(scan="per_type")
NORMAL = answer("normal")


def test_each_type_is_asked_for_and_five_normals_end_there():
    answers = [(NORMAL, 0.9, 0.1), (NORMAL, 0.6, 0.3), *[(NORMAL, 0.8, 0.1)] * 3]
    (judgement,), script = ask(*answers, settings=PER_TYPE)
    asked = [conversation[-1].text for conversation in script.asked]
    assert len(asked) == 5
    for kind, text in zip(ANOMALY_TYPES, asked, strict=True):
        assert f"one kind of defect only: {kind}." in text
    assert judgement.status == "normal" and len(judgement.turns) == 5
    assert judgement.reward == pytest.approx(0.6 / 0.9)  # the least certain scan decides


def test_windows_that_overlap_are_one_look_and_distant_ones_are_two():
    # Frames 4-8 and 5-8 of 4 fps are 1-2 s and 1.25-2 s (IoU 0.75); 16-18 are 4-4.5 s.
    answers = [
        answer("abnormal", anomaly("Frame 4-8", "Object Distortion"), thought="it melts"),
        NORMAL,
        answer("abnormal", anomaly("Frame 5-8", "Motion Anomalies"), thought="it jumps"),
        answer("abnormal", anomaly("Frame 16-18", "Physical Violations"), thought="it floats"),
        NORMAL,
        (NORMAL, 0.7, 0.3),
        (answer("abnormal", anomaly(label="Physical Violations", boxes={"Frame 0": [1, 2, 3, 4]})), 0.2, 0.6),
    ]
    (judgement,), script = ask(*answers, settings=PER_TYPE)
    first, second = script.asked[5:]
    assert first[-1].frames.indices == tuple(range(16, 33, 2)) and second[-1].frames.indices == (64, 66, 68, 70, 72)
    assert "it melts" in first[-1].text and "it jumps" in first[-1].text and "it floats" not in first[-1].text
    assert "it floats" in second[-1].text
    assert judgement.status == "abnormal" and judgement.reward == pytest.approx(0.25)  # the worst look decides
    assert [found.type for found in judgement.anomalies] == ["Physical Violations"]
    assert [turn.number for turn in judgement.turns] == [1, 1, 1, 1, 1, 2, 2]


def test_one_scan_without_an_answer_leaves_no_verdict():
    (judgement,), script = ask(NORMAL, NORMAL, Reply("", error="the server is gone"), NORMAL, NORMAL, settings=PER_TYPE)
    assert judgement.status is None and "turn 1: the server is gone" in judgement.error and len(script.asked) == 5
    assert math.isnan(judgement.reward)


def test_the_union_of_windows_by_hand():
    a, b, c, d = Window(0, 1), Window(0.25, 1), Window(0.9, 2), Window(3, 3)
    assert union_by_iou([c, a, d, b]) == [Window(0, 1), c, d]  # a and b overlap by 0.75, c hardly
    assert union_by_iou([d, d]) == [d] and union_by_iou([]) == []
    # A chain: each overlaps its neighbour by 0.6; the first two become [0, 1.25], which [0.5, 1.5] covers by 0.5.
    chain = [Window(0, 1), Window(0.25, 1.25), Window(0.5, 1.5)]
    assert union_by_iou(chain) == [Window(0, 1.5)]
    assert union_by_iou(chain, limit=0.7) == chain


def test_every_suspicion_reaches_a_look():
    def turn(*windows):
        return Turn(1, "", (0,), "abnormal", tuple(Anomaly("Object Distortion", window) for window in windows))

    turns = [turn(Window(0, 1), Window(2, 3)), turn(Window(0.25, 1.25)), turn(Window(0.5, 1.5)), turn(Window(1.2, 2.2))]
    found = joined_suspicions(turns)
    told = {anomaly.window for _, about in found for anomaly in about.anomalies}
    assert told == {anomaly.window for each in turns for anomaly in each.anomalies}
    for window, about in found:
        assert all(window.start_s <= one.window.start_s and one.window.end_s <= window.end_s for one in about.anomalies)


def test_the_setting_is_part_of_the_provenance_only_where_it_is_used():
    assert "scan" not in TwoTurn().provenance()
    changed = PER_TYPE.provenance()
    assert changed["scan"] == "per_type" and changed["prompt_sha256"] != TwoTurn().provenance()["prompt_sha256"]
    with pytest.raises(ValueError, match="scan must be 'whole' or 'per_type', received 'each'"):
        TwoTurn(scan="each")
    with pytest.raises(ValueError, match="no one chat to continue"):
        TwoTurn(scan="per_type", context="continued")


def test_a_folder_of_ones_own_may_word_the_line_itself(tmp_path):
    for name in ("turn_one", "turn_two"):
        (tmp_path / f"{name}.md").write_text("Is {prompt} broken?")
    own = TwoTurn(scan="per_type", wording=str(tmp_path))
    before = own.provenance()["prompt_sha256"]
    _, script = ask(*[NORMAL] * 5, settings=own)
    assert "one kind of defect only: Human Distortion" in script.asked[1][-1].text
    (tmp_path / "per_type.md").write_text("Nothing but {type}:")
    wording_text.cache_clear()
    _, script = ask(*[NORMAL] * 5, settings=own)
    assert script.asked[1][-1].text.startswith("Nothing but Human Distortion:\nIs a red ball")
    assert own.provenance()["prompt_sha256"] != before
