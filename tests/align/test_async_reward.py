"""The reward in a thread: scores, failures, and video files that are written meanwhile."""

import errno
import re
import threading
import time

import numpy as np
import pytest

from cac_align.align import async_reward as async_reward_module
from cac_align.align import trainer
from cac_align.align.async_reward import AsyncReward, score_all
from cac_align.align.trainer import align
from cac_align.core.video import Video
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.vlm.protocol import UNREACHABLE
from tests.support.tiny_flow import Boxes, Brightness, Broken, recipe, rows, write_wan


def grey(level):
    return Video.open(np.full((5, 16, 16, 3), level, np.uint8), fps=16)


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_waits_to_be_written_is_finished_at_close(tmp_path):
    gate = threading.Event()
    async_reward = AsyncReward(Brightness(), None)
    async_reward.run_later(gate.wait, 60)
    for number in range(3):
        async_reward.run_later((tmp_path / f"{number}.mp4").write_text, "clip")
    threading.Timer(0.2, gate.set).start()  # by then close() waits, and nothing is written yet
    async_reward.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


def test_scoring_that_has_not_begun_is_dropped_at_close():
    begun, gate = threading.Event(), threading.Event()

    class Slow(Brightness):
        def __call__(self, prompts, videos):
            begun.set()
            assert gate.wait(60)
            return super().__call__(prompts, videos)

    async_reward = AsyncReward(Slow(), None)
    first, second = async_reward.submit(["a"], [grey(1)]), async_reward.submit(["b"], [grey(2)])
    assert begun.wait(60)
    threading.Timer(0.2, gate.set).start()
    async_reward.close()
    assert first.scores.done() and not first.scores.cancelled() and second.scores.cancelled()


class Served(Brightness):
    """A judge behind a server: ``now`` is the checkpoint that it runs; None: it is gone."""

    name, now = "cac", "first"

    @property
    def provenance(self):
        if self.now is None:
            raise ValueError("service cannot be asked")
        return {"reward": "cac", "vlm/served": self.now}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("later", [UNREACHABLE, "second"])
def test_an_advantage_finds_its_score_whatever_the_server_says_by_then(tmp_path, together, later):
    judge, ledger = Served(), Ledger(tmp_path / "ledger.jsonl")
    async_reward = AsyncReward(combine({"cac": judge}) if together else judge, ledger)
    for step in range(3):
        judge.now = "first"
        ((score, _),) = async_reward.wait(async_reward.submit(["a"], [grey(step)]))
        judge.now = later
        async_reward.annotate("a", grey(step), score, {"step": step})
    async_reward.close()
    filed = {row["key"] for row in ledger.rows() if row["kind"] == ("combined" if together else "score")}
    linked = [row["key"] for row in ledger.rows() if row["kind"] == "extra"]
    # a single reward's provenance is asked for once it can say who judges; until then the score alone knows the checkpoint
    assert set(linked) == filed and len(linked) == 3


def test_a_service_that_is_gone_when_the_advantages_are_known_ends_no_run(tmp_path, caplog):
    judge = Served()
    async_reward = AsyncReward(judge, Ledger(tmp_path / "ledger.jsonl"))
    ((score, _),) = async_reward.wait(async_reward.submit(["a"], [grey(1)]))
    judge.now = None
    async_reward.annotate("a", grey(1), score, {"step": 0})
    assert score.scored and "its advantage could not be added to the ledger: service cannot be asked" in caplog.text
    async_reward.close()


def test_a_clip_that_cannot_be_written_is_said_once_it_is_known():
    async_reward, gate = AsyncReward(Brightness(), None), threading.Event()
    async_reward.run_later(gate.wait, 60)
    async_reward.run_later(no_space)
    async_reward.raise_write_errors()  # not known yet
    gate.set()
    async_reward._writer.submit(int).result()  # one thread: what was given before is done
    with pytest.raises(OSError, match="No space left"):
        async_reward.raise_write_errors()
    async_reward.run_later(no_space)
    with pytest.raises(OSError, match="No space left"):
        async_reward.close()
    async_reward.close()  # said once


def test_a_lost_clip_does_not_hide_what_ended_the_run(caplog):
    with pytest.raises(KeyboardInterrupt), AsyncReward(Brightness(), None) as async_reward:
        async_reward.run_later(no_space)
        raise KeyboardInterrupt
    assert "another error while the run was ending: OSError: [Errno 28] No space left on device" in caplog.text
    with pytest.raises(OSError, match="No space left"), AsyncReward(Brightness(), None) as async_reward:
        async_reward.run_later(no_space)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_whose_clips_do_not_fit_on_the_disk_says_so(steps, model, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "write_mp4", no_space)
    with pytest.raises(
        ValueError, match=re.escape("No space left on device; free space or repair the path, then run the same")
    ):
        align(recipe(model, tmp_path, steps=steps))
    assert 1 <= len(rows(tmp_path)) <= min(steps, 2), "at the next step, or at the end"
    monkeypatch.undo()
    assert align(recipe(model, tmp_path, steps=steps)).step == steps


class Away(Brightness):
    """A judge that is away from the seventeenth video on, as long as ``down``."""

    down = True

    def __call__(self, prompts, videos):
        if Away.down and len(Brightness.calls) >= 16:
            raise ConnectionError("no server")
        return super().__call__(prompts, videos)


def test_a_stop_for_unscored_videos_loses_no_step_and_the_mended_run_goes_on(model, tmp_path):
    Brightness.calls.clear()
    Brightness.fail_after = None
    given = recipe(
        model,
        tmp_path,
        reward="tests.align.test_async_reward:Away",
        steps=5,
        save_every=5,
        patience=2,
        max_unscored=0.4,
    )
    with pytest.raises(
        ValueError, match="step 2: 50% of the videos of the last 2 steps .*: it resumes after this step"
    ):
        align(given)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
    assert [row["trained_videos"] for row in rows(tmp_path)] == [8, 8, 0]
    Away.down = False
    try:
        assert align(given).step == 5, "of the last two steps half are still unscored, but not since it goes on"
    finally:
        Away.down = True
    assert [row["unscored"] for row in rows(tmp_path)] == [0, 0, 8, 0, 0], "the first three are not taken again"


def test_no_failure_becomes_a_number():
    scores = score_all(Brightness(), ["a", "b"], [grey(51), None])
    assert scores[0].value == pytest.approx(0.2) and not scores[1].scored and "not finite" in scores[1].error
    failed = score_all(Broken(), ["a", "b"], [grey(51), grey(52)])
    assert [score.error for score in failed] == [
        "reward broken failed: ConnectionError: no server at http://127.0.0.1:9"
    ] * 2


class FullDisk(Brightness):
    def __call__(self, prompts, videos):
        raise OSError(errno.ENOSPC, "the ledger took 10 of 80 bytes")


def test_a_ledger_that_cannot_be_written_ends_the_run():
    async_reward = AsyncReward(FullDisk(), None)
    with pytest.raises(OSError, match="10 of 80 bytes"):
        async_reward.wait(async_reward.submit(["a"], [grey(1)]))
    async_reward.close()


class Held(Brightness):
    """A reward that begins, and ends when the gate is opened."""

    def __init__(self):
        self.begun, self.gate = threading.Event(), threading.Event()

    def __call__(self, prompts, videos):
        self.begun.set()
        assert self.gate.wait(60)
        return super().__call__(prompts, videos)


def test_the_reward_runs_beside_the_caller_and_its_time_is_counted(tmp_path):
    reward = Held()
    async_reward = AsyncReward(reward, Ledger(tmp_path / "ledger.jsonl"))
    pending = async_reward.submit(["a"], [grey(51)])  # comes back although nothing is judged yet
    assert reward.begun.wait(60) and not pending.scores.done()
    assert pending.speeds.result(60) == [0.0], "the speed is measured beside the reward"
    began = time.perf_counter()
    time.sleep(0.2)
    worked = time.perf_counter() - began
    reward.gate.set()
    pending.scores.result()
    ((score, moved),) = async_reward.wait(pending)
    assert (
        score.scored and moved == 0.0 and async_reward.busy_s >= worked and async_reward.waited_s < async_reward.busy_s
    )
    async_reward.annotate("a", grey(51), score, {"step": 1, "advantage": 0.5})
    async_reward.annotate("a", grey(51), score, {"step": 1, "advantage": 0.5})
    (row,) = [row for row in async_reward.ledger.rows() if row["kind"] == "extra"]
    assert row["extra"] == {"step": 1, "advantage": 0.5}
    async_reward.close()


def test_the_reward_does_not_wait_for_the_speed_to_be_measured(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(async_reward_module, "normal_flow_speed", lambda video: gate.wait(60) and 0.5)
    async_reward = AsyncReward(Brightness(), None)
    pending = async_reward.submit(["a", "b"], [grey(51), None])
    assert [score.scored for score in pending.scores.result(60)] == [True, False]
    gate.set()
    (_, moved), (_, missing) = async_reward.wait(pending)
    assert moved == 0.5 and np.isnan(missing)
    async_reward.close()


def test_without_overlap_the_caller_waits():
    reward = Held()
    blocking = AsyncReward(reward, None, overlap=False)
    threading.Timer(0.2, reward.gate.set).start()
    assert blocking.submit(["a"], [grey(51)]).scores.done() and blocking.waited_s > 0
    blocking.close()


def test_the_small_judges_boxes_reach_the_evidence():
    (score,) = Boxes()(["a"], [grey(9)])
    assert score.evidence.anomalies[0].boxes[1][0].to_json() == [0, 0, 500, 500]
