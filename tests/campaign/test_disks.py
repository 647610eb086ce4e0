"""Verbs that write meet a full disk; `make campaign` has them all, also those that run models."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = """
import json, random, tempfile
from pathlib import Path
from tests.campaign import kills
from tests.campaign.writers import quick_writers
found = {}
with tempfile.TemporaryDirectory() as name:
    folder, rng = Path(name), random.Random(0)
    for number, verb in enumerate(quick_writers(folder)):
        place = folder / f"verb{number}"
        place.mkdir()
        made = kills.reference(verb, place)
        outcomes = list(kills.files_limited(made, place, rng))
        if kills.can_mount():
            outcomes += kills.disk_full(made, place, rng)
        found.setdefault(verb.name, []).extend(outcomes)
print(json.dumps(found))
"""


def test_every_verb_that_writes_says_of_a_full_disk_path_space_and_command_and_leaves_no_part():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUNS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8 and all(outcomes for outcomes in found.values())
    assert [outcome for outcomes in found.values() for outcome in outcomes if outcome[1]] == []
