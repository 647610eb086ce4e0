"""Workers of an injection whose parent was killed end by themselves, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cac_align.cli.main import main
from tests.data.injection.test_run import contents, crossing


def children_of(session: int) -> list[int]:
    """The processes of a session, but for its leader: /proc's sixth field is the session."""
    found = []
    for name in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split() if name.isdigit() else []
        except OSError:
            continue
        if fields and int(fields[3]) == session and int(name) != session and fields[0] != "Z":
            found.append(int(name))
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are listed in /proc (Linux)")
def test_workers_end_with_a_killed_parent(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    crossing(videos / "0.mp4", 0)
    command = ["data", "inject", str(videos), "--n", "2", "--set", "tiers=[core]"]
    arguments = [sys.executable, "-m", "cac_align.cli", *command, "--workers", "2", "--out", str(out)]
    parent = subprocess.Popen(arguments, start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(children_of(parent.pid)) < 3 and parent.poll() is None and time.monotonic() < until:
        time.sleep(0.05)  # two workers and multiprocessing's resource tracker
    assert children_of(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while children_of(parent.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert children_of(parent.pid) == []
    assert main([*command, "--workers", "1", "--out", str(out)]) == 0
    assert main([*command, "--workers", "1", "--out", str(tmp_path / "undisturbed")]) == 0
    assert contents(out) == contents(tmp_path / "undisturbed")
