"""The miniature world: determinism, exact windows and boxes against independent drawings, shares, prompts, bad input."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.core.video import Video
from cac_align.data.records import read_records
from cac_align.miniature.world.annotation import pixel_boxes, window_frames
from cac_align.miniature.world.defects import ABSENCES
from cac_align.miniature.world.grammar import COLOURS, GLYPHS, VOCABULARY, parse_prompt
from cac_align.miniature.world.render import render
from cac_align.miniature.world.settings import (
    FULL,
    PROMPT_SEEDS,
    STUDIO,
    SUBTYPES,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALID_SEEDS,
    World,
)
from cac_align.miniature.world.world import make_clip, make_prompts, stream, write_world

SEEDS = range(TEST_SEEDS.start + 40_000, TEST_SEEDS.start + 40_120)


@pytest.fixture(scope="module")
def broken():
    """120 anomalous clips, two thirds of the full world and one third of the Studio."""
    return [make_clip(seed, FULL if seed % 3 else STUDIO, anomalous=True) for seed in SEEDS]


# ---- determinism --------------------------------------------------------------------------------------------------


def test_a_clip_is_decided_by_seed_world_and_the_wish():
    for world in (FULL, STUDIO):
        for wish in (None, True, False):
            one, two = make_clip(11, world, anomalous=wish), make_clip(11, world, anomalous=wish)
            assert np.array_equal(one.pixels, two.pixels)
            assert (one.prompt, one.status, one.anomalies) == (two.prompt, two.status, two.anomalies)
    assert not np.array_equal(make_clip(11).pixels[0], make_clip(12).pixels[0])


def test_the_stream_gives_what_make_clip_gives():
    clips = list(stream(range(5, 8), STUDIO))
    assert [clip.seed for clip in clips] == [5, 6, 7]
    assert np.array_equal(clips[1].pixels, make_clip(6, STUDIO).pixels)


def test_seed_ranges_are_disjoint():
    ranges = (TRAIN_SEEDS, VALID_SEEDS, TEST_SEEDS, PROMPT_SEEDS)
    assert all(one.stop <= two.start for one, two in itertools.pairwise(ranges))


def test_make_clip_leaves_the_global_random_state_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    make_clip(4)
    assert np.array_equal(before, np.random.get_state()[1])


# ---- exactness ----------------------------------------------------------------------------------------------------


def test_exactly_the_frames_of_the_defects_differ_from_the_normal_twin(broken):
    for clip in broken:
        twin = render(clip.scene.without_defects())
        differs = (twin != clip.pixels).any((1, 2, 3))
        expected = set().union(*(defect.frames for defect in clip.defects))
        assert set(np.flatnonzero(differs)) == expected, (clip.seed, [defect.subtype for defect in clip.defects])
        assert np.array_equal(render(clip.scene), clip.pixels)


def test_windows_run_from_the_first_to_the_last_anomalous_frame(broken):
    for clip in broken:
        differs = (clip.normal_pixels != clip.pixels).any((1, 2, 3))
        if len(clip.defects) > 1:
            continue
        (anomaly,), (defect,) = clip.anomalies, clip.defects
        frames = np.flatnonzero(differs)
        pad = 1 if defect.subtype in ABSENCES else 0  # an absence includes the visible frame on either side
        first, last = max(frames[0] - pad, 0), min(frames[-1] + pad, len(clip.pixels) - 1)
        assert anomaly.window.start_s == pytest.approx(first / 16)
        assert anomaly.window.end_s == pytest.approx(last / 16)


def test_every_defect_can_be_seen(broken):
    for clip in broken:
        change = np.abs(clip.pixels.astype(int) - clip.normal_pixels).max(-1)
        for defect in clip.defects:
            assert all((change[frame] >= 24).sum() >= 3 for frame in defect.frames), (clip.seed, defect.subtype)


def test_boxes_lie_on_the_frames_that_the_conventions_name(broken):
    for clip in broken:
        count = len(clip.pixels)
        for defect, anomaly in zip(clip.defects, clip.anomalies, strict=True):
            if defect.subtype in ABSENCES:
                edges = {defect.first - 1, defect.last + 1} & set(range(count))
                assert set(anomaly.boxes) <= edges and anomaly.boxes, (clip.seed, defect.subtype)
            else:
                assert set(anomaly.boxes) <= set(window_frames(defect, count))
                assert len(anomaly.boxes) >= 0.8 * len(window_frames(defect, count)), (clip.seed, defect.subtype)


def test_no_change_lies_outside_the_boxes_of_local_defects(broken):
    """For defects that add or remove something in one place, every changed pixel lies in a box (plus the half pixel of its edge)."""
    local = {"extra arm", "extra leg", "missing limb", "garbled", "changing", "mirrored", "hole", "flicker"}
    checked = 0
    for clip in broken:
        if len(clip.defects) > 1 or clip.defects[0].subtype not in local:
            continue
        boxes = pixel_boxes(clip.defects[0], clip.scene)
        change = np.abs(clip.pixels.astype(int) - clip.normal_pixels).max(-1) > 8
        for frame in clip.defects[0].frames:
            outside = change[frame].copy()
            outside[:, 0] = outside[:, -1] = outside[0] = outside[-1] = False  # a sliver at the edge has no box
            for left, top, right, bottom in boxes.get(frame, ()):
                outside[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = False
            assert not outside.any(), (clip.seed, clip.defects[0].subtype, frame)
            checked += 1
    assert checked > 100


def _coverage_by_sampling(inside, height, width, fine=8):
    """Share of each pixel that lies inside a shape: an independent rasteriser by fine×fine samples."""
    ticks = (np.arange(height * fine) + 0.5) / fine
    across = (np.arange(width * fine) + 0.5) / fine
    hits = inside(across[None], ticks[:, None])
    return hits.reshape(height, fine, width, fine).mean((1, 3))


def _tight(cover):
    rows, columns = np.flatnonzero((cover > 0.5).any(1)), np.flatnonzero((cover > 0.5).any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _inside(kind, x, y, r):
    """Membership of points in a ball or a box, written from the definition."""
    if kind == "ball":
        return lambda u, v: (u - x) ** 2 + (v - y) ** 2 <= r * r
    return lambda u, v: np.maximum(abs(u - x), abs(v - y)) <= 0.92 * r


def test_ball_and_box_agree_with_an_independent_rasteriser():
    """Where the ball is, what colour it has and how tight its box is, redrawn by point sampling from the track alone."""
    checked = Counter()
    for seed in range(TEST_SEEDS.start, TEST_SEEDS.start + 150):
        clip = make_clip(seed, replace(STUDIO, kinds=("ball", "box"), types=("Motion Anomalies",)), anomalous=True)
        defect, entity = clip.defects[0], clip.scene.entities[0]
        if defect.subtype not in ("vanish", "teleport", "jitter") or "squash" in entity.track:
            continue
        boxes = pixel_boxes(defect, clip.scene)
        for frame, (box,) in boxes.items():
            moved = defect.subtype != "vanish"
            x = entity.track["x"][frame] + (np.broadcast_to(defect.numbers["dx"], 33)[frame] if moved else 0)
            y = entity.track["y"][frame] + (np.broadcast_to(defect.numbers["dy"], 33)[frame] if moved else 0)
            r = entity.size_px
            cover = _coverage_by_sampling(_inside(entity.kind, x, y, r), 64, 64)
            expected = _tight(cover)
            assert max(abs(a - b) for a, b in zip(box, expected, strict=True)) <= 1, (seed, frame, box, expected)
            ticks = np.arange(64) + 0.5  # well inside, and below the highlight, the colour is plain
            core = (np.hypot(ticks[None] - x, ticks[:, None] - y) < r - 2) & (ticks[:, None] > y + 0.3 * r)
            assert np.abs(clip.pixels[frame][core].astype(int) - COLOURS[clip.scene.spec.colour]).max() <= 1
            checked[defect.subtype] += 1
    assert min(checked[name] for name in ("vanish", "teleport", "jitter")) >= 5, checked


def test_letters_on_a_sign_read_as_the_prompt_says():
    """Read the glyph cells off the pixels and compare with the font, without the drawing code."""
    read = 0
    for seed in range(200):
        clip = make_clip(
            seed, replace(STUDIO, kinds=("sign",), motions=("still",), types=("Character Anomalies",)), anomalous=False
        )
        entity, text = clip.scene.entities[0], clip.scene.spec.text
        cell, x, y = entity.size_px, entity.track["x"][0], entity.track["y"][0]
        start = x - (len(text) * 4 - 1) * cell / 2
        for position, letter in enumerate(text):
            for row in range(5):
                for column in range(3):
                    u, v = start + (position * 4 + column + 0.5) * cell, y + (row - 2 + 0.0) * cell
                    dark = clip.pixels[0][int(v), int(u)].astype(int).max() < 80
                    assert dark == (GLYPHS[letter][row][column] == "1"), (seed, text, letter, row, column)
                    read += 1
        if read > 400:
            return
    raise AssertionError("too few signs")


# ---- shares -------------------------------------------------------------------------------------------------------


def test_half_of_the_clips_are_anomalous_and_all_types_and_subtypes_occur():
    clips = [make_clip(seed, FULL) for seed in range(TEST_SEEDS.start, TEST_SEEDS.start + 360)]
    share = np.mean([clip.status == "abnormal" for clip in clips])
    assert 0.42 < share < 0.58
    types = Counter(anomaly.type for clip in clips for anomaly in clip.anomalies)
    assert set(types) == set(ANOMALY_TYPES) and min(types.values()) > 0.1 * sum(types.values())
    subtypes = {defect.subtype for clip in clips for defect in clip.defects}
    missing = {name for names in SUBTYPES.values() for name in names} - subtypes
    assert len(missing) <= 2, missing
    assert {clip.pixels.shape[0] for clip in clips} == set(FULL.num_frames)
    durations = np.array([a.window.end_s - a.window.start_s for clip in clips for a in clip.anomalies])
    assert (durations < 1).mean() > 0.5, "many under one second"
    assert (durations >= 3 / 16 - 1e-9).mean() > 0.75, "most touch a sample at 4 fps"
    assert durations.min() < 3 / 16 and durations.max() > 1.2
    areas = np.array([area for clip in clips for area in clip.areas])
    assert (areas < 0.2).mean() > 0.7
    saliencies = Counter(a.saliency for clip in clips for a in clip.anomalies)
    assert 0.45 < saliencies["salient"] / sum(saliencies.values()) < 0.85


def test_normal_clips_hold_the_look_alikes():
    """Bounces, turns, meetings, blinking lights, posts in front, drifting cameras: motion alone decides nothing."""
    scenes = [make_clip(seed, FULL, anomalous=False).scene for seed in range(150)]
    motions = {actor.motion for scene in scenes for actor in scene.spec.actors}
    assert {"bounce", "turn", "into", "blink", "wave"} <= motions
    assert any(scene.backdrop.post for scene in scenes) and any(scene.spec.drift for scene in scenes)
    assert all(not scene.defects for scene in scenes)


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_prompts_read_back_to_the_same_spec():
    known = set(VOCABULARY)
    for seed in range(300):
        for world in (FULL, STUDIO):
            (prompt,) = make_prompts([seed], world)
            spec = parse_prompt(prompt)
            assert spec.prompt == prompt
            assert set(prompt.split()) <= known
    assert make_prompts([7], STUDIO)[0] == make_clip(7, STUDIO, anomalous=False).prompt


def test_a_prompt_says_what_is_in_it():
    spec = parse_prompt(
        "a red ball rolls into an orange box and a blue sign saying GO stands still on grass as the camera drifts"
    )
    assert [(actor.kind, actor.colour, actor.motion) for actor in spec.actors] == [
        ("ball", "red", "into"),
        ("box", "orange", "still"),
        ("sign", "blue", "still"),
    ]
    assert (spec.place, spec.drift, spec.actors[2].text) == ("on grass", True, "GO")


@pytest.mark.parametrize(
    ("prompt", "received", "allowed"),
    [
        ("a red dragon bounces on grass", "dragon", "ball, box"),
        ("a mauve ball bounces on grass", "mauve", "red, green"),
        ("a red ball sings on grass", "sings", "bounces"),
        ("a red ball bounces on the moon", "on the moon", "by the sea"),
        ("a red sign saying WHY stands still on grass", "WHY", "GO, UP"),
        ("a red ball saying GO bounces on grass", "saying", "a sign, and only a sign"),
        ("red ball", "red ball", "on grass"),
        ("", "''", "on grass"),
    ],
)
def test_an_unknown_word_is_named_with_what_is_allowed(prompt, received, allowed):
    with pytest.raises(ValueError) as error:
        parse_prompt(prompt)
    assert received in str(error.value) and allowed in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"height": 65}, "multiple of 16"),
        ({"width": 48}, "from 64 to 512"),
        ({"num_frames": (32,)}, "4k \\+ 1"),
        ({"num_frames": (85,)}, "17 to 81"),
        ({"kinds": ("dragon",)}, "dragon"),
        ({"colours": ("mauve",)}, "mauve"),
        ({"types": ("Bad Taste",)}, "Bad Taste"),
    ],
)
def test_a_world_that_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        World(**settings)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="-1"):
        make_clip(-1)


@pytest.mark.parametrize("size", [(64, 96), (96, 128)])
def test_larger_frames_keep_the_same_truth(size):
    world = replace(FULL, height=size[0], width=size[1], num_frames=(17,))
    for seed in range(6):
        clip = make_clip(seed, world, anomalous=True)
        assert clip.pixels.shape == (17, *size, 3)
        differs = (clip.normal_pixels != clip.pixels).any((1, 2, 3))
        assert set(np.flatnonzero(differs)) == set().union(*(defect.frames for defect in clip.defects))


# ---- on disk ------------------------------------------------------------------------------------------------------


def test_write_world_writes_half_normal_half_anomalous_with_true_records(tmp_path):
    path = write_world(6, TEST_SEEDS.start, tmp_path, replace(STUDIO, num_frames=(17,)))
    records = list(read_records(path))
    assert Counter(record.status for record in records) == {"normal": 3, "abnormal": 3}
    for record in records:
        video = Video.open(tmp_path / record.video)
        assert (len(video), video.fps, video.height, video.width) == (
            record.num_frames,
            16.0,
            record.height,
            record.width,
        )
        clip = make_clip(record.extra["seed"], replace(STUDIO, num_frames=(17,)), anomalous=record.status == "abnormal")
        shown = video.frames(range(17)).pixels.astype(int)
        assert np.median(np.abs(shown - clip.pixels)) <= 2 and np.abs(shown - clip.pixels).mean() < 8
        assert record.anomalies == clip.anomalies
    assert json.loads(path.read_text().splitlines()[1])["extra"]["defects"][0]["severity"] > 0


@pytest.mark.parametrize("n", [0, 3, -2])
def test_write_world_wants_an_even_number(tmp_path, n):
    with pytest.raises(ValueError, match=str(n)):
        write_world(n, 0, tmp_path)


def test_a_jitter_shows_at_every_rate_of_looking():
    """At 4, 8 and 16 of 16 frames a second a thing that jitters is seen on both sides of its path."""
    seen = 0
    for seed in range(TEST_SEEDS.start, TEST_SEEDS.start + 400):
        clip = make_clip(seed, replace(STUDIO, kinds=("ball", "box"), types=("Motion Anomalies",)), anomalous=True)
        if clip.defects[0].subtype == "jitter":
            offset = clip.defects[0].numbers["dx"]
            for every in (1, 2, 4):
                assert set(np.sign(offset[::every][:5])) == {-1.0, 1.0}, (seed, every)
            seen += 1
    assert seen >= 5
