"""The oracle's table over folders of clips: the counts by hand, and real clips whose truth is known."""

import json
import math

import pytest

from cac_align.core.encoding import write_mp4
from cac_align.miniature.oracle.oracle import OracleVerdict
from cac_align.miniature.world.settings import STUDIO
from cac_align.miniature.world.world import make_clip
from research.experiments.oracle_figures import folders_of, main, row, verdicts_of


def verdict(*types, px=10.0, **missed):
    follows = {"entity": True, "colour": True, "motion": True} | missed
    return OracleVerdict("abnormal" if types else "normal", types, None, follows, px, "")


def test_a_row_by_hand():
    seen = [
        verdict(),
        verdict("Motion Anomalies", px=20.0),
        verdict("Motion Anomalies", "Object Distortion"),
        verdict(motion=False),
    ]
    cells = [cell.strip() for cell in row("a", seen, 2).strip("|").split("|")]
    assert cells[:2] == ["a", "4"] and cells[2].startswith("0.500 [")
    assert cells[3:] == ["Motion Anomalies 2, Object Distortion 1", "12.5", "0.750", "motion 1", "2"]


def test_an_entity_that_was_never_seen_has_no_motion():
    lost = verdict("Motion Anomalies", px=math.nan, entity=False)
    moved = [row("a", seen, 0).strip("|").split("|")[4].strip() for seen in ([lost, verdict(px=12.0)], [lost])]
    assert moved == ["12.0", "–"]


def test_without_a_verdict_there_is_no_rate():
    assert row("a", [], 3) == "| a | 0 | – | – | – | – | – | 3 |"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's evaluation videos: normal ones at step 0; at step 10 broken ones, a broken file and one that no listing names."""
    out = tmp_path_factory.mktemp("run")
    for step, anomalous in ((0, False), (10, True)):
        folder = out / "eval" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        clips = [make_clip(seed, STUDIO, anomalous=anomalous) for seed in range(7_000, 7_006)]
        for n, clip in enumerate(clips):
            write_mp4(folder / f"{n}.mp4", clip.pixels, 16)
        lines = [json.dumps({"video": f"{n}.mp4", "prompt": clip.prompt, "seed": n}) for n, clip in enumerate(clips)]
        (folder / "prompts.jsonl").write_text("\n".join(lines[: 5 if anomalous else 6]) + "\n")
    (out / "eval" / "step-000010" / "torn.mp4").write_bytes(b"no video")
    return out


def test_a_run_is_read_step_by_step_and_what_cannot_be_judged_is_counted(run, capsys):
    steps = folders_of(run)
    assert [step.name for step in steps] == ["step-000000", "step-000010"] and folders_of(steps[0]) == [steps[0]]
    (sound, none), (broken, two) = map(verdicts_of, steps)
    assert len(sound) == 6 and none == 0 and len(broken) == 5 and two == 2
    assert (
        sum(seen.status == "abnormal" for seen in sound) <= 1 and sum(seen.status == "abnormal" for seen in broken) >= 4
    )
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith(f"| {run.name}/eval/step-000010 | 5 | ") and printed[-1].endswith("| 2 |")


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="expected a folder of videos"):
        main([str(tmp_path / "nowhere")])
    assert main([]) == 2 and "RUN_OR_FOLDER" in capsys.readouterr().err
