"""Records survive COCO unchanged; what COCO files lack is named, not guessed; several raters become
one record or none.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cac_align.cli.main import main
from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.convert import from_coco, merge_ratings, to_coco
from cac_align.data.records import Record, read_records, write_records
from cac_align.data.validate import validate
from cac_align.miniature.world.settings import World
from cac_align.miniature.world.world import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(4, 1_410_000, tmp_path_factory.mktemp("world"), World(num_frames=(17,), length_weights=()))


def written(path, coco):
    path.write_text(json.dumps(coco))
    return path


def test_export_and_import_give_the_same_records(world, tmp_path):
    coco = tmp_path / "sub" / "coco.json"
    assert main(["data", "export", "coco", str(world), str(coco)]) == 0
    assert main(["data", "import", "coco", str(coco), str(world.with_name("back.jsonl"))]) == 0
    before, after = list(read_records(world)), list(read_records(world.with_name("back.jsonl")))
    assert after == before  # ids, videos, prompts, windows, boxes to the last thousandth
    assert validate(world.with_name("back.jsonl")).violations == ()


def plain(world, **more):
    """A file as other tools write it: videos, images, boxes, no tracks. Box in pixels of a 64-px
    frame.
    """
    record = next(iter(read_records(world)))
    images = [{"id": n, "video_id": 7, "frame_index": frame} for n, frame in enumerate((4, 6, 8, 14))]
    boxes = [{"id": n, "image_id": n, "category_id": 3, "bbox": [16, 32, 16, 8]} for n in range(4)]
    made = {
        "videos": [{"id": 7, "file_name": str(world.parent / record.video)}],
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 3, "name": "melting"}],
    }
    return {**made, **more}


LABELS = {"melting": "Object Distortion"}


def test_boxes_without_tracks_become_one_anomaly_per_run_of_frames(world, tmp_path):
    (record,) = from_coco(written(tmp_path / "c.json", plain(world)), labels=LABELS).records
    first, second = record.anomalies  # every second frame is annotated: 4, 6, 8 are a run, 14 another
    assert first.window == Window(4 / 16, 8 / 16) and second.window == Window(14 / 16, 14 / 16)
    assert first.boxes == {frame: (Box(250, 500, 500, 625),) for frame in (4, 6, 8)}
    assert record.status == "abnormal" and (record.num_frames, record.fps) == (17, 16.0)


def test_what_a_coco_file_lacks_is_named(world, tmp_path):
    path = tmp_path / "c.json"
    with pytest.raises(ValueError, match="unknown category 'melting'; map it to a type"):
        from_coco(written(path, plain(world)))
    with pytest.raises(ValueError, match="none of 1 videos became a record.*all its categories are dropped"):
        from_coco(written(path, plain(world)), labels={"melting": None})
    with pytest.raises(ValueError, match="image_id 9 of id 0 points nowhere"):
        broken = [{"id": 0, "image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]}]
        from_coco(written(path, plain(world, annotations=broken)), labels=LABELS)
    with pytest.raises(ValueError, match=r"annotations\[0\]: missing \['bbox'\]"):
        from_coco(written(path, plain(world, annotations=[{"id": 0, "image_id": 0, "category_id": 3}])), labels=LABELS)
    with pytest.raises(ValueError, match="expected a list under 'videos', found annotations, categories, images"):
        made = plain(world)
        del made["videos"]
        from_coco(written(path, made), labels=LABELS)
    outside = [{"id": 5, "image_id": 0, "category_id": 3, "bbox": [60, 0, 16, 8]}]
    with pytest.raises(ValueError, match="annotation 5: bbox .* does not lie in a frame of 64x64 px"):
        from_coco(written(path, plain(world, annotations=outside)), labels=LABELS)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as COCO JSON"):
        from_coco(path)


def test_a_video_without_boxes_is_normal_only_if_somebody_says_so(world, tmp_path):
    made = plain(world)
    made["videos"].append({"id": 8, "file_name": str(world.parent / list(read_records(world))[2].video)})
    path = written(tmp_path / "c.json", made)
    found = from_coco(path, labels=LABELS)
    assert len(found.records) == 1 and "whether it is normal is not known" in next(iter(found.left_out.values()))
    assert [record.status for record in from_coco(path, labels=LABELS, unannotated="normal").records] == [
        "abnormal",
        "normal",
    ]
    made["videos"][1]["status"] = "abnormal"
    assert "contradiction" in next(iter(from_coco(written(path, made), labels=LABELS).left_out.values()))
    made["videos"][1] = {"id": 8, "file_name": "gone.mp4"}
    found = from_coco(written(path, made), labels=LABELS)
    assert found.left_out == {"gone.mp4": f"video missing: expected {tmp_path / 'gone.mp4'}"}
    assert found.summary() == "1 records (1 abnormal, 0 normal), 1 left out (1 video missing)"


def rating(rater, status, review="draft", video="a.mp4", start=0.0):
    anomalies = (Anomaly("Object Distortion", Window(start, 0.5), "melts"),) if status == "abnormal" else ()
    return Record(f"g/{video}#{rater}", video, "p", 16.0, 17, 64, 64, status, anomalies, rater, review)


def test_raters_who_agree_make_one_record_and_others_none():
    ratings = [
        rating("ann", "abnormal", start=0.0),
        rating("bob", "abnormal", "accepted", start=0.25),
        rating("cid", "normal", "returned"),
        rating("ann", "normal", video="b.mp4"),
        rating("bob", "abnormal", video="b.mp4"),
        rating("ann", "normal", "returned", video="c.mp4"),
    ]
    found = merge_ratings(ratings, review="accepted")
    (record,) = found.records
    # bob's annotation was accepted, ann's is a draft; cid's was returned and does not count
    assert (record.id, record.annotator, record.review) == ("g/a.mp4", "bob", "accepted")
    assert record.anomalies[0].window.start_s == 0.25 and record.extra["raters"] == ["ann", "bob"]
    assert found.left_out["b.mp4"] == "disagreement: 1 of 2 raters call it abnormal"
    assert found.left_out["c.mp4"].startswith("returned")


def test_the_rating_pages_file_is_imported_beside_its_videos(world, tmp_path, capsys):
    own = [replace(record, annotator="ann", id=f"g/{record.id}#ann", review="draft") for record in read_records(world)]
    ratings = world.with_name("ratings.jsonl")
    write_records(ratings, own)
    with open(ratings, "a") as file:
        file.write('{"half": \n')
    out = tmp_path / "out" / "records.jsonl"
    assert main(["data", "import", "rating", str(world.parent), str(out), "--review", "accepted"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(out) and "4 records (2 abnormal, 2 normal)" in captured.err
    assert "ratings.jsonl:5" in captured.err  # the half-written line is named, not fatal
    records = list(read_records(out))
    assert {record.review for record in records} == {"accepted"} and all(Path(r.video).is_absolute() for r in records)
    assert validate(out).violations == ()


def test_exports_of_records_with_several_boxes_and_no_window():
    anomaly = Anomaly("Character Anomalies", None, "garbled", boxes={3: (Box(0, 0, 10, 10), Box(5, 5, 20, 20))})
    coco = to_coco([Record("r", "r.mp4", "p", 16.0, 17, 64, 64, "abnormal", (anomaly,))])
    assert coco["tracks"][0]["window"] is None and [row["track_id"] for row in coco["annotations"]] == [1, 1]
    assert coco["annotations"][0]["bbox"] == pytest.approx([0, 0, 0.64, 0.64]) and len(coco["images"]) == 1


def test_a_known_data_set_is_imported_and_its_doubts_are_said(world, tmp_path, capsys):
    names = [Path(record.video).name for record in read_records(world)]
    error = {"type": "Appearance/Disappearance", "explanation": "it vanishes", "start": 0.25, "end": 0.5}
    (world.parent / "videos" / "veo3").mkdir()
    (world.parent / "videos" / names[1]).rename(world.parent / "videos" / "veo3" / "sid_001.mp4")
    row = {"video_from": "veo3", "prompt": "a box"}
    listed = [{**row, "pid": "sid_001", "errors": [error]}, {**row, "pid": "sid_002", "errors": []}]
    source = tmp_path / "metadata.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in listed))
    out = world.with_name("spotlight.jsonl")
    assert main(["data", "import", "spotlight", str(source), str(out), "--videos", str(world.parent / "videos")]) == 0
    told = capsys.readouterr().err
    assert "not verified against the real files" in told and "left out: veo3/sid_002.mp4: video missing" in told
    (record,) = read_records(out)
    assert (
        record.video == "videos/veo3/sid_001.mp4"
    )  # below the records' folder: relative, so that the folder can be moved
    assert record.anomalies[0].type == "Motion Anomalies" and record.anomalies[0].window == Window(0.25, 0.5)
    assert [violation.rule for violation in validate(out).violations] == ["boxed"]
    assert validate(out, skip=["boxed"]).violations == ()


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["import", "geneva", "a.json", "out.jsonl"], "geneva needs --videos"),
        (["import", "broken-videos", "folder", "out.jsonl"], "broken-videos needs --masks"),
        (["import", "coco", "a.json", "out.jsonl", "--label", "melting"], "--label expects THEIRS=OURS"),
        (["import", "coco", "nowhere.json", "out.jsonl"], "nowhere.json: cannot be read as COCO JSON"),
        (["validate", "nowhere.jsonl"], "nowhere.jsonl: cannot be read as records"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", *arguments]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()
