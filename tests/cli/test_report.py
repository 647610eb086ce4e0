"""`cac-align report`: where the page goes, and where stored scores are found."""

import json

import numpy as np

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger
from tests.cli.test_cli import Brightness


def clips(folder, levels):
    folder.mkdir()
    for number, level in enumerate(levels):
        write_mp4(folder / f"{number}.mp4", np.full((4, 16, 16, 3), level, np.uint8), 16)
    rows = [{"video": f"{number}.mp4", "prompt": f"p{number}", "seed": 0} for number in range(len(levels))]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def score(folder, ledger):
    videos = [Video.open(path) for path in sorted(folder.glob("*.mp4"))]
    cached(Brightness(), Ledger(ledger))([f"p{number}" for number in range(len(videos))], videos)


def test_a_runs_pages_go_into_its_folder_and_none_is_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for run in ("one", "two"):
        score(clips(tmp_path / run, (50, 90)), tmp_path / run / "ledger.jsonl")
    (tmp_path / "one" / "report.html").write_text("what best-of-n wrote")
    assert main(["report", "one"]) == main(["report", "two"]) == main(["report", "two"]) == 0
    assert capsys.readouterr().out.split() == ["one/report-2.html", "two/report.html", "two/report-2.html"]
    assert (tmp_path / "one" / "report.html").read_text() == "what best-of-n wrote"


def test_ledgers_beside_copied_folders_are_found_and_else_the_places_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [clips(tmp_path / "before", (50, 90)), clips(tmp_path / "after", (120, 150))]
    assert main(["report", "before", "after"]) == 0
    printed = capsys.readouterr()
    assert "no scores" in printed.err and str(tmp_path / "before") in printed.err and "--reward" in printed.err
    for folder in folders:
        score(folder, tmp_path / f"{folder.name}.ledger.jsonl")
    assert main(["report", "before", "after"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out == "report-2.html\n"
    assert "brightness" in (tmp_path / "report-2.html").read_text()
