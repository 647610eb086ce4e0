"""Processes that die: the others and the next start name the rank, the sample and the cause."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cac_align.runs.rank_status import ProcessLost, RankStatus
from tests.support.two_processes import LAUNCH


def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def note(folder, rank, **facts):
    folder.mkdir(exist_ok=True)
    import socket

    row = {
        "rank": rank,
        "pid": dead_pid(),
        "host": socket.gethostname(),
        "doing": "step 3, sampling 'a red ball'",
        "ended": None,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(row | facts))


def test_a_clean_run_leaves_nothing_and_says_nothing(tmp_path, caplog):
    rank_status = RankStatus(tmp_path / "p")
    with rank_status.guard():
        rank_status.report("step 0")
        assert json.loads((tmp_path / "p" / "rank-0.json").read_text())["doing"] == "step 0"
    assert not (tmp_path / "p").exists() and not caplog.records


def test_the_next_start_says_where_the_former_one_was_killed(tmp_path, caplog):
    note(tmp_path / "p", 0)
    with caplog.at_level(logging.WARNING), RankStatus(tmp_path / "p").guard():
        pass
    assert (
        "process 0 (pid" in caplog.text
        and "step 3, sampling 'a red ball': it was killed without an error message" in caplog.text
    )


def test_an_error_is_kept_in_its_own_words_and_raised_as_it_is(tmp_path, caplog):
    rank_status = RankStatus(tmp_path / "p")
    with pytest.raises(RuntimeError, match="^out of memory$"), rank_status.guard():
        rank_status.report("step 1, judging v7")
        raise RuntimeError("out of memory")
    assert not (tmp_path / "p" / "rank-1.json").exists()
    with caplog.at_level(logging.WARNING), RankStatus(tmp_path / "p").guard():
        pass
    assert "at step 1, judging v7: RuntimeError: out of memory" in caplog.text


def test_wrong_input_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="no such reward"), RankStatus(tmp_path / "out" / "p").guard():
        raise ValueError("no such reward")
    assert not (tmp_path / "out").exists()


def test_a_failed_exchange_becomes_the_death_of_the_other_process(tmp_path):
    note(tmp_path / "p", 1)
    told = r"process 1 \(pid \d+ on .*\) ended at step 3, sampling 'a red ball': it was killed .* run the same command: it resumes"
    with pytest.raises(ProcessLost, match=told) as caught, RankStatus(tmp_path / "p", 0, 2).guard():
        raise RuntimeError("connection closed by peer")
    assert "connection closed" in str(caught.value.__cause__)


def test_an_error_of_this_process_is_not_laid_at_anothers_door(tmp_path, monkeypatch):
    monkeypatch.setattr("cac_align.runs.rank_status.PATIENCE_S", 0.2)
    note(tmp_path / "p", 1, pid=os.getppid())  # alive
    note(tmp_path / "p", 2)  # of a larger run before this one
    with pytest.raises(RuntimeError, match="^mine$"), RankStatus(tmp_path / "p", 0, 2).guard():
        raise RuntimeError("mine")
    with pytest.raises(KeyError), RankStatus(tmp_path / "p", 0, 3).guard():
        raise KeyError("not an exchange: process 2's death has nothing to do with it")


def test_a_process_told_to_stop_ends_by_the_signal_whatever_swallows_exceptions(tmp_path):
    note(tmp_path / "p", 1)
    code = (
        "import sys; from pathlib import Path; from cac_align.runs.rank_status import RankStatus\n"
        "rank_status = RankStatus(Path(sys.argv[1]), 0, 2)\n"
        "with rank_status.guard():\n"
        "    rank_status.report('making a candidate'); print('at work', flush=True)\n"
        "    while True:\n"
        "        try: sum(range(1000))\n"
        "        except BaseException: print('the candidate is unusable', flush=True)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "p")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout.readline() == "at work\n"
        running.send_signal(signal.SIGTERM)
        written, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == -signal.SIGTERM and written == ""
    assert (
        re.search(r"process 1 \(pid \d+ on \S+\) ended at step 3, sampling 'a red ball'", said) and "it resumes" in said
    )
    assert not (tmp_path / "p" / "rank-0.json").exists() and (tmp_path / "p" / "rank-1.json").exists()


def test_a_single_process_that_was_told_to_stop_says_so_at_the_next_start(tmp_path, caplog):
    code = (
        "import os, signal, sys; from pathlib import Path; from cac_align.runs.rank_status import RankStatus\n"
        "with RankStatus(Path(sys.argv[1])).guard():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM
    with RankStatus(tmp_path / "p").guard():
        pass
    (said,) = [record.getMessage() for record in caplog.records]
    assert "SIGTERM" in said and "killed without" not in said


@pytest.mark.slow
def test_a_killed_process_is_named_with_its_sample_and_the_same_command_goes_on(tmp_path):
    prompts = tmp_path / "prompts.txt"
    lines = [f"a {colour} ball rests on sand" for colour in ("red", "green", "blue", "yellow", "cyan", "purple")]
    prompts.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    settings = [
        "--set",
        "n=4",
        "--set",
        "reward.allow_out_of_domain=true",
        "--set",
        "generator.model=cac_align.miniature.world.world:Renderer",
    ]
    command = [*LAUNCH, "-m", "cac_align.cli", "best-of-n", "--prompts", str(prompts), "--out", str(out), *settings]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    path, until = out / "processes" / "rank-1.json", time.time() + 200
    while time.time() < until:
        if (
            path.exists()
            and "judging" in (facts := json.loads(path.read_text()))["doing"]
            and path.with_name("rank-0.json").exists()
        ):
            break
        time.sleep(0.01)
    os.kill(facts["pid"], signal.SIGKILL)
    said = running.communicate(timeout=200)[1]
    assert running.returncode != 0
    named = re.search(
        r"process 1 \(pid (\d+) on \S+\) ended at (judging a-\w+-ball-rests-on-sand-\S+|making candidates of 'a [^']*')",
        said,
    )
    assert named and int(named[1]) == facts["pid"] and "it resumes" in said, said[-3000:]
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"the former run's process 1 (pid {facts['pid']}" in again.stderr
    assert {json.loads(line)["prompt"] for line in (out / "selection.jsonl").read_text().splitlines()} == set(lines)
    assert not (out / "processes").exists()
