"""Table 2 in miniature: the table by hand, the curves, the picture."""

import fcntl
import json
import threading
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from cac_align.align.recipe import AlignRecipe
from cac_align.align.sampling.prompts import read_training_prompts
from cac_align.config import read_recipe
from research.experiments import curves, table2
from research.experiments.table2 import NOISES, TRAINED, Judged, judged, prompts_judged, table

ROOT = Path(__file__).parents[2]


def clips(pattern, motion=10.0):
    return [Judged(f"prompt {at}", mark == "x", mark != "!", motion) for at, mark in enumerate(pattern)]


def test_the_table_by_hand():
    found = {"base": [clips("xx..")], "ours": [clips("x...", 9.0), clips("....", 8.0)]}
    head, _, base, ours = table(found).splitlines()
    assert head.startswith("| model | seeds |")
    assert base == "| base | 1 | 0.500 | – | 10.0 | 1.000 |"
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[:3] == ["ours", "2", "0.125 ± 0.177"]  # 1/4 and 0: mean 1/8, sd 0.25/sqrt(2)
    assert cells[3].startswith("-0.375 [")  # pairs: 0.5 - 1, 0 - 1, 0, 0
    assert cells[4:] == ["8.5 ± 0.7", "1.000 ± 0.000"]


def test_other_prompts_and_a_missing_base_are_refused():
    with pytest.raises(ValueError, match="needs the base"):
        table({"ours": [clips("x")]})
    with pytest.raises(ValueError, match="ours was judged on other prompts"):
        table({"base": [clips("x.")], "ours": [clips("x")]})


def test_clips_of_one_prompt_go_together():
    def run(labels):
        return [Judged(prompt, mark == "x", True, 1.0) for prompt, mark in zip("aab", labels, strict=True)]

    *_, ours = table({"base": [run("xxx")], "ours": [run("..x")]}).splitlines()
    # By hand: prompt a −1 (two clips), prompt b 0: −1/2, not −2/3; of two prompts a bootstrap can draw either alone.
    assert "-0.500 [-1.000, 0.000]" in ours


def test_the_prompts_are_those_that_no_recipe_trains_on(tmp_path):
    asked = prompts_judged()
    assert len(asked) == 76 * NOISES and asked[:76] == asked[76:152] and len(set(asked)) == 76
    for path in ("miniature", "miniature_ur", "miniature_nft"):
        recipe = read_recipe(AlignRecipe, ROOT / "recipes" / "align" / f"{path}.yaml")
        assert range(recipe.prompt_first, recipe.prompt_first + recipe.prompt_count) == TRAINED
        trained = set(read_training_prompts(recipe.prompts, recipe.prompt_first, recipe.prompt_count, note=False))
        assert len(trained) == 140 and not trained & set(asked)
    (tmp_path / "base.jsonl").write_text(json.dumps(Judged(sorted(trained)[0], True, True, 1.0).__dict__) + "\n")
    with pytest.raises(ValueError, match="base.jsonl: holds verdicts on other prompts"):
        judged("base", None, tmp_path)


def test_a_second_call_on_the_same_folder_waits_and_judges_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(table2.Wan, "load", lambda *_, **__: pytest.fail("judges what another call is judging"))
    asked, told = prompts_judged(), []
    rows = [json.dumps(Judged(prompt, False, True, 1.0).__dict__) + "\n" for prompt in asked]
    with (tmp_path / "base.jsonl").open("w") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)  # the first call, half-way
        lines.writelines(rows[:100])
        lines.flush()
        second = threading.Thread(target=lambda: told.append(judged("base", None, tmp_path)), daemon=True)
        second.start()
        second.join(0.5)
        assert second.is_alive()
        lines.writelines(rows[100:])
    second.join(30)
    assert [row.prompt for row in told[0]] == asked


def log_of(tmp_path, values):
    path = tmp_path / "log.jsonl"
    rows = [
        {"step": at, "normal_flow_speed": 2.0}
        if value is None
        else {"step": at, "score": value, "normal_flow_speed": 2.0}
        for at, value in enumerate(values)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_curves_are_means_of_the_last_five_scored_steps(tmp_path):
    steps, means = curves.running_means(log_of(tmp_path, [1, 2, None, 3, 4, 5, 12]), "score")
    assert steps.tolist() == [1, 2, 4, 5, 6, 7]  # step 3 had no score
    assert means == pytest.approx([1, 1.5, 2, 2.5, 3, np.mean([2, 3, 4, 5, 12])])


def test_the_picture_names_every_model_and_is_the_same_twice(tmp_path):
    log = log_of(tmp_path, [0.5, 0.6, 0.7])
    broken = {"base": [[True, False]], "ours": [[False, False], [True, False]]}
    for name in ("one.svg", "two.svg"):
        curves.draw(broken, {"ours": [log, log]}, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    ET.fromstring(text)
    assert all(
        f"<!-- {word} -->" in text
        for word in ("base", "ours", "anomaly rate (oracle)", "normal-flow speed against step 1")
    )
