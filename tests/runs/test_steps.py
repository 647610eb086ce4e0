"""A run of several steps: what is done is skipped, also after the process was killed, and another recipe is refused."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cac_align.runs.metrics_log import read_rows
from cac_align.runs.steps import RunStep, run_steps

# Step "two" waits to be killed when it is done for the first time; every step notes that it ran.
PROGRAM = """
import sys, time
from pathlib import Path
from cac_align.runs.steps import RunStep, run_steps

out = Path(sys.argv[1])

def work(name):
    def run(folder):
        with open(out / "ran.txt", "a") as file:
            file.write(name + "\\n")
        if name == sys.argv[2]:
            print("waiting", flush=True)
            time.sleep(60)
        (folder / "result.txt").write_text(name)
        return {"letters": len(name)}
    return run

print(run_steps(out, [RunStep(name, {f"{name}.size": 1}, work(name)) for name in ("one", "two", "three")]))
"""


def test_a_killed_run_goes_on_with_the_step_it_was_in(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    killed = subprocess.Popen([*command, "two"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert killed.stdout is not None and killed.stdout.readline() == "waiting\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (tmp_path / "one" / "result.txt").is_file() and not (tmp_path / "two" / "result.txt").exists()
    again = subprocess.run(
        [*command, "none"], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert (tmp_path / "ran.txt").read_text().split() == ["one", "two", "two", "three"]
    assert again.stdout.strip() == "{'one': {'letters': 3}, 'two': {'letters': 3}, 'three': {'letters': 5}}"
    events = [(row["step"], row["event"]) for row in read_rows(tmp_path / "log.jsonl")]
    first = [("one", "begun"), ("one", "done"), ("two", "begun")]
    second = [("one", "skipped"), ("two", "begun"), ("two", "done"), ("three", "begun"), ("three", "done")]
    assert events == first + second
    stamp = json.loads((tmp_path / "two" / "step.json").read_text())
    assert stamp["done"] and stamp["made_from"] == {"one.size": 1, "two.size": 1}


def steps(ran, **sizes):
    def work(name):
        return lambda folder: ran.append(name) or {"n": len(ran)}

    return [RunStep(name, {f"{name}.size": size, f"{name}.new": [1]}, work(name)) for name, size in sizes.items()]


def test_another_recipe_is_refused_by_the_first_folder_it_does_not_fit_before_any_work(tmp_path):
    ran = []
    run_steps(tmp_path, steps(ran, one=1, two=1))
    with pytest.raises(ValueError) as caught:
        run_steps(tmp_path, steps(ran, one=1, two=2, three=1))
    told = str(caught.value)
    assert f"{tmp_path / 'two'} was made with another recipe (two.size differ; two.size was 1, now 2)" in told
    assert ran == ["one", "two"] and not (tmp_path / "three").exists()
    # A later step's keys are free until it has begun, and a step added behind is done.
    assert run_steps(tmp_path, steps(ran, one=1, two=1, three=7))["three"] == {"n": 3}
    # With its folder gone the step is done again, but not upon an earlier one's changed values.
    (tmp_path / "one" / "step.json").unlink()
    with pytest.raises(ValueError, match=r"two was made with another recipe \(one.size differ"):
        run_steps(tmp_path, steps(ran, one=5, two=1))
    assert ran == ["one", "two", "three"]


def test_a_key_that_came_later_refuses_nothing(tmp_path):
    ran = []
    run_steps(tmp_path, steps(ran, one=1))
    stamp = json.loads((tmp_path / "one" / "step.json").read_text())
    del stamp["made_from"]["one.new"]
    (tmp_path / "one" / "step.json").write_text(json.dumps(stamp))
    run_steps(tmp_path, steps(ran, one=1))
    assert ran == ["one"]
