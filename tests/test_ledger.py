"""The ledger: nothing scored twice, nothing lost, nothing false served, whoever dies while writing."""

import json
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest

from cac_align.judgement import Anomaly, Box, Judgement, Turn, Window
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger, score_key
from cac_align.rewards.reward import Reward, Score
from cac_align.video import Video

JUDGEMENT = Judgement(
    "abnormal",
    (Anomaly("Motion Anomalies", Window(0.0, 0.5), "slides </script> sideways\n\u2028", "left", {3: (Box(0, 0, 9, 9),)}),),
    (Turn(1, "said \udc80 this", (0, 4), "abnormal"),),
    -3.0,
    -0.05,
)


@dataclass
class Counting:
    """Scores a video by its first pixel / 100, refuses 255, and counts what it was asked."""

    name: str = "counting"
    version: str = "1"
    bounds: tuple[float, float] | None = (0.0, 10.0)
    asked: list = field(default_factory=list)

    @property
    def passport(self):
        return {"reward": self.name, "version": self.version}

    def __call__(self, prompts, videos):
        scores = []
        for prompt, video in zip(prompts, videos, strict=True):
            first = int(video.frames([0]).pixels[0, 0, 0, 0])
            self.asked.append((prompt, first))
            parts = {"first": float(first), "share": math.nan}
            scores.append(Score.missing("white") if first == 255 else Score(first / 100, parts, JUDGEMENT, None, self.passport))
        return scores


def video(first, name="v"):
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    pixels[0, 0, 0, 0] = first
    return Video.open(pixels, fps=16, name=name)


def same(one, other):
    return [score.to_json() for score in one] == [score.to_json() for score in other]


def test_what_was_scored_is_not_scored_again(tmp_path):
    reward = Counting()
    wrapped = Ledger(tmp_path / "ledger.jsonl").wrap(reward)
    first = wrapped(["p", "p"], [video(1), video(2)])
    again = wrapped(["p", "p", "p"], [video(2, "another name"), video(3), video(1)])
    assert reward.asked == [("p", 1), ("p", 2), ("p", 3)]
    assert same([again[2], again[0]], first)
    assert again[0].evidence == JUDGEMENT and math.isnan(again[0].parts["share"])

    fresh = Counting()
    reopened = Ledger(tmp_path / "ledger.jsonl")
    assert same(reopened.wrap(fresh)(["p"] * 3, [video(1), video(2), video(3)]), [first[0], first[1], again[1]])
    assert fresh.asked == [] and reopened.num_scores == 3 and reopened.faults == []


def test_key_is_content_prompt_and_passport(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    reward = Counting()
    ledger.wrap(reward)(["p"], [video(1)])
    ledger.wrap(reward)(["q"], [video(1)])
    ledger.wrap(reward)(["p"], [video(1).with_fps(8)])  # another clock is another video
    assert len(reward.asked) == 3
    other = Counting(version="2")
    ledger.wrap(other)(["p"], [video(1)])
    assert len(other.asked) == 1
    assert len({score_key("p", video(1), passport) for passport in ({"a": "b"}, {"a": "c"}, {"a": "b", "c": "d"})}) == 3
    assert score_key("p", video(1), {"a": "1", "b": "2"}) == score_key("p", video(1), {"b": "2", "a": "1"})


def test_equal_videos_in_one_call_are_scored_once(tmp_path):
    reward = Counting()
    scores = Ledger(tmp_path / "ledger.jsonl").wrap(reward)(["p"] * 3, [video(5), video(6), video(5)])
    assert [score.value for score in scores] == [0.05, 0.06, 0.05] and reward.asked == [("p", 5), ("p", 6)]


def test_missing_scores_are_kept_for_audit_and_tried_again(tmp_path):
    path = tmp_path / "ledger.jsonl"
    reward = Counting()
    for _ in range(2):
        (score,) = Ledger(path).wrap(reward)(["p"], [video(255)])
        assert score.error == "white"
    assert len(reward.asked) == 2
    rows = list(Ledger(path).rows())
    assert [(row["kind"], row["score"], row["error"]) for row in rows] == [("missing", None, "white")] * 2


def test_a_row_holds_what_an_auditor_needs(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).wrap(Counting())(["p {} <b>"], [video(7, "clip.mp4")])
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(row)[:2] == ["key", "kind"]
    assert row["key"] == score_key("p {} <b>", video(7), {"reward": "counting", "version": "1"})
    expected = {"kind": "score", "prompt": "p {} <b>", "video": "clip.mp4", "reward": "counting", "score": 0.07, "extra": {}}
    assert expected.items() <= row.items()
    assert row["video_hash"] == video(7).content_hash
    assert row["judgement"]["anomalies"][0]["type"] == "Motion Anomalies" and row["passport"]["version"] == "1"
    assert row["time"].startswith("20")


def test_a_batch_that_dies_keeps_the_batches_before_it(tmp_path):
    class Dies(Counting):
        def __call__(self, prompts, videos):
            if self.asked:
                raise KeyboardInterrupt
            return super().__call__(prompts, videos)

    path = tmp_path / "ledger.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Ledger(path).wrap(Dies())(["p"] * 40, [video(n) for n in range(40)])
    done = Ledger(path).num_scores
    reward = Counting()
    scores = Ledger(path).wrap(reward)(["p"] * 40, [video(n) for n in range(40)])
    assert done > 0 and len(reward.asked) == 40 - done
    assert [score.value for score in scores] == [n / 100 for n in range(40)]


def test_wrapped_rewards_keep_their_contract(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for reward in (Counting(), combine({"a": Counting("a"), "b": Counting("b")})):
        wrapped = ledger.wrap(reward)
        assert isinstance(wrapped, Reward)
        assert (wrapped.name, wrapped.passport, wrapped.bounds) == (reward.name, reward.passport, reward.bounds)
        clone = pickle.loads(pickle.dumps(wrapped))
        assert same(clone(["p"], [video(1)]), wrapped(["p"], [video(1)]))
        with pytest.raises(ValueError, match="2 prompts and 1 videos"):
            wrapped(["p", "q"], [video(1)])


# ---- combinations -------------------------------------------------------------------------------------------------


def test_group_normalised_values_are_never_served(tmp_path):
    path = tmp_path / "ledger.jsonl"
    a, b = Counting("a"), Counting("b")
    reward = Ledger(path).wrap(combine({"a": a, "b": b}, normalise="group"))
    first = reward(["p"] * 2, [video(1), video(2)])
    second = reward(["p"] * 2, [video(2), video(3)])
    assert [score.value for score in first + second] == [-1, 1, -1, 1]  # video 2 is best of one pair and worst of the other
    assert len(a.asked) == len(b.asked) == 3
    kinds = [row["kind"] for row in Ledger(path).rows()]
    assert kinds.count("score") == 6 and kinds.count("combined") == 4


def test_a_resumed_combination_adds_no_rows(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for _ in range(3):
        reward = Ledger(path).wrap(combine({"a": Counting("a"), "b": Counting("b")}))
        scores = reward(["p"] * 2, [video(1), video(255)])
    kinds = [row["kind"] for row in Ledger(path).rows()]
    assert kinds.count("score") == 2 and kinds.count("combined") == 2
    assert kinds.count("missing") == 6  # two components, tried three times
    assert Ledger(path).combined(score_key("p", video(1), reward.passport)).value == scores[0].value == 0.001


def test_annotations_come_back_in_order(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.wrap(Counting())(["p"], [video(1)])
    key = score_key("p", video(1), Counting().passport)
    ledger.annotate(key, step=3, advantage=np.float32(0.5))
    Ledger(path).annotate(key, host="flow-factory")
    assert ledger.extra(key) == [{"step": 3, "advantage": 0.5}, {"host": "flow-factory"}]
    assert Ledger(path).extra(key) == ledger.extra(key) and ledger.extra("0" * 64) == []
    assert [row["kind"] for row in ledger.rows()] == ["score", "extra", "extra"]
    with pytest.raises(ValueError, match="64 hexadecimal digits, received 'abc'"):
        ledger.annotate("abc", step=1)


# ---- damage -------------------------------------------------------------------------------------------------------


def filled(path, count=3):
    Ledger(path).wrap(Counting())(["p"] * count, [video(n) for n in range(count)])
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
    ledger.wrap(reward)(["p"] * 3, [video(n) for n in range(3)])
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
        ledger.wrap(Counting())(["p"], [video(9)])
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
    with pytest.warns(UserWarning, match="is not JSON"):
        scores = ledger.wrap(reward)(["p"] * 5, [video(n) for n in range(5)])
        rows = list(ledger.rows())
    assert reward.asked == [("p", 1), ("p", 2), ("p", 3)]
    assert [score.value for score in scores] == [0, 0.01, 0.02, 0.03, 0.04]
    assert len(ledger.faults) == 3 and len(rows) == 5


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
from tests.test_ledger import Counting, Ledger, video
wrapped = Ledger(sys.argv[1]).wrap(Counting())
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # the fourth row ends at about 3,800 bytes
for number in range(4):
    try:
        wrapped(["p"], [video(number)])
    except OSError as error:
        print(number, error)
"""


def test_a_full_disk_is_said_and_leaves_a_sound_ledger(tmp_path):
    path = tmp_path / "ledger.jsonl"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], cwd=root, capture_output=True, text=True, check=True)
    assert "the ledger took" in done.stdout and str(path) in done.stdout
    ledger = Ledger(path)
    assert ledger.faults == [] and ledger.num_scores == 4 - len(done.stdout.splitlines()) > 0
    assert path.read_bytes().endswith(b"}\n")
    with pytest.raises(OSError, match="the ledger cannot be written: No space left"):
        Ledger("/dev/full").wrap(Counting())(["p"], [video(1)])


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
    scores = Ledger(path).wrap(Careful())(["p", "p"], [gone, good])
    assert "cannot be read" in scores[0].error and scores[1].value == 0.01
    assert [(row["kind"], row["video_hash"] is None) for row in Ledger(path).rows()] == [("missing", True), ("score", False)]


# ---- several writers ----------------------------------------------------------------------------------------------


def _write(path, start, count, barrier):
    ledger = Ledger(path)
    barrier.wait()
    for number in range(start, start + count):
        ledger.wrap(Counting())([f"prompt {number} " + "x" * 3000], [video(number % 200)])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_two_processes_append_at_once(tmp_path, method):
    context = multiprocessing.get_context(method)
    barrier = context.Barrier(2)
    path = tmp_path / "ledger.jsonl"
    writers = [context.Process(target=_write, args=(path, start, 60, barrier)) for start in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(rows) == 120 and len({row["key"] for row in rows}) == 120
    assert Ledger(path).num_scores == 120


def test_a_ledger_inherited_by_fork_still_locks(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    wrapped = ledger.wrap(Counting())
    wrapped(["p"], [video(1)])
    child = os.fork()
    if child == 0:
        try:
            for number in range(40):
                wrapped([f"child {number}"], [video(2)])
            os._exit(0)
        finally:
            os._exit(1)
    for number in range(40):
        wrapped([f"parent {number}"], [video(2)])
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.find(score_key("child 39", video(2), Counting().passport)).value == 0.02  # sees what the other wrote
    assert Ledger(path).num_scores == 81 and Ledger(path).faults == []


def test_threads_share_a_ledger(tmp_path):
    wrapped = Ledger(tmp_path / "ledger.jsonl").wrap(Counting())
    threads = [threading.Thread(target=lambda n=n: [wrapped([f"{n} {k}"], [video(k)]) for k in range(20)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(tmp_path / "ledger.jsonl").num_scores == 80


KILLED = """
import sys
from tests.test_ledger import Counting, Ledger, video
wrapped = Ledger(sys.argv[1]).wrap(Counting())
number = 0
while True:
    wrapped([f"prompt {number} " + "x" * 20000], [video(number % 200)])
    number += 1
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_reported(tmp_path):
    path = tmp_path / "ledger.jsonl"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, cwd=root)
    for _ in range(20):
        process.stdout.readline()
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    reported = 20 + len(process.stdout.read().split())
    process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether a line was being written is chance
        ledger = Ledger(path)
    reward = Counting()
    ledger.wrap(reward)([f"prompt {n} " + "x" * 20000 for n in range(reported)], [video(n % 200) for n in range(reported)])
    assert reward.asked == []
