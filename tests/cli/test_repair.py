"""`cac-align repair` and `best-of-n --repair` on the shipped miniature, and what they refuse."""

import json
import os
import re

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4

PROMPT = "a cyan ball falls on grass"
ONE_VERDICT = ["--set", "reward.components.cac.tta=[as_is]"]


def test_best_of_n_hands_its_winner_to_repair_and_repair_resumes(tmp_path, capsys):
    """Seed 0 of this prompt: the shipped judge sees the ball melt. Whatever it says after, the log and the page agree."""
    (tmp_path / "p.txt").write_text(PROMPT + "\n")
    best = tmp_path / "best"
    recipe = tmp_path / "repair.yaml"
    recipe.write_text("repair: {attempts: 1}\nreward: {components: {cac: {kind: cac, tta: [as_is]}}}\n")
    assert (
        main(
            ["best-of-n", "--prompts", str(tmp_path / "p.txt"), "--n", "1", "--out", str(best), "--repair", str(recipe)]
        )
        == 0
    )
    (result,) = [json.loads(line) for line in (best / "repair" / "repairs.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (best / "repair" / "attempts.jsonl").read_text().splitlines()]
    assert result["prompt"] == PROMPT and result["before"] is not None and rows[0]["attempt"] == 0
    assert result["costs"]["judge_calls"] == sum(row["costs"]["judge_calls"] for row in rows) > 0
    assert result["costs"]["judge_tokens"] > 0
    assert result["costs"]["clips"] == len(rows) - 1 == result["attempts"]
    assert os.path.exists(result["path"]) and (result["path"] == result["video"]) == (
        result["status"] not in ("mended", "improved")
    )
    page = (best / "repair" / "repair.html").read_text()
    assert "Domain: miniature" in page
    assert PROMPT in page and page.count("<video") == (3 if result["attempts"] else 1)
    capsys.readouterr()
    assert (
        main(["repair", "--selection", str(best), "--out", str(best / "repair"), "--recipe", str(recipe), "--json"])
        == 0
    )
    again = json.loads(capsys.readouterr().out)
    kept = {key: value for key, value in again.items() if key not in ("video", "path")}  # the same bytes in chosen/
    assert kept == {key: value for key, value in result.items() if key not in ("video", "path")}
    assert len((best / "repair" / "attempts.jsonl").read_text().splitlines()) == len(rows)


@pytest.fixture
def clip(tmp_path):
    write_mp4(tmp_path / "clip.mp4", np.zeros((17, 64, 64, 3), np.uint8), 16)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "pass either VIDEO"),
        (["--selection", "{folder}"], "no such folder"),
        (["{clip}"], "--prompt"),
        (["{clip}", "--prompt", PROMPT, "--set", "repair.strength=1.5"], r"strength is a noise level in \(0, 1\]"),
        (["{clip}", "--prompt", PROMPT, "--set", "repair.strenght=0.9"], "did you mean 'strength'"),
        (["{clip}", "--prompt", PROMPT, "--set", "repair.windows=first"], "'all' or 'worst'"),
        (["{clip}", "--prompt", PROMPT, "--set", "backend=paint"], "resample or vace"),
        (["{clip}", "--prompt", PROMPT, "--set", "generator.height=64"], "would not be read"),
        (["{folder}/none.mp4", "--prompt", PROMPT], "none.mp4"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(arguments, message, clip, tmp_path, capsys):
    given = [each.format(clip=clip, folder=tmp_path) for each in arguments]
    assert main(["repair", *given, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_video_outside_the_judges_domain_is_unjudged_and_stays(tmp_path, capsys):
    write_mp4(tmp_path / "long.mp4", np.zeros((33, 64, 64, 3), np.uint8), 16)
    before = (tmp_path / "long.mp4").read_bytes()
    assert (
        main(["repair", str(tmp_path / "long.mp4"), "--prompt", PROMPT, "--out", str(tmp_path / "out"), *ONE_VERDICT])
        == 1
    )
    captured = capsys.readouterr()
    assert captured.out.startswith("unjudged") and "1 of 1 videos could not be judged" in captured.err
    assert (tmp_path / "long.mp4").read_bytes() == before
