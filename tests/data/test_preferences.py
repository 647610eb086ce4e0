"""Preference pairs of a repair run: what was accepted, against what it was made from, with the mask."""

import json

import numpy as np

from cac_align.cli.main import main
from cac_align.core.video import Video
from cac_align.generation.latent_masks import LatentGrid, pixel_mask
from cac_align.generation.repair.settings import RepairSettings
from tests.generation.repair.test_loop import GREY, WHITE, Painter, run, spotted
from tests.support.tiny_flow import every


def test_accepted_repairs_are_pairs_that_differ_inside_the_mask_alone(tmp_path, capsys):
    settings = RepairSettings(windows="worst", grow=0)
    videos = [spotted(tmp_path / "two.mp4", (0, 0), (1, 1)), spotted(tmp_path / "fails.mp4", (0, 1))]
    run(tmp_path / "rep", videos[:1], Painter([GREY]), settings=settings)
    run(tmp_path / "rep", videos[1:], Painter([WHITE], provenance={"repair": "white"}), settings=settings)
    out = tmp_path / "pairs" / "preferences.jsonl"
    assert main(["data", "export", "preferences", str(tmp_path / "rep"), str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    first, second = [
        json.loads(line) for line in out.read_text().splitlines()
    ]  # two windows mended, one after the other
    assert (out.parent / first["rejected"]).resolve() == (tmp_path / "two.mp4").resolve()
    assert second["rejected"] == first["chosen"]  # the second one was made from the first
    assert first["rejected_score"] < first["chosen_score"] == second["rejected_score"] < second["chosen_score"]
    for row in (first, second):
        chosen, rejected = (every(Video.open(out.parent / row[name])).astype(int) for name in ("chosen", "rejected"))
        mask = np.load(out.parent / row["mask"])
        inside = pixel_mask(mask["weights"], LatentGrid(9, 64, 64, *map(int, mask["strides"])))
        assert abs(chosen - rejected)[~inside].mean() < 1 < abs(chosen - rejected)[inside].mean()
        assert row["prompt"] == "a grey field" and row["windows"] == [{"start_s": 0.375, "end_s": 0.625}]


def test_a_pair_whose_file_is_gone_is_left_out_by_name(tmp_path, capsys):
    run(tmp_path / "rep", [spotted(tmp_path / "one.mp4", (0, 0))], Painter([GREY]))
    (tmp_path / "one.mp4").unlink()
    assert main(["data", "export", "preferences", str(tmp_path / "rep"), str(tmp_path / "p.jsonl")]) == 1
    assert "one.mp4 is gone" in capsys.readouterr().err and (tmp_path / "p.jsonl").read_text() == ""


def test_a_folder_that_is_no_repair_run_is_refused(tmp_path, capsys):
    assert main(["data", "export", "preferences", str(tmp_path), str(tmp_path / "p.jsonl")]) == 2
    assert "no attempts.jsonl" in capsys.readouterr().err


def test_the_mask_is_the_one_that_was_used(tmp_path):
    painter = Painter([GREY])
    run(tmp_path / "rep", [spotted(tmp_path / "one.mp4", (0, 0))], painter)
    (stored,) = (tmp_path / "rep" / "masks").glob("*.npz")
    assert np.array_equal(np.load(stored)["weights"], painter.made[0].weights)
