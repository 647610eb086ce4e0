"""Records for the stages that end in the judge that ships: they keep the conventions, and say where the entity is."""

import json
from dataclasses import replace

import pytest

from cac_align.core.video import Video
from cac_align.data.records import read_records
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.synthesise import synthesise
from cac_align.data.validate import validate
from cac_align.miniature.oracle.oracle import judge_clip
from cac_align.miniature.teacher.ground_truth import GroundTruth
from research.training import records
from research.training.generated import HELD_OUT


def test_rendered_and_drawn_clips_become_records_that_say_what_is_so(tmp_path, capsys):
    asked = records.Clips(out=str(tmp_path / "made"), rendered=4, drawn=24)
    path = records.make(asked)
    assert not validate(path).violations
    told = list(read_records(path))
    rendered, drawn = told[:4], told[4:]
    assert [record.status for record in rendered] == ["normal", "abnormal"] * 2
    assert f"kept {len(drawn)} of 24 drawn clips" in capsys.readouterr().err
    assert len(drawn) >= 2 and [record.status for record in drawn] == ["normal", "abnormal"] * (len(drawn) // 2)
    for record in drawn:
        assert (
            0 <= record.extra["noise"] - asked.seed < asked.drawn and len(record.extra["places"]) == record.num_frames
        )
    said = [judge_clip(record.prompt, Video.open(path.parent / record.video)).status for record in drawn]
    assert [one == record.status for one, record in zip(said, drawn, strict=True)].count(False) <= len(drawn) // 5, (
        "the file is compressed; hardly any verdict hangs on that"
    )

    batch = path.parent / "drawn" / "000000.jsonl"
    before, whole = batch.stat().st_mtime_ns, path.read_bytes()
    path.unlink()
    (path.parent / "drawn" / "000020.jsonl").unlink()
    assert records.make(asked).read_bytes() == whole and batch.stat().st_mtime_ns == before

    with pytest.raises(ValueError, match="seed"):
        records.make(replace(asked, seed=asked.seed + 100))  # its clips would be those of the former noise

    synthesise(
        drawn,
        path.parent,
        GroundTruth(drawn),
        tmp_path / "chains",
        Synthesis(wording="brief", tasks=["scan"], workers=1),
    )
    for line in (tmp_path / "chains" / "chains.jsonl").read_text().splitlines():
        row = json.loads(line)
        (of,) = (record for record in drawn if record.id == row["record"])
        assert f"Frame 1: {of.extra['places'][4]} " in json.loads(row["answer"])["COT"], (
            "where the oracle saw it, at 4 of 16 fps"
        )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"seed": HELD_OUT.start - 1, "drawn": 2}, "held out"),
        ({"first_seed": 999_999}, "seeds of training"),
        ({"rendered": 3}, "an even number"),
    ],
)
def test_clips_that_others_are_measured_on_are_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        records.Clips(**wrong)
