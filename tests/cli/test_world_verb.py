"""`cac-align world`: what it makes by default is what the shipped judges know; other worlds are asked for by name."""

import pytest

from cac_align.cac.judge_settings import FILE_NAME
from cac_align.cli.main import main
from cac_align.core.video import Video
from cac_align.core.weights import shipped
from cac_align.data.records import read_records
from cac_align.rewards.domain import read_domain


def outside(folder):
    """What of each clip lies outside the domain of the shipped judge; None for a clip inside it."""
    domain = read_domain(shipped("cac"))
    assert domain is not None, FILE_NAME
    records = list(read_records(folder / "records.jsonl"))
    return [domain.mismatch(record.prompt, Video.open(folder / record.video)) for record in records]


def test_by_default_every_clip_lies_inside_the_domain_of_the_shipped_judge(tmp_path, capsys):
    assert main(["world", "--n", "8", "--seed", "1500000", "--out", str(tmp_path)]) == 0
    assert outside(tmp_path) == [None] * 8
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("world", ["studio", "full"])
def test_a_world_that_the_judge_does_not_know_is_made_when_named_and_says_so(world, tmp_path, capsys):
    assert main(["world", "--n", "2", "--seed", "1500000", "--world", world, "--out", str(tmp_path)]) == 0
    assert all(outside(tmp_path))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(said) == 1 and world in said[0] and "playground" in said[0]
