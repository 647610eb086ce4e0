"""A minute of the campaign: seconds of every promise about inputs, a few killed runs; `make campaign` has the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.promise import all_promises, put

ROOT = Path(__file__).parents[2]
RUNS = """
import random, sys, tempfile
from pathlib import Path
from tests.campaign import kills
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    made = kills.reference(kills.best_of_n(folder), folder)
    rng = random.Random(int(sys.argv[1]))
    outcomes = [*kills.ledger_writers(folder, rng), *kills.two_at_once(made, folder, rng)]
    for _ in range(4):
        outcomes += kills.killed(made, folder, rng)
    if kills.can_mount():
        outcomes += [outcome for _ in range(3) for outcome in kills.disk_full(made, folder, rng)]
    print(len(outcomes), [outcome for outcome in outcomes if outcome[1]])
"""


@pytest.mark.parametrize("name", sorted(all_promises()))
def test_no_case_of_a_slice_breaks_its_promise(name):
    failures, cases = [], 0

    def report(row):
        nonlocal cases
        cases += "end" in row
        failures.extend([row["end"]] if row.get("end") else [])

    put(all_promises()[name], 0, 60, 3.0, report)
    assert cases and failures == []


def test_killed_runs_of_a_slice_end_in_the_same_state():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUNS, "0"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, failures = done.stdout.strip().split(" ", 1)
    assert int(count) >= 4 and failures == "[]"


def test_a_promise_that_does_not_hold_is_told():
    from hypothesis import strategies as st

    from tests.campaign.promise import Promise

    def check(_, value):
        if value > 100:
            raise KeyError("no")

    rows = []
    put(Promise("p", "s", lambda folder: None, st.integers(0, 10_000), check), 1, 50, 5.0, rows.append)
    ends = [row["end"] for row in rows if "end" in row]
    assert len(ends) == 50 and any(end and end.startswith("KeyError") for end in ends) and None in ends
