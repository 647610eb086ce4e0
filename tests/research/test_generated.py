"""Generated clips as examples: the oracle's annotations against the renderer's truth, couples, resuming."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cac_align.core.iou import interval_iou, spatial_iou
from cac_align.core.judgement import Window
from cac_align.miniature.oracle.oracle import analyse
from cac_align.miniature.teacher.teacher import AWAY, appearance_index
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip
from research.training.generated import HELD_OUT, Generated, anomalies_of, couple, draw, held_out_clips, places_of
from research.training.pool import ClipPool


def test_annotations_of_rendered_clips_are_the_renderers():
    times, boxes, types = [], [], []
    for seed in range(2_200_001, 2_200_081, 2):
        clip = make_clip(seed, PLAYGROUND, anomalous=True)
        video = clip.video()
        found = anomalies_of(analyse(clip.prompt, video), video.fps, video.height, video.width)
        assert found, f"nothing seen in {seed}"
        assert all(appearance_index(anomaly) >= 0 and anomaly.boxes for anomaly in found)
        truth = clip.anomalies[0]
        types.append(truth.type in {anomaly.type for anomaly in found})
        times.append(interval_iou([anomaly.window for anomaly in found], [truth.window]))
        said = {frame: shown for anomaly in found for frame, shown in anomaly.boxes.items()}
        common = sorted(set(said) & set(truth.boxes))
        if common:
            boxes.append(np.mean([spatial_iou({f: said[f]}, {f: truth.boxes[f]}) for f in common]))
    assert np.mean(types) >= 0.9 and np.mean(times) >= 0.6 and np.mean(boxes) >= 0.6, (
        np.mean(types),
        np.mean(times),
        np.mean(boxes),
    )


def test_a_missing_entity_is_away_and_its_boxes_stand_beside_the_gap():
    clip = next(
        clip for seed in range(2_200_001, 2_201_000, 2) for clip in [make_clip(seed, PLAYGROUND, anomalous=True)] if clip.defects[0].subtype == "vanish"
    )  # fmt: skip
    video, defect = clip.video(), clip.defects[0]
    result = analyse(clip.prompt, video)
    places = places_of(result, video.height, video.width)
    assert all(places[frame] == AWAY for frame in range(defect.first, defect.last + 1))
    anomaly = next(
        a for a in anomalies_of(result, video.fps, video.height, video.width) if a.type == "Motion Anomalies"
    )
    assert not set(anomaly.boxes) & set(range(defect.first, defect.last + 1))
    assert anomaly.window == Window(max(defect.first - 1, 0) / 16, min(defect.last + 1, len(video) - 1) / 16)


def row(prompt, anomalous, follows=True, number=0):
    return {
        "prompt": prompt,
        "anomalous": anomalous,
        "follows": follows,
        "anomalies": [{}] * anomalous,
        "number": number,
    }


def test_couples_share_a_prompt_and_alternate():
    rows = [
        row("a", False, number=0),
        row("a", True, number=1),
        row("a", True, number=2),
        row("b", False, number=3),
        row("a", True, False, 4),
    ]
    assert [each["number"] for each in couple(rows)] == [
        0,
        1,
        0,
        2,
    ]  # b has no anomalous clip, clip 4 does not follow its prompt


def test_a_stopped_drawing_goes_on_with_the_same_clips(tmp_path, capsys):
    whole = Generated(out=str(tmp_path / "whole"), clips=8, batch=4, guidance=(1.0,))
    draw(whole)
    cut = replace(whole, out=str(tmp_path / "cut"))
    draw(replace(cut, clips=4))
    with (tmp_path / "cut" / "drawn.jsonl").open("a") as lines:
        lines.write('{"seed": 50000004, "torn')
    (tmp_path / "cut" / "pixels.u8").open("ab").write(b"torn")
    draw(cut)
    for name in ("drawn.jsonl", "pixels.u8", "clips.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "whole" / "drawn.jsonl").read_text().splitlines()]
    assert [each["seed"] for each in rows] == list(range(50_000_000, 50_000_008))
    assert len(ClipPool(tmp_path / "whole")) == len(couple(rows))
    assert all(
        len(each["shape_error"]) == 9 and min(each["shape_error"]) > 0 for each in rows
    )  # of 17 frames every second one is kept
    strict = replace(whole, out=str(tmp_path / "strict"), tolerance=1.0)
    draw(strict)
    stricter = [json.loads(line) for line in (tmp_path / "strict" / "drawn.jsonl").read_text().splitlines()]
    for mild, hard in zip(rows, stricter, strict=True):
        for narrow, lenient in zip(
            hard["shape_error"], mild["shape_error"], strict=True
        ):  # its own outline, or its likeness to another's: the greater
            assert narrow == pytest.approx(1.3 * lenient, abs=2e-3) or lenient <= narrow < 1.3 * lenient
        assert hard["anomalous"] >= mild["anomalous"]
    with pytest.raises(ValueError, match="holds clips from seed 50000000, received seed=7"):
        draw(replace(whole, seed=7))
    with pytest.raises(ValueError, match="was annotated with tolerance=1.3, received tolerance=1.0"):
        draw(replace(whole, tolerance=1.0))


def test_held_out_noise_is_never_drawn_for_training():
    with pytest.raises(ValueError, match="are held out"):
        Generated(seed=HELD_OUT.start - 10, clips=20)
    clip = held_out_clips(1)[0]
    assert clip.status in ("normal", "abnormal") and len(clip.video()) == 17
