"""One ledger and several writers: processes, a fork, threads, and one that is killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger, score_key
from tests.support.counting import Counting, video


def _write(path, start, count, barrier):
    ledger = Ledger(path)
    barrier.wait()
    for number in range(start, start + count):
        cached(Counting(), ledger)([f"prompt {number} " + "x" * 3000], [video(number % 200)])


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
    wrapped = cached(Counting(), ledger)
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
    assert (
        ledger.find(score_key("child 39", video(2), Counting().provenance)).value == 0.02
    )  # sees what the other wrote
    assert Ledger(path).num_scores == 81 and Ledger(path).faults == []


def test_threads_share_a_ledger(tmp_path):
    wrapped = cached(Counting(), Ledger(tmp_path / "ledger.jsonl"))
    threads = [
        threading.Thread(target=lambda n=n: [wrapped([f"{n} {k}"], [video(k)]) for k in range(20)]) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Ledger(tmp_path / "ledger.jsonl").num_scores == 80


KILLED = """
import sys
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger
from tests.support.counting import Counting, video
wrapped = cached(Counting(), Ledger(sys.argv[1]))
number = 0
while True:
    wrapped([f"prompt {number} " + "x" * 20000], [video(number % 200)])
    number += 1
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_reported(tmp_path):
    path = tmp_path / "ledger.jsonl"
    root = str(Path(__file__).parents[2])
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
    cached(reward, ledger)(
        [f"prompt {n} " + "x" * 20000 for n in range(reported)], [video(n % 200) for n in range(reported)]
    )
    assert reward.asked == []
