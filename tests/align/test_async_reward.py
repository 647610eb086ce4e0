"""Clips beside the training: written to the end, and what goes wrong with one is said and hides nothing."""

import errno
import re
import threading

import numpy as np
import pytest

from cac_align.align.async_reward import Judging
from cac_align.align.trainer import align
from cac_align.core import encoding
from cac_align.core.video import Video
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.vlm.protocol import UNREACHABLE
from tests.support.tiny_flow import Brightness, recipe, rows, write_wan


def grey(level):
    return Video.open(np.full((5, 16, 16, 3), level, np.uint8), fps=16)


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_waits_to_be_written_is_finished_at_close(tmp_path):
    gate = threading.Event()
    judging = Judging(Brightness(), None)
    judging.also(gate.wait, 60)
    for number in range(3):
        judging.also((tmp_path / f"{number}.mp4").write_text, "clip")
    threading.Timer(0.2, gate.set).start()  # by then close() waits, and nothing is written yet
    judging.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


def test_judging_that_has_not_begun_is_dropped_at_close():
    begun, gate = threading.Event(), threading.Event()

    class Slow(Brightness):
        def __call__(self, prompts, videos):
            begun.set()
            assert gate.wait(60)
            return super().__call__(prompts, videos)

    judging = Judging(Slow(), None)
    first, second = judging.submit(["a"], [grey(1)]), judging.submit(["b"], [grey(2)])
    assert begun.wait(60)
    threading.Timer(0.2, gate.set).start()
    judging.close()
    assert first.done() and not first.cancelled() and second.cancelled()


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
    judging = Judging(combine({"cac": judge}) if together else judge, ledger)
    for step in range(3):
        judge.now = "first"
        ((score, _),) = judging.wait(judging.submit(["a"], [grey(step)]))
        judge.now = later
        judging.link("a", grey(step), score, {"step": step})
    judging.close()
    filed = {row["key"] for row in ledger.rows() if row["kind"] == ("combined" if together else "score")}
    linked = [row["key"] for row in ledger.rows() if row["kind"] == "extra"]
    # a single reward's provenance is asked for once it can say who judges; until then the score alone knows the checkpoint
    assert set(linked) == filed and len(linked) == 3


def test_a_service_that_is_gone_when_the_advantages_are_known_ends_no_run(tmp_path, caplog):
    judge = Served()
    judging = Judging(judge, Ledger(tmp_path / "ledger.jsonl"))
    ((score, _),) = judging.wait(judging.submit(["a"], [grey(1)]))
    judge.now = None
    judging.link("a", grey(1), score, {"step": 0})
    assert score.scored and "what became of it is not in the ledger: service cannot be asked" in caplog.text
    judging.close()


def test_a_clip_that_cannot_be_written_is_said_once_it_is_known():
    judging, gate = Judging(Brightness(), None), threading.Event()
    judging.also(gate.wait, 60)
    judging.also(no_space)
    judging.settle()  # not known yet
    gate.set()
    judging._writer.submit(int).result()  # one thread: what was given before is done
    with pytest.raises(OSError, match="No space left"):
        judging.settle()
    judging.also(no_space)
    with pytest.raises(OSError, match="No space left"):
        judging.close()
    judging.close()  # said once


def test_a_lost_clip_does_not_hide_what_ended_the_run(caplog):
    with pytest.raises(KeyboardInterrupt), Judging(Brightness(), None) as judging:
        judging.also(no_space)
        raise KeyboardInterrupt
    assert "beside the error that ends the run: OSError: [Errno 28] No space left on device" in caplog.text
    with pytest.raises(OSError, match="No space left"), Judging(Brightness(), None) as judging:
        judging.also(no_space)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_whose_clips_do_not_fit_on_the_disk_says_so(steps, model, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "write_mp4", no_space)
    with pytest.raises(
        ValueError, match=re.escape("No space left on device; free space or mend the path, then run the same")
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
    given = recipe(model, tmp_path, reward="test_judging:Away", steps=5, save_every=5, patience=2, max_unscored=0.4)
    with pytest.raises(
        ValueError, match="step 2: 50% of the videos of the last 2 steps .*: it goes on after this step"
    ):
        align(given)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
    assert [row["live"] for row in rows(tmp_path)] == [8, 8, 0]
    Away.down = False
    try:
        assert align(given).step == 5, "of the last two steps half are still unscored, but not since it goes on"
    finally:
        Away.down = True
    assert [row["unscored"] for row in rows(tmp_path)] == [0, 0, 8, 0, 0], "the first three are not taken again"
