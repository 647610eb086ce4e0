"""Best-of-N split over processes: two of them fill one folder and end with what one gives."""

import json
import subprocess
import sys

import pytest

from tests.support.two_processes import run_two


@pytest.mark.slow
def test_two_processes_choose_what_one_chooses(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(
        "a red ball rolls to the right on grass\na blue box falls on sand\na green ball rests at night\n"
    )

    def command(name):
        settings = [
            "--set",
            "n=2",
            "--set",
            "reward.allow_out_of_domain=true",
            "--set",
            "generator.model=cac_align.miniature.world.world:Renderer",
        ]
        return ["-m", "cac_align.cli", "best-of-n", "--prompts", str(prompts), "--out", str(tmp_path / name), *settings]

    done = run_two(command("two"), {})
    assert done.returncode == 0, done.stderr[-3000:]
    subprocess.run([sys.executable, *command("one")], check=True, capture_output=True)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "selection.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        assert (a["prompt"], a["chosen"], a["seeds"]) == (b["prompt"], b["chosen"], b["seeds"])
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)
    shares = [
        {json.loads(line)["prompt"] for line in (tmp_path / "two" / f"selection-{rank}.jsonl").read_text().splitlines()}
        for rank in (0, 1)
    ]
    assert [len(share) for share in shares] == [2, 1] and not shares[0] & shares[1]
    assert done.stdout.count("candidate") >= 3 and (tmp_path / "two" / "report.html").is_file()
