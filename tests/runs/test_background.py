"""Calls in a thread of their own: in order, timed, and what they raise."""

import threading
import time

import pytest

from cac_align.runs.background import BackgroundThread


def test_the_caller_goes_on_and_calls_are_taken_in_order():
    gate, taken = threading.Event(), []
    with BackgroundThread("calls") as thread:
        first = thread.submit(lambda: (gate.wait(60), taken.append(1)))
        second = thread.submit(taken.append, 2)
        assert taken == [] and not second.done()
        gate.set()
        thread.wait(second)
        assert taken == [1, 2] and first.done()


def test_seconds_of_work_and_of_waiting_are_counted():
    with BackgroundThread("calls") as thread:
        future = thread.submit(time.sleep, 0.2)
        time.sleep(0.1)
        thread.wait(future)
    assert thread.busy_s >= 0.2 and 0 < thread.waited_s < thread.busy_s


def test_what_a_call_raises_is_raised_where_it_is_waited_for():
    with BackgroundThread("calls") as thread:
        future = thread.submit(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            thread.wait(future)
        assert thread.wait(thread.submit(int, "7")) == 7, "the thread lives on"
    blocking = BackgroundThread("calls", overlap=False)
    assert blocking.submit(int, "3").done()
    with pytest.raises(ValueError, match="no number"):
        blocking.submit(int, "no number")
    blocking.close()


def test_what_has_not_begun_is_dropped_at_close():
    begun, gate = threading.Event(), threading.Event()
    thread = BackgroundThread("calls")
    first = thread.submit(lambda: (begun.set(), gate.wait(60)))
    second = thread.submit(int, "2")
    assert begun.wait(60)
    threading.Timer(0.1, gate.set).start()
    thread.close()
    assert first.done() and not first.cancelled() and second.cancelled()
