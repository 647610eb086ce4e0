"""External sets: small files in exactly each format, written here; unknown fields and labels are
refused by name.
"""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import ANOMALY_TYPES, Box, Window
from cac_align.core.skyra import BY_REGION, SKYRA_LABELS
from cac_align.data.external import balanced, broken_videos, geneva, spotlight, videophy2, vif_cot
from cac_align.data.records import LoadedRecords, Record, read_records, write_records

FPS = 8


def clip(path, frames=24, width=64, height=48, level=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, np.full((frames, height, width, 3), level, np.uint8), FPS)
    return path


def test_balanced_is_seeded_and_does_not_depend_on_the_order():
    from cac_align.core.judgement import Anomaly

    def record(name, bad):
        anomalies = (Anomaly("Motion Anomalies", None),) if bad else ()
        return Record(name, name, "", 8, 8, 4, 4, "abnormal" if bad else "normal", anomalies)

    rows = [record(f"v{i:03}", i % 3 == 0) for i in range(90)]
    drawn = balanced(rows, per_class=10, seed=7)
    assert [r.status for r in drawn].count("normal") == 10 and len(drawn) == 20
    assert balanced(rows[::-1], per_class=10, seed=7) == drawn != balanced(rows, per_class=10, seed=8)
    assert len(balanced(rows)) == 60
    with pytest.raises(ValueError, match="needs 40 of each class"):
        balanced(rows, per_class=40)


# ---- ViF-CoT-4K ---------------------------------------------------------------------------------------------------

FAKE = (
    "<think>Describe the clip. The man's left hand merges with the cup here: <type>Structure Anomaly</type> in "
    "<t>[0.5, 1.0]</t> at "
    "<bbox>[0.1, 0.2, 0.5, 0.6]</bbox>. Then a lamp vanishes. <type>Abnormal Object Disappearance</type> in "
    "<t>[1.0, 2.0]</t> at "
    "<bbox>[0, 0, 0, 0]</bbox>. Soft edges, <type>Unnatural Blur</type> in <t>[0, 2.9]</t> at "
    "<bbox>[0,0,1,1]</bbox>.</think>"
    "<answer>Fake</answer>"
)
REAL = "<think>I checked <t>[0.5, 1.0]</t> at <bbox>[0.1, 0.2, 0.5, 0.6]</bbox>; fine.</think><answer>Real</answer>"
BLUR = "<think><type>Unnatural Blur</type> in <t>[0, 1]</t> at <bbox>[0,0,1,1]</bbox></think><answer>Fake</answer>"


def vif_row(place, text, style="messages"):
    images = [f"/any/where/parsed_frames/{place}/{n}.png" for n in (1, 2)]
    if style == "messages":
        turns = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": text},
        ]
    else:
        turns = [{"from": "human", "value": "u"}, {"from": "gpt", "value": text}]
    return {style: turns, "images": images}


def vif(tmp_path, rows, **settings):
    path = tmp_path / "ladm_sft.json"
    path.write_text(json.dumps(rows))
    return vif_cot.load(path, videos=tmp_path / "videos", **settings)


def test_vif_cot_findings_become_windows_boxes_and_types(tmp_path):
    for place in ("kinetics/fake/Gen/a-0", "kinetics/real/a-0", "kinetics/fake/Gen/b"):
        clip(tmp_path / "videos" / f"{place}.mp4")
    rows = [
        vif_row("kinetics/fake/Gen/a-0", FAKE),
        vif_row("kinetics/real/a-0", REAL, "conversations"),
        vif_row("kinetics/fake/Gen/b", BLUR),
        vif_row("kinetics/fake/Gen/gone", FAKE),
        vif_row("kinetics/real/lies", FAKE),
    ]
    found = vif(tmp_path, rows)
    fake, real = found.records
    assert (fake.status, real.status, fake.id) == ("abnormal", "normal", "kinetics/fake/Gen/a-0")
    hand, lamp = fake.anomalies
    assert (hand.type, lamp.type) == ("Human Distortion", "Motion Anomalies")
    assert (
        hand.window == Window(0.5, 1.0)
        and set(hand.boxes) == {4, 5, 6, 7, 8}
        and hand.boxes[4] == (Box(100, 200, 500, 600),)
    )
    assert lamp.boxes == {} and "The man's left hand merges" in hand.reason and "<" not in hand.reason
    assert "lamp vanishes" in lamp.reason and "hand" not in lamp.reason
    assert (fake.fps, fake.num_frames, fake.extra["dropped"], fake.extra["generator"]) == (FPS, 24, 1, "Gen")
    assert found.left_out["kinetics/fake/Gen/b"].startswith("no anomaly of ours")
    assert found.left_out["kinetics/fake/Gen/gone"].startswith("video missing")
    assert found.left_out["kinetics/real/lies"].startswith("contradiction")
    assert "2 records (1 abnormal, 1 normal), 3 left out" in found.summary() and found.unverified
    write_records(tmp_path / "records.jsonl", found.records)
    assert tuple(read_records(tmp_path / "records.jsonl")) == found.records


def test_vif_cot_open_choices_are_settings(tmp_path):
    clip(tmp_path / "videos" / "k/fake/g/a.mp4")
    rows = [vif_row("k/fake/g/a", FAKE)]
    as_object = vif(tmp_path, rows, table=vif_cot.labels(appearance="object")).records[0]
    assert [a.type for a in as_object.anomalies] == ["Human Distortion", "Object Distortion"]
    assert vif_cot.labels(lighting="physics")[vif_cot.LIGHTING] == "Physical Violations" and len(SKYRA_LABELS) == 23
    assert set(SKYRA_LABELS.values()) == {*ANOMALY_TYPES, None, BY_REGION}
    cup = vif(tmp_path, [vif_row("k/fake/g/a", FAKE.replace("man's left hand", "table's edge"))]).records[0]
    assert cup.anomalies[0].type == "Object Distortion"
    apart = FAKE.replace("cup here: <type>", "cup. <type>")  # the finding stands as a sentence of its own
    assert vif(tmp_path, [vif_row("k/fake/g/a", apart)]).records[0].anomalies[0].type == "Human Distortion"
    pixels = vif(
        tmp_path, [vif_row("k/fake/g/a", FAKE.replace("0.1, 0.2, 0.5, 0.6", "16, 12, 32, 24"))], box_units="pixel"
    )
    assert pixels.records[0].anomalies[0].boxes[4] == (Box(250, 250, 500, 500),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"score": 1}, r"unknown fields \['score'\]"),
        (lambda row: row | {"images": ["frames/1.png"]}, "expected an image under parsed_frames"),
        (lambda row: vif_row("k/fake/g/a", FAKE.replace("Structure", "Strucure")), "did you mean 'Structure Anomaly'"),
        (lambda row: vif_row("k/fake/g/a", FAKE.replace("0.5, 0.6", "50, 60")), "is box_units right"),
        (
            lambda row: vif_row("k/fake/g/a", FAKE.replace("[0.5, 1.0]", "[9.5, 9.9]")),
            "does not lie in a video of 3.00 s",
        ),
        (lambda row: vif_row("k/fake/g/a", "no verdict"), "found neither"),
        (lambda row: {**row, "messages": [{"role": "tool", "content": ""}]}, "unknown role 'tool'"),
    ],
)
def test_vif_cot_refuses_what_it_does_not_know(tmp_path, change, message):
    clip(tmp_path / "videos" / "k/fake/g/a.mp4")
    with pytest.raises(ValueError, match=message):
        vif(tmp_path, [change(vif_row("k/fake/g/a", FAKE))])


def test_a_wrong_folder_is_an_error_and_not_an_empty_set(tmp_path):
    with pytest.raises(ValueError, match=r"none of 1 videos became a record.*video missing"):
        vif(tmp_path, [vif_row("k/fake/g/a", FAKE)])


# ---- GeneVA -------------------------------------------------------------------------------------------------------

GENEVA_TABLE = {"hand": "Human Distortion", "flicker": "Motion Anomalies", "style": None}


def geneva_file(tmp_path, rows):
    path = tmp_path / "geneva.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_geneva_boxes_are_grouped_into_anomalies(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        clip(tmp_path / "videos" / name)
    rows = [
        {
            "video": "a.mp4",
            "prompt": "a hand",
            "quality": 3,
            "annotations": [
                {"frame": 4, "bbox": [16, 12, 32, 24], "label": "hand", "description": "six fingers"},
                {"frame": 6, "bbox": [16, 12, 32, 24], "label": "hand", "description": "six fingers"},
                {"frame": 6, "bbox": [0, 0, 8, 8], "label": "hand", "description": "six fingers"},
                {"frame": 9, "bbox": [0, 0, 64, 48], "label": "flicker"},
                {"frame": 9, "bbox": [0, 0, 64, 48], "label": "style"},
            ],
        },
        {"video": "b.mp4", "prompt": "clean", "annotations": []},
        {"video": "c.mp4", "prompt": "style", "annotations": [{"frame": 9, "bbox": [0, 0, 64, 48], "label": "style"}]},
    ]
    found = geneva.load(geneva_file(tmp_path, rows), videos=tmp_path / "videos", table=GENEVA_TABLE)
    first, clean = found.records
    hand, flicker = first.anomalies
    assert (hand.type, hand.reason, hand.window) == ("Human Distortion", "six fingers", Window(0.5, 0.75))
    assert hand.boxes == {4: (Box(250, 250, 500, 500),), 6: (Box(250, 250, 500, 500), Box(0, 0, 125, 167))}
    assert flicker.window == Window(9 / FPS, 9 / FPS) and clean.status == "normal" and first.extra == {"quality": 3}
    assert found.left_out == {"c.mp4": "no anomaly of ours: ['style']"}


def test_geneva_keys_and_box_order_are_settings(tmp_path):
    clip(tmp_path / "videos" / "a.mp4")
    rows = [{"file": "a.mp4", "prompt": "p", "annotations": [{"frame": 1, "bbox": [16, 12, 16, 12], "label": "hand"}]}]
    settings = {
        "videos": tmp_path / "videos",
        "table": GENEVA_TABLE,
        "fields": geneva.Fields(video="file"),
        "first_frame": 1,
    }
    found = geneva.load(geneva_file(tmp_path, rows), boxes="xywh_px", **settings)
    assert found.records[0].anomalies[0].boxes == {0: (Box(250, 250, 500, 500),)}
    with pytest.raises(ValueError, match="is `boxes` right"):
        geneva.load(geneva_file(tmp_path, rows), **settings)
    with pytest.raises(ValueError, match=r"missing fields \['video'\], unknown fields \['file'\]"):
        geneva.load(geneva_file(tmp_path, rows), videos=tmp_path / "videos", table=GENEVA_TABLE)
    with pytest.raises(ValueError, match="unknown label 'hand'"):
        geneva.load(geneva_file(tmp_path, rows), **(settings | {"table": {"hands": "Human Distortion"}}))
    with pytest.raises(ValueError, match="table maps to"):
        geneva.load(geneva_file(tmp_path, rows), **(settings | {"table": {"hand": "Human"}}))
    rows[0]["annotations"][0]["frame"] = 25
    with pytest.raises(ValueError, match="frame 25 is not in a video of 24 frames"):
        geneva.load(geneva_file(tmp_path, rows), boxes="xywh_px", **settings)


# ---- BrokenVideos -------------------------------------------------------------------------------------------------


def masks_of(frames=24, width=64, height=48):
    masks = np.zeros((frames, height, width), np.uint8)
    masks[2:5, 12:24, 16:32] = 255
    masks[4, 36:48, 48:64] = 255  # a second region in the same frame
    masks[6, 12:24, 16:32] = 255  # one frame of gap: the same anomaly
    masks[20:22, 0:24, 0:32] = 255
    masks[10, 40, 5] = 255  # speckle
    return masks


@pytest.mark.parametrize("form", ["png", "video"])
def test_broken_videos_masks_become_boxes(tmp_path, form):
    clip(tmp_path / "videos" / "kling" / "a.mp4")
    clip(tmp_path / "videos" / "b.mp4")
    masks = masks_of()
    if form == "png":
        (tmp_path / "masks/kling/a").mkdir(parents=True)
        for number, mask in enumerate(masks):
            Image.fromarray(mask).save(
                tmp_path / f"masks/kling/a/frame{number}.png"
            )  # not zero-padded: order is by number
    else:
        (tmp_path / "masks/kling").mkdir(parents=True)
        write_mp4(tmp_path / "masks/kling/a.mp4", np.repeat(masks[..., None], 3, axis=-1), FPS)
    found = broken_videos.load(tmp_path / "videos", tmp_path / "masks", smallest_area=0.01)
    (record,) = found.records
    first, second = record.anomalies
    assert record.id == "kling/a" and found.left_out == {
        "b": f"mask missing: expected {tmp_path}/masks/b.mp4 or a folder {tmp_path}/masks/b"
    }
    assert (first.window, second.window) == (Window(2 / FPS, 6 / FPS), Window(20 / FPS, 21 / FPS))
    assert set(first.boxes) == {2, 3, 4, 6} and len(first.boxes[4]) == 2
    near = first.boxes[2][0].to_json()
    assert np.abs(np.subtract(near, [250, 250, 500, 500])).max() <= (
        0 if form == "png" else 25
    )  # a codec blurs the border
    assert form == "video" or record.extra == {"speckles_dropped": 1}


def test_broken_videos_refuses_masks_that_do_not_fit(tmp_path):
    clip(tmp_path / "videos" / "a.mp4")
    (tmp_path / "masks").mkdir()
    write_mp4(tmp_path / "masks" / "a.mp4", np.zeros((12, 48, 64, 3), np.uint8), FPS)
    with pytest.raises(ValueError, match="12 masks for a video of 24 frames"):
        broken_videos.load(tmp_path / "videos", tmp_path / "masks")
    write_mp4(tmp_path / "masks" / "a.mp4", np.zeros((24, 64, 64, 3), np.uint8), FPS)
    with pytest.raises(ValueError, match="expected the same"):
        broken_videos.load(tmp_path / "videos", tmp_path / "masks")


def test_components_touching_at_a_corner_are_one():
    mask = np.zeros((10, 10), bool)
    mask[:3, :3] = mask[3:5, 3:5] = mask[8, 8] = True
    boxes, dropped = broken_videos.mask_boxes(mask, 0.02)
    assert boxes == (Box(0, 0, 500, 500),) and dropped == 1
    assert broken_videos.runs([1, 2, 5, 9], 2) == [[1, 2, 5], [9]]


# ---- VideoPhy-2 ---------------------------------------------------------------------------------------------------


def videophy_file(tmp_path, *rows, extra=()):
    columns = [
        "caption",
        "video_url",
        "sa",
        "pc",
        "joint",
        "physics_rules_unfollowed",
        "human_violated_rules",
        "is_hard",
        *extra,
    ]
    path = tmp_path / "videophy2_test.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({"caption": "a ball", "sa": 4, "pc": 4, "joint": 1, "physics_rules_unfollowed": "[]"} | row)
    return path


def test_videophy2_reads_python_literals(tmp_path):
    for name in ("a.mp4", "b c.mp4", "d.mp4"):
        clip(tmp_path / "videos" / name)
    path = videophy_file(
        tmp_path,
        {"video_url": "https://host/x/a.mp4?download=true"},
        {
            "video_url": "https://host/x/b%20c.mp4",
            "pc": 2,
            "joint": 0,
            "physics_rules_unfollowed": "['It\\'s \"heavy\"', 'Inertia']",
            "human_violated_rules": "nan",
        },
        {"video_url": "https://host/x/d.mp4", "pc": 3, "joint": "False"},
        {"video_url": "https://host/x/lost.mp4"},
    )
    found = videophy2.load(path, videos=tmp_path / "videos")
    good, broken, rated = found.records
    assert (good.status, broken.status, rated.status) == ("normal", "abnormal", "abnormal")
    assert [a.reason for a in broken.anomalies] == ['It\'s "heavy"', "Inertia"] and broken.anomalies[0].window is None
    assert (
        rated.anomalies[0].reason == "physical commonsense rated 3 of 5, no rule named" and good.extra["joint"] is True
    )
    assert list(found.left_out) == ["lost.mp4"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"physics_rules_unfollowed": '["a", null]'}, "must be a Python list literal"),
        ({"physics_rules_unfollowed": "'a rule'"}, "must be a list of strings"),
        ({"pc": "4.5"}, "pc must be a whole rating from 1 to 5, received '4.5'"),
        ({"joint": 0}, "contradicts sa=4, pc=4"),
        ({"joint": "maybe"}, "joint must be 0 or 1"),
    ],
)
def test_videophy2_refuses_what_it_does_not_know(tmp_path, row, message):
    clip(tmp_path / "videos" / "a.mp4")
    with pytest.raises(ValueError, match=message):
        videophy2.load(videophy_file(tmp_path, {"video_url": "https://host/a.mp4"} | row), videos=tmp_path / "videos")
    with pytest.raises(ValueError, match=r"unknown fields \['score'\]"):
        videophy2.load(videophy_file(tmp_path, {"video_url": "u/a.mp4"}, extra=("score",)), videos=tmp_path / "videos")


# ---- Spotlight ----------------------------------------------------------------------------------------------------


def spotlight_row(name, generator="veo3", key="errors", errors=(), **more):
    """A row with the keys that public scripts read; the key of the error list is not known."""
    source_data = json.dumps({"event_list": ["a dog runs"], "class": "animal"})
    known = {"pid": name, "video_from": generator, "prompt": "a dog runs", "orig_dataset": "storyeval"}
    return {**known, "source_data": source_data, "refvideo_exists": False, key: list(errors), **more}


def spotlight_folder(tmp_path, rows):
    for row in rows:
        clip(tmp_path / "test" / "spotlight" / row["video_from"] / f"{row['pid']}.mp4")
    (tmp_path / "test" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


FLOATS = {"type": "Physics", "explanation": "floats", "start": 0.5, "end": 1.5}


def test_spotlight_errors_become_windows(tmp_path):
    errors = [
        FLOATS,
        {"type": "Anatomy/Body pose", "explanation": "arm", "segments": [[0, 0.5], {"start_time": 1, "end_time": 3}]},
        {"type": "motion", "description": "all", "scope": "global"},
        {"type": "Appearance/Disappearance", "segments": [0.2, 0.4]},
        {"type": "Adherence", "explanation": "no dog", "scope": "global"},
        {"type": "Logical", "explanation": "odd", "start_time": 0, "end_time": 1},
    ]
    rows = [
        spotlight_row("sid_001", errors=errors),
        spotlight_row("sid_001", "ltx2"),
        spotlight_row("sid_002", errors=[{"type": "Logical", "scope": "global"}]),
    ]
    folder = spotlight_folder(tmp_path, [*rows, spotlight_row("sid_003")])
    (folder / "test" / "spotlight" / "veo3" / "sid_003.mp4").unlink()
    found = spotlight.load(folder)
    first, clean = found.records
    last = 23 / FPS
    assert [a.window for a in first.anomalies] == [
        *(Window(0.5, 1.5), Window(0, 0.5), Window(1, last), Window(0, last), Window(0.2, 0.4))
    ]
    kinds = ["Physical Violations", *["Human Distortion"] * 2, *["Motion Anomalies"] * 2]
    assert [a.type for a in first.anomalies] == kinds
    assert [(each["type"], each["windows"][0]["end_s"]) for each in first.extra["out_of_scope"]] == [
        *(("Adherence", pytest.approx(last)), ("Logical", 1.0))
    ]
    assert first.extra["source_data"] == {"event_list": ["a dog runs"], "class": "animal"}
    assert (first.id, clean.id, clean.status) == ("veo3/sid_001.mp4", "ltx2/sid_001.mp4", "normal")
    assert found.left_out["veo3/sid_002.mp4"] == "out of scope: ['Logical']"
    assert found.left_out["veo3/sid_003.mp4"].startswith("video missing")


@pytest.mark.parametrize("key", ["errors", "annotations", "human_labels"])
def test_spotlights_error_list_is_found_by_what_it_holds(tmp_path, key):
    # Another list of objects, and a list of texts, are no errors.
    rows = [spotlight_row("sid_001", key=key, errors=[FLOATS], raters=[{"name": "a"}], tags=["Physics"])]
    (record,) = spotlight.load(spotlight_folder(tmp_path, rows)).records
    assert record.anomalies[0].type == "Physical Violations"


def test_a_spotlight_file_that_leaves_doubt_is_refused(tmp_path):
    def load(*rows):
        return spotlight.load(spotlight_folder(tmp_path, rows))

    for change, message in [
        ({"type": "Physic"}, "no key holds a list of objects with one of the types"),
        ({"end": 9.0}, "does not lie in a video"),
        ({"end": None}, r"received the keys .*'end', 'explanation', 'start', 'type'"),
        ({"start": "0:01"}, "a segment is a pair of seconds"),
        ({"scope": "somewhere"}, "the scope must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(spotlight_row("sid_001", errors=[{**FLOATS, **change}]))
    with pytest.raises(ValueError, match="unknown label 'Physic'; .*did you mean 'Physics'"):
        load(spotlight_row("sid_001", errors=[FLOATS, {**FLOATS, "type": "Physic"}]))
    with pytest.raises(ValueError, match=r"the keys \['errors', 'model_errors'\] all hold lists of errors"):
        load(spotlight_row("sid_001", errors=[FLOATS], model_errors=[FLOATS]))
    with pytest.raises(ValueError, match="'errors' must be a list of errors"):
        load(spotlight_row("sid_001", errors=[FLOATS]), spotlight_row("sid_002", errors=[], key="others"))
    with pytest.raises(ValueError, match="has a row already"):
        load(spotlight_row("sid_001", errors=[FLOATS]), spotlight_row("sid_001"))
    with pytest.raises(ValueError, match="source_data is no JSON text"):
        load(spotlight_row("sid_001", errors=[FLOATS], source_data="{'a': 1}"))
    with pytest.raises(ValueError, match=r"missing \['video_from'\]"):
        (tmp_path / "test" / "metadata.jsonl").write_text('{"pid": "sid_001", "prompt": "p"}\n')
        spotlight.load(tmp_path)
    with pytest.raises(ValueError, match="expected Spotlight's metadata.jsonl"):
        spotlight.load(tmp_path / "test" / "spotlight")


def test_every_loader_says_what_it_could_not_verify():
    for module in (vif_cot, geneva, broken_videos, videophy2, spotlight):
        assert module._UNVERIFIED and all(len(doubt) > 40 for doubt in module._UNVERIFIED)
    assert LoadedRecords(()).summary() == "0 records (0 abnormal, 0 normal), 0 left out"
