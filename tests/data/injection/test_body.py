"""Bodies: what the small models' numbers mean, and the injectors on a stick figure, a hand and a face drawn here."""

import math
import zipfile
from functools import lru_cache

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from cac_align.data.injection.injector import NotApplicable, SourceClip
from cac_align.data.injection.injectors import body_parts
from cac_align.data.injection.injectors.body import BODY_INJECTORS
from cac_align.data.injection.registry import INJECTORS, usable_injectors
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources import body_models
from cac_align.data.injection.sources.bodies import Body
from cac_align.data.injection.sources.body_models import Kind, Place, anchors, crop, decoded, next_place, why_no_models
from cac_align.data.injection.truth import measure, twin_difference
from cac_align.data.injection.visible import why_rejected

FPS, FRAMES, HEIGHT, WIDTH = 16.0, 20, 160, 200
NAMES = [injector.name for injector in BODY_INJECTORS]


def textured(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    cells = np.random.default_rng(0).integers(100, 150, (height // 4, width // 4, 3), np.uint8)
    return np.kron(cells, np.ones((4, 4, 1), np.uint8))


# ---- the models' numbers ------------------------------------------------------------------------------------------


def test_every_detector_has_as_many_anchors_as_its_network_has_outputs():
    assert {kind: len(anchors(kind)) for kind in ("pose", "hand", "face")} == {"pose": 2254, "hand": 2016, "face": 2304}
    assert anchors("face")[49] == pytest.approx([1.5 / 48, 1.5 / 48])  # the second cell of the second row


def test_a_detection_is_read_relative_to_its_anchor_and_a_weaker_one_inside_it_is_dropped():
    raw, scores = np.zeros((2304, 16)), np.full(2304, -9.0)
    raw[49, :6] = 4.8, 9.6, 19.2, 28.8, 48.0, 0.0
    raw[50, 2:4] = 19.2
    scores[49], scores[50], scores[2000] = 3.0, 2.0, 1.0
    found = decoded("face", raw, scores, 192)
    assert len(found) == 2
    centre = np.array([1.5 / 48 + 4.8 / 192, 1.5 / 48 + 9.6 / 192])
    assert found[0][:3] == pytest.approx(np.array([centre, [0.1, 0.15], [1.5 / 48 + 0.25, 1.5 / 48]]))


def test_a_turned_place_is_seen_upright():
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[45:55, 60:80] = 255  # to the right of the centre: upwards for a square that is turned by a quarter
    seen = crop(frame, Place(50, 50, 80, math.pi / 2), 40)
    rows, columns = np.nonzero(seen[..., 0] > 0.5)
    assert (rows.min(), rows.max()) == (5, 14) and (columns.min(), columns.max()) == pytest.approx((17, 22), abs=1)
    corner = Place(50, 50, 80, math.pi / 2).to_picture(np.array([0.5, 0.0]))
    assert corner == pytest.approx([90, 50])


def test_the_next_place_of_a_hand_points_along_it():
    points = np.zeros((21, 2))
    points[0], points[9] = (50, 50), (90, 50)
    points[[1, 2, 3, 5, 6, 10, 13, 14, 17, 18]] = (70, 40), *[(70, 60)] * 9
    place = next_place("hand", points)
    assert place.turn == pytest.approx(math.pi / 2) and place.side == pytest.approx(2 * 40)
    assert (place.x, place.y) == pytest.approx((70 + 0.1 * 40, 50))


def test_a_wheel_without_models_is_refused_with_the_fix(tmp_path):
    wheel = tmp_path / "mediapipe-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mediapipe/modules/hand_landmark/hand_landmark_full.tflite", b"")
    for where in (wheel, tmp_path, tmp_path / "nothing.whl"):
        said = why_no_models(str(where))
        assert said is not None and "mediapipe==0.10.21" in said
        with pytest.raises(ValueError, match="body_models"):
            usable_injectors(("inject",), body_models=str(where))


def test_the_models_are_found_in_a_wheel_and_in_a_folder(tmp_path):
    names = body_models.MODEL_FILES
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "all.whl", "w") as archive:
        for name in names:
            archive.writestr(f"mediapipe/modules/x/{name}.tflite", b"")
            (tmp_path / "folder" / "deep" / f"{name}.tflite").write_bytes(b"")
    assert why_no_models(str(tmp_path / "all.whl")) is None
    assert why_no_models(str(tmp_path / "folder")) is None


# ---- injectors ----------------------------------------------------------------------------------------------------


@lru_cache
def drawn(kind: Kind, step: float = 1.0) -> tuple[SourceClip, Body]:
    """A figure that moves by ``step`` px per frame over a textured ground, and its landmarks."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    pixels = np.repeat(textured()[None], FRAMES, 0)
    size = {"pose": 35, "hand": 21, "face": 468}[kind]
    points, masks = np.zeros((FRAMES, size, 2)), np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    for t in range(FRAMES):
        at = np.array([70 + step * t, 30.0])
        mask = np.zeros((HEIGHT, WIDTH), bool)
        canvas = PIL.Image.new("L", (WIDTH, HEIGHT))
        pen = PIL.ImageDraw.Draw(canvas)
        if kind == "pose":  # shoulders, elbows, wrists, hips, knees, ankles
            for side, joints in ((-1, (11, 13, 15, 19, 23, 25, 27, 31)), (1, (12, 14, 16, 20, 24, 26, 28, 32))):
                offsets = ((10, 0), (16, 20), (24, 42), (26, 48), (7, 40), (8, 72), (9, 104), (13, 108))
                points[t, joints] = at + [(side * x, y) for x, y in offsets]
                for one, other in ((11, 13), (13, 15), (15, 19), (11, 23), (23, 25), (25, 27), (27, 31)):
                    shift = 0 if side < 0 else 1
                    ends = [tuple(points[t, joint]) for joint in (one + shift, other + shift)]
                    pen.line(ends, fill=255, width=9)
            mask |= np.asarray(canvas) > 0
        elif kind == "hand":
            points[t, 0] = at + (0, 90)
            for finger in range(5):
                for joint in range(4):
                    points[t, 1 + 4 * finger + joint] = at + ((finger - 2) * 14, 45 - 13 * joint)
            mask |= (abs(columns - at[0]) < 34) & (rows > 70) & (rows < 125)
            for x, y in points[t, 1:]:
                mask |= (columns - x) ** 2 / 25 + (rows - y) ** 2 / 81 <= 1
        else:
            angle = np.linspace(0, 2 * np.pi, size)
            points[t] = at + (0, 45) + 30 * np.stack([np.cos(angle), 1.3 * np.sin(angle)], axis=1)
            places = {(33, 133, 159, 145): (-12, 33), (362, 263, 386, 374): (12, 33), (61, 291, 13, 14): (0, 65)}
            for indices, offset in {**places, (1, 4, 98, 327): (0, 50), (234,): (-30, 45), (454,): (30, 45)}.items():
                points[t, indices] = at + offset
            mask |= ((columns - at[0]) / 32) ** 2 + ((rows - at[1] - 45) / 42) ** 2 <= 1
        pixels[t][mask] = (205, 150, 120)
        for offset in ((-12, 33), (12, 33), (0, 65), (0, 50)) if kind == "face" else ():
            x, y = at + offset
            pixels[t][(columns - x) ** 2 + (rows - y) ** 2 <= 20] = (40, 30, 30)
        masks[t] = mask
    return SourceClip(pixels, FPS), Body(kind, points, np.ones((FRAMES, size)), masks if kind == "pose" else None)


KIND: dict[str, Kind] = {
    "extra_limb": "pose",
    "joint_break": "pose",
    "extra_finger": "hand",
    "hand_warp": "hand",
    "face_warp": "face",
}


@pytest.fixture
def seen(monkeypatch):
    """Says where bodies are instead of the models."""

    def say(*found: Body) -> None:
        monkeypatch.setattr(body_parts, "bodies", lambda source, kind: tuple(b for b in found if b.kind == kind))

    return say


@pytest.mark.parametrize("name", NAMES)
def test_the_twins_of_a_changed_body_differ_at_its_part_and_nowhere_else(name, seen):
    source, body = drawn(KIND[name])
    seen(body)
    before = source.pixels.copy()
    edit = INJECTORS[name].apply(source, np.random.default_rng(3), 0.9)
    assert np.array_equal(source.pixels, before) and edit.type == "Human Distortion"
    truth = measure(edit)
    assert truth is not None and why_rejected(edit, truth, FPS, Injection()) is None
    assert edit.numbers["first"] <= truth.first and truth.last <= edit.numbers["last"]
    levels = twin_difference(edit.anomalous, edit.sham)
    assert (
        levels[: edit.numbers["first"]].max(initial=0) == 0 and levels[edit.numbers["last"] + 1 :].max(initial=0) == 0
    )
    for frame, boxes in truth.boxes.items():
        for left, top, right, bottom in boxes:
            levels[frame, top:bottom, left:right] = 0
    assert (levels > 8).mean() < 1e-4  # lone pixels have no box
    again = INJECTORS[name].apply(source, np.random.default_rng(3), 0.9)
    assert np.array_equal(edit.anomalous, again.anomalous)


@pytest.mark.parametrize("name", NAMES)
def test_the_sham_of_a_changed_body_keeps_every_shape(name, seen):
    source, body = drawn(KIND[name])
    seen(body)
    edit = INJECTORS[name].apply(source, np.random.default_rng(3), 0.9)
    changed = twin_difference(edit.sham, source.pixels)
    if name.startswith("extra"):
        assert changed.max() <= 1
    else:  # resampled there and back: edges are blurred by a pixel, and nothing is moved
        from scipy import ndimage

        moved = [ndimage.binary_opening(levels > 40, np.ones((3, 3))).sum() for levels in changed]
        assert max(moved) == 0
        broken = twin_difference(edit.anomalous, source.pixels)
        assert max(ndimage.binary_opening(levels > 40, np.ones((3, 3))).sum() for levels in broken) > 20


def test_a_finger_that_is_hidden_is_not_doubled(seen):
    source, body = drawn("hand")
    pixels = source.pixels.copy()
    pixels[:, :88] = (20, 20, 24)
    seen(body)
    with pytest.raises(NotApplicable, match="no finger"):
        INJECTORS["extra_finger"].apply(SourceClip(pixels, FPS), np.random.default_rng(0), 0.7)


def test_a_limb_that_lies_off_the_persons_mask_is_only_guessed(seen):
    source, body = drawn("pose")
    assert body.mask is not None
    seen(Body("pose", body.points, body.seen, np.zeros_like(body.mask)))
    for name in ("extra_limb", "joint_break"):
        with pytest.raises(NotApplicable, match="seen whole"):
            INJECTORS[name].apply(source, np.random.default_rng(0), 0.7)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_without_a_body_is_refused(name, seen):
    seen()
    with pytest.raises(NotApplicable, match=r"no (person|hand|face)"):
        INJECTORS[name].apply(drawn("pose")[0], np.random.default_rng(0), 0.7)
