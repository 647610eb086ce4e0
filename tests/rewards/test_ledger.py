"""The ledger: nothing scored twice, nothing lost, nothing false served, whoever dies while writing."""

import json
import math
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.plugins.common.evidence import read_evidence
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger, score_key
from cac_align.rewards.reward import Reward, Score
from tests.support.counting import JUDGEMENT, Counting, video


def same(one, other):
    return [score.to_json() for score in one] == [score.to_json() for score in other]


def test_what_was_scored_is_not_scored_again(tmp_path):
    reward = Counting()
    wrapped = cached(reward, Ledger(tmp_path / "ledger.jsonl"))
    first = wrapped(["p", "p"], [video(1), video(2)])
    again = wrapped(["p", "p", "p"], [video(2, "another name"), video(3), video(1)])
    assert reward.asked == [("p", 1), ("p", 2), ("p", 3)]
    assert same([again[2], again[0]], first)
    assert again[0].evidence == JUDGEMENT and math.isnan(again[0].parts["share"])

    fresh = Counting()
    reopened = Ledger(tmp_path / "ledger.jsonl")
    assert same(cached(fresh, reopened)(["p"] * 3, [video(1), video(2), video(3)]), [first[0], first[1], again[1]])
    assert fresh.asked == [] and reopened.num_scores == 3 and reopened.faults == []


def test_key_is_content_prompt_and_provenance(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    reward = Counting()
    cached(reward, ledger)(["p"], [video(1)])
    cached(reward, ledger)(["q"], [video(1)])
    cached(reward, ledger)(["p"], [video(1).with_fps(8)])  # another clock is another video
    assert len(reward.asked) == 3
    other = Counting(version="2")
    cached(other, ledger)(["p"], [video(1)])
    assert len(other.asked) == 1
    assert (
        len({score_key("p", video(1), provenance) for provenance in ({"a": "b"}, {"a": "c"}, {"a": "b", "c": "d"})})
        == 3
    )
    assert score_key("p", video(1), {"a": "1", "b": "2"}) == score_key("p", video(1), {"b": "2", "a": "1"})


def test_equal_videos_in_one_call_are_scored_once(tmp_path):
    reward = Counting()
    scores = cached(reward, Ledger(tmp_path / "ledger.jsonl"))(["p"] * 3, [video(5), video(6), video(5)])
    assert [score.value for score in scores] == [0.05, 0.06, 0.05] and reward.asked == [("p", 5), ("p", 6)]


def test_missing_scores_are_kept_for_audit_and_tried_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    reward = Counting()
    for _ in range(2):
        (score,) = cached(reward, Ledger(path))(["p"], [video(255)])
        assert score.error == "white"
    assert len(reward.asked) == 2
    rows = list(Ledger(path).rows())
    assert [(row["kind"], row["score"], row["error"]) for row in rows] == [("missing", None, "white")] * 2


def test_a_row_holds_what_an_auditor_needs(tmp_path):
    path = tmp_path / "ledger.jsonl"
    cached(Counting(), Ledger(path))(["p {} <b>"], [video(7, "clip.mp4")])
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(row)[:2] == ["key", "kind"]
    assert row["key"] == score_key("p {} <b>", video(7), {"reward": "counting", "version": "1"})
    expected = {
        "kind": "score",
        "prompt": "p {} <b>",
        "video": "clip.mp4",
        "reward": "counting",
        "score": 0.07,
        "extra": {},
    }
    assert expected.items() <= row.items()
    assert row["video_hash"] == video(7).content_hash
    assert row["judgement"]["anomalies"][0]["type"] == "Motion Anomalies" and row["provenance"]["version"] == "1"
    assert row["time"].startswith("20")


def test_a_batch_that_dies_keeps_the_batches_before_it(tmp_path):
    class Dies(Counting):
        def __call__(self, prompts, videos):
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(prompts, videos)

    path = tmp_path / "ledger.jsonl"
    with pytest.raises(KeyboardInterrupt):
        cached(Dies(), Ledger(path))(["p"] * 40, [video(n) for n in range(40)])
    done = Ledger(path).num_scores
    reward = Counting()
    scores = cached(reward, Ledger(path))(["p"] * 40, [video(n) for n in range(40)])
    assert done > 0 and len(reward.asked) == 40 - done
    assert [score.value for score in scores] == [n / 100 for n in range(40)]


def test_wrapped_rewards_keep_their_contract(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for reward in (Counting(), combine({"a": Counting("a"), "b": Counting("b")})):
        wrapped = cached(reward, ledger)
        assert isinstance(wrapped, Reward)
        assert (wrapped.name, wrapped.provenance, wrapped.bounds) == (reward.name, reward.provenance, reward.bounds)
        clone = pickle.loads(pickle.dumps(wrapped))
        assert same(clone(["p"], [video(1)]), wrapped(["p"], [video(1)]))
        with pytest.raises(ValueError, match="2 prompts and 1 videos"):
            wrapped(["p", "q"], [video(1)])


# ---- combinations -------------------------------------------------------------------------------------------------


def test_group_normalised_values_are_never_served(tmp_path):
    path = tmp_path / "ledger.jsonl"
    a, b = Counting("a"), Counting("b")
    reward = cached(combine({"a": a, "b": b}, normalise="group"), Ledger(path))
    first = reward(["p"] * 2, [video(1), video(2)])
    second = reward(["p"] * 2, [video(2), video(3)])
    assert [score.value for score in first + second] == [
        -1,
        1,
        -1,
        1,
    ]  # video 2 is best of one pair and worst of the other
    assert len(a.asked) == len(b.asked) == 3
    kinds = [row["kind"] for row in Ledger(path).rows()]
    assert kinds.count("score") == 6 and kinds.count("combined") == 4


def test_a_resumed_combination_adds_no_rows(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for _ in range(3):
        reward = cached(combine({"a": Counting("a"), "b": Counting("b")}), Ledger(path))
        scores = reward(["p"] * 2, [video(1), video(255)])
    kinds = [row["kind"] for row in Ledger(path).rows()]
    assert kinds.count("score") == 2 and kinds.count("combined") == 2
    assert kinds.count("missing") == 6  # two components, tried three times
    assert Ledger(path).combined(score_key("p", video(1), reward.provenance)).value == scores[0].value == 0.001


def test_annotations_come_back_in_order(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    cached(Counting(), ledger)(["p"], [video(1)])
    key = score_key("p", video(1), Counting().provenance)
    ledger.annotate(key, step=3, advantage=np.float32(0.5))
    Ledger(path).annotate(key, host="flow-factory")
    assert ledger.extra(key) == [{"step": 3, "advantage": 0.5}, {"host": "flow-factory"}]
    assert Ledger(path).extra(key) == ledger.extra(key) and ledger.extra("0" * 64) == []
    assert [row["kind"] for row in ledger.rows()] == ["score", "extra", "extra"]
    with pytest.raises(ValueError, match="64 hexadecimal digits, received 'abc'"):
        ledger.annotate("abc", step=1)


# ---- damage -------------------------------------------------------------------------------------------------------


def filled(path, count=3):
    """A ledger whose rows come from one call each."""
    reward = cached(Counting(), Ledger(path))
    for n in range(count):
        reward(["p"], [video(n)])
    return path.read_bytes()


@pytest.mark.parametrize("keep", [1, 40, 90, 400, -2])
def test_a_torn_last_line_is_moved_aside(tmp_path, keep):
    path = tmp_path / "ledger.jsonl"
    whole = filled(path)
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[:last] + whole[last:][:keep])
    with pytest.warns(UserWarning, match="last line was torn"):
        ledger = Ledger(path)
    assert ledger.num_scores == 2 and len(ledger.faults) == 1
    assert path.read_bytes() == whole[:last]
    assert (tmp_path / "ledger.jsonl.torn").read_bytes() == whole[last:][:keep] + b"\n"
    reward = Counting()
    cached(reward, ledger)(["p"] * 3, [video(n) for n in range(3)])
    assert reward.asked == [("p", 2)]
    assert Ledger(path).faults == []


def test_a_line_that_lost_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "ledger.jsonl"
    whole = filled(path)
    path.write_bytes(whole[:-1])
    assert Ledger(path).num_scores == 3 and path.read_bytes() == whole


def test_another_writers_torn_line_is_repaired_before_we_append(tmp_path):
    path = tmp_path / "ledger.jsonl"
    filled(path)
    ledger = Ledger(path)
    with open(path, "ab") as file:
        file.write(b'{"key": "dead')
    with pytest.warns(UserWarning, match="torn"):
        cached(Counting(), ledger)(["p"], [video(9)])
    assert Ledger(path).num_scores == 4 and Ledger(path).faults == []


def test_damage_in_the_middle_is_named_and_skipped(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = filled(path, 5).splitlines(keepends=True)
    lines[1] = b"\x00" * 50 + b"\n"
    lines[2] = lines[2][:200] + b"\n"
    lines[3] = lines[3].replace(b'"parts"', b'parts"')  # only seen when it is read
    path.write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match="damaged"):
        ledger = Ledger(path)
    assert len(ledger.faults) == 2 and "(line 2) is damaged" in ledger.faults[0] and "(line 3)" in ledger.faults[1]
    reward = Counting()
    with pytest.warns(UserWarning, match="cannot be read"):
        scores = cached(reward, ledger)(["p"] * 5, [video(n) for n in range(5)])
        rows = list(ledger.rows())
    assert reward.asked == [("p", 1), ("p", 2), ("p", 3)]
    assert [score.value for score in scores] == [0, 0.01, 0.02, 0.03, 0.04]
    assert len(ledger.faults) == 3 and len(rows) == 5


@pytest.mark.parametrize(
    "changed",
    [{"score": "0.5"}, {"score": True}, {"score": 10**400}, {"score": [1]}, {"score": None}, {"parts": 3}]
    + [{"parts": {"a": "x"}}, {"parts": [[]]}, {"judgement": 3}, {"judgement": {"status": "normal"}}]
    + [{"judgement": {"status": "normal", "turns": [[]], "anomalies": "\ud800"}}, {"provenance": "0.5"}]
    + [{"provenance": 3}, {"error": "both"}, {"extra": 3}, {"prompt": None}, {"video": 5}, {"reward": {}}],
    ids=repr,
)
def test_a_row_that_is_json_but_no_score_counts_as_none(tmp_path, changed):
    path = tmp_path / "ledger.jsonl"
    lines = filled(path, 3).splitlines(keepends=True)
    lines[1] = json.dumps({**json.loads(lines[1]), **changed}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    reward, ledger = Counting(), Ledger(path)
    with pytest.warns(UserWarning, match="cannot be read"):
        scores = cached(reward, ledger)(["p"] * 3, [video(n) for n in range(3)])
    assert reward.asked == [("p", 1)] and [score.value for score in scores] == [0, 0.01, 0.02]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(ledger.faults) == 1 and len(list(Ledger(path).rows())) == 3
        assert len(read_evidence(path)) == 3


def test_any_torn_length_can_be_opened_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    whole = filled(path, 2)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert Ledger(path).num_scores == whole[:length].count(b"\n")


def test_what_cannot_be_a_ledger_says_so(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened as a ledger"):
        Ledger(tmp_path)


FULL = """
import resource, sys
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger
from tests.support.counting import Counting, video
wrapped = cached(Counting(), Ledger(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # the fourth row ends at about 3,800 bytes
for number in range(4):
    try:
        wrapped(["p"], [video(number)])
    except OSError as error:
        print(number, error)
"""


def test_a_full_disk_is_said_and_leaves_a_sound_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], cwd=root, capture_output=True, text=True, check=True)
    assert "No space left on device" in done.stdout and str(path) in done.stdout
    ledger = Ledger(path)
    assert ledger.faults == [] and ledger.num_scores == 4 - len(done.stdout.splitlines()) > 0
    assert path.read_bytes().endswith(b"}\n")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        cached(Counting(), Ledger("/dev/full"))(["p"], [video(1)])


def test_a_video_that_vanished_is_the_rewards_to_report(tmp_path):
    class Gone(Video):
        @property
        def content_hash(self):
            raise ValueError("gone.mp4: cannot be read: No such file or directory")

        def frames(self, indices, *, fps=None):
            raise ValueError("gone.mp4: cannot be read: No such file or directory")

    class Careful(Counting):
        def __call__(self, prompts, videos):
            scores = []
            for prompt, each in zip(prompts, videos, strict=True):
                try:
                    scores += super().__call__([prompt], [each])
                except ValueError as error:
                    scores.append(Score.missing(str(error)))
            return scores

    good = video(1)
    gone = Gone(good.fps, good.times_s, good.height, good.width, "gone.mp4", good._source)
    path = tmp_path / "ledger.jsonl"
    scores = cached(Careful(), Ledger(path))(["p", "p"], [gone, good])
    assert "cannot be read" in scores[0].error and scores[1].value == 0.01
    assert [(row["kind"], row["video_hash"] is None) for row in Ledger(path).rows()] == [
        ("missing", True),
        ("score", False),
    ]


def test_a_score_of_another_checkpoint_than_the_key_names_is_not_filed(tmp_path):
    """The server's checkpoint changes between two batches of one call."""

    class Served(Counting):
        @property
        def provenance(self):
            return {"reward": self.name, "vlm/served": "one" if len(self.asked) < 2 else "two"}

    ledger = Ledger(tmp_path / "ledger.jsonl")
    remembered = replace(cached(Served(), ledger), videos_at_once=1)
    first, second = remembered(["p", "p"], [video(1), video(2)])
    assert first.scored and first.provenance["vlm/served"] == "one"
    assert not second.scored and "checkpoint changed since this call began" in second.error
    assert (
        ledger.num_scores == 1
        and ledger.find(score_key("p", video(2), {"reward": "counting", "vlm/served": "one"})) is None
    )


@pytest.mark.parametrize(
    "content",
    [
        b"a red ball",
        b"one\ntwo",
        b"\x00\x00\x00\x20ftypisom\nmoov and a last line",
        b'{"key": "1", "record": "x"}\n',
        b"{}",
    ],
)
@pytest.mark.parametrize("write", [True, False])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path, content, write):
    """A torn last row is moved aside; the last line of somebody's video or prompts is not."""
    file = tmp_path / "mine"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="mine is not a ledger: none of its lines is a ledger row; give another file"):
        Ledger(file, write)
    assert file.read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_reading_alone_makes_and_mends_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError, match="cannot be opened as a ledger: No such file or directory$"):
        Ledger(path, write=False)
    assert not path.exists()
    Ledger(path).annotate("0" * 64, step=1)
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    before = path.read_bytes()
    path.chmod(0o444)
    ledger = pickle.loads(pickle.dumps(Ledger(path, write=False)))
    assert [row["extra"] for row in ledger.rows()] == [{"step": 1}] and path.read_bytes() == before
    torn = tmp_path / "first.jsonl"
    torn.write_bytes(b'{"key": "01')  # killed in the middle of its very first row
    with pytest.warns(UserWarning, match="the last line was torn"):
        assert list(Ledger(torn).rows()) == []


def test_a_call_that_a_kill_cut_off_leaves_none_of_its_rows(tmp_path):
    def rows(first, count):
        return [(f"{n:064x}", "score", "a", video(n), "r", Score(0.5)) for n in range(first, first + count)]

    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record(rows(0, 3))
    ledger.record(rows(3, 1))
    whole = path.read_bytes()
    ledger.record(rows(4, 4))
    added = path.read_bytes()[len(whole) :]
    for cut in (1, len(added) // 4, len(added) // 2, added.index(b"\n") + 1, added.rindex(b"\n", 0, -1) + 1):
        path.write_bytes(whole + added[:cut])
        with pytest.warns(UserWarning, match="torn"):
            again = Ledger(path)
        assert again.num_scores == 4 and path.read_bytes() == whole
    path.write_bytes(whole + added[:-1])  # only the newline is missing
    assert Ledger(path).num_scores == 8 and path.read_bytes() == whole + added


def test_the_rows_of_a_call_are_one_write(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    sizes, write = [], os.write
    monkeypatch.setattr(os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data))
    ledger.record([(f"{n:064x}", "score", "a", video(n), "r", Score(0.5)) for n in range(5)])
    assert len(sizes) == 1 and ledger.num_scores == 5
