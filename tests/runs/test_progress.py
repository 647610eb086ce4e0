"""Progress: what a terminal and a file get to see of work that lasts, and that short or silenced work shows nothing."""

import io
import time
import types

import pytest

from cac_align.runs import progress


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def stderr(monkeypatch, request):
    for name in ("_TERMINAL_DELAY_S", "_TERMINAL_INTERVAL_S", "_LINE_INTERVAL_S"):
        monkeypatch.setattr(progress, name, 0.2)
    monkeypatch.setattr(progress, "_silent", False)
    stream = Stream(request.param)
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))  # pytest sets its own for each phase
    return stream


def work(seconds):
    with progress.progress_bar(10, "judging") as bar:
        bar.update(4)
        progress.show_note(bar, "step 3")
        time.sleep(seconds)
        bar.update(6)


@pytest.mark.parametrize("stderr", [False], indirect=True)
def test_a_file_gets_whole_lines_while_a_step_lasts_and_one_at_the_end(stderr):
    work(0.7)
    lines = stderr.getvalue().splitlines()
    assert "\r" not in stderr.getvalue()
    assert 3 <= len(lines) <= 5
    assert all("4/10" in line and "step 3" in line for line in lines[:-1]) and "10/10" in lines[-1]


@pytest.mark.parametrize("stderr", [True], indirect=True)
def test_a_terminal_gets_a_bar_that_is_drawn_again_within_a_step(stderr):
    work(0.7)
    drawn = [text for text in stderr.getvalue().split("\r") if "4/10" in text]
    assert len(drawn) >= 2 and "video/s" in stderr.getvalue() and "judging" in drawn[0]


@pytest.mark.parametrize("stderr", [False, True], indirect=True)
def test_short_work_shows_nothing(stderr, monkeypatch):
    for name in ("_TERMINAL_DELAY_S", "_LINE_INTERVAL_S"):
        monkeypatch.setattr(progress, name, 10.0)
    with progress.progress_bar(10, "judging") as bar:
        bar.set_postfix_str("3 discarded")  # draws, unless told otherwise
        bar.update(10)
    assert stderr.getvalue().strip() == ""


@pytest.mark.parametrize("stderr", [False, True], indirect=True)
def test_silenced_work_shows_nothing(stderr):
    progress.silence()
    work(0.5)
    assert stderr.getvalue() == ""


@pytest.mark.parametrize("stderr", [False], indirect=True)
def test_what_was_done_before_does_not_count_as_speed(stderr):
    with progress.progress_bar(100, "aligning", "step", initial=90) as bar:
        bar.update(1)
        time.sleep(0.5)
    assert "91/100" in stderr.getvalue()
    rates = [line.split(", ")[1].rstrip("]") for line in stderr.getvalue().splitlines()]
    # One step in a fifth of a second or more is below six a second; 91 of them would be above 180.
    assert all("s/step" in rate or float(rate.removesuffix("step/s")) < 6 for rate in rates)


@pytest.mark.parametrize("stderr", [False, True], indirect=True)
def test_what_has_no_steps_shows_its_time(stderr):
    with progress.working("loading the judge"):
        time.sleep(0.5)
    assert "loading the judge, 00:00" in stderr.getvalue() and "/s" not in stderr.getvalue()


@pytest.mark.parametrize("stderr", [False, True], indirect=True)
def test_a_line_beside_a_bar_stays_whole(stderr):
    with progress.progress_bar(10, "aligning", "step") as bar:
        time.sleep(0.3)
        progress.say("ALARM the videos stand still")
        bar.update(10)
    assert "ALARM the videos stand still\n" in stderr.getvalue().replace("\r", "\n")
