"""Every registered injector on hand-made sources: the twins differ where the defect is and nowhere else."""

import numpy as np
import pytest

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.data.injection.injector import Injector, NotApplicable, SourceClip
from cac_align.data.injection.pairs import make_pair
from cac_align.data.injection.registry import INJECTORS, usable_injectors
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.masks import dilated
from cac_align.data.injection.truth import anomaly_of, measure, twin_difference
from tests.data.injection.squares import HEIGHT, WIDTH, square_clip

CORE = sorted(usable_injectors(("core",))[0])


def two_squares() -> SourceClip:
    return square_clip(starts=((8, 40), (70, 84)), steps=((3, 0), (1, 0)))


def crossing_squares() -> SourceClip:
    """The second square, drawn later, is in front."""
    return square_clip(starts=((8, 40), (110, 48)), steps=((3, 0), (-2, 0)))


def source_for(name: str) -> SourceClip:
    return crossing_squares() if name == "occlusion_flip" else two_squares()


def applied(name, source, seed):
    """The edit of the first severity and seed from ``seed`` on that applies."""
    for offset in range(20):
        try:
            return INJECTORS[name].apply(source, np.random.default_rng(seed + offset), 0.7)
        except NotApplicable:
            continue
    raise AssertionError(f"{name} never applies")


@pytest.mark.parametrize("seed", [0, 100, 200])
@pytest.mark.parametrize("name", CORE)
def test_the_twins_differ_only_where_the_defect_is(name, seed):
    source = source_for(name)
    before = source.pixels.copy()
    edit = applied(name, source, seed)
    assert np.array_equal(source.pixels, before)
    assert edit.type in ANOMALY_TYPES and edit.anomalous.shape == edit.sham.shape == source.pixels.shape
    truth = measure(edit)
    assert truth is not None
    levels = twin_difference(edit.anomalous, edit.sham)
    outside = np.ones(len(levels), bool)
    outside[truth.first : truth.last + 1] = False
    assert levels[outside].max(initial=0) <= 8
    # Off the boxes and off what the object left, nothing may tell the twins apart.
    allowed = np.zeros(levels.shape, bool)
    for frame in range(truth.first, truth.last + 1):
        for left, top, right, bottom in truth.boxes.get(frame, ()):
            allowed[frame, top:bottom, left:right] = True
    places = edit.vacated if edit.vacated is not None else edit.subject
    assert levels[~(allowed | dilated(places, 3))].max(initial=0) <= 8
    anomaly = anomaly_of(edit, truth, source.fps)
    assert anomaly.boxes and anomaly.window is not None


@pytest.mark.parametrize("name", CORE)
def test_the_sham_is_the_source_but_for_the_operation(name):
    source = source_for(name)
    edit = applied(name, source, 7)
    # The squares' masks and background are exact, so cutting, filling and pasting leave nothing; resampling blurs edges.
    changed = twin_difference(edit.sham, source.pixels)
    assert changed.max() <= (140 if name == "warp" else 1)
    assert (changed > 8).mean() < 0.02


@pytest.mark.parametrize("name", CORE)
def test_the_same_seed_gives_the_same_bytes(name):
    source = source_for(name)
    first, second = applied(name, source, 3), applied(name, source, 3)
    assert np.array_equal(first.anomalous, second.anomalous) and np.array_equal(first.subject, second.subject)


def test_a_teleported_square_is_boxed_where_it_is_and_not_where_it_was():
    source = square_clip(starts=((8, 40),), steps=((3, 0),))
    edit = applied("teleport", source, 1)
    truth = measure(edit)
    assert truth is not None
    frame = truth.first + 1
    left, top = 8 + 3 * frame + edit.numbers["dx"][0], 40 + edit.numbers["dy"][0]
    assert truth.boxes[frame] == ((left, top, left + 24, top + 24),)


def test_the_square_behind_is_drawn_over_the_one_in_front():
    source = crossing_squares()
    edit = applied("occlusion_flip", source, 1)
    frame = 20  # the first square is at 68-92, 40-64, the second at 70-94, 48-72
    assert source.pixels[frame, 56, 80].tolist()[0] == 160 and edit.sham[frame, 56, 80].tolist()[0] == 160
    assert edit.anomalous[frame, 56, 80].tolist()[0] == 200


def test_a_sunken_square_ends_at_the_line_on_which_it_stood():
    source = square_clip(starts=((8, 60),), steps=((3, 0),))
    edit = applied("sink", source, 1)
    assert np.array_equal(edit.anomalous[:, 84:], edit.sham[:, 84:])
    assert (edit.anomalous[:, 60:84] != edit.sham[:, 60:84]).any()


def test_a_falling_square_is_not_on_the_ground():
    source = square_clip(starts=((60, 4),), steps=((0, 3),))
    with pytest.raises(NotApplicable, match="ground"):
        INJECTORS["float"].apply(source, np.random.default_rng(0), 0.7)


def test_without_a_background_nothing_is_uncovered():
    clip = square_clip()
    source = SourceClip(clip.pixels, clip.fps, clip.objects)
    for name in ("vanish", "appear", "teleport", "jitter", "freeze", "float", "sink", "omit_part", "split"):
        with pytest.raises(NotApplicable, match="background"):
            INJECTORS[name].apply(source, np.random.default_rng(0), 0.7)
    assert measure(applied("warp", source, 0)) is not None


def test_a_still_square_cannot_freeze_and_no_object_is_said():
    still = square_clip(starts=((60, 40),), steps=((0, 0),))
    with pytest.raises(NotApplicable, match="hardly moves"):
        INJECTORS["freeze"].apply(still, np.random.default_rng(0), 0.7)
    nothing = SourceClip(np.full((32, HEIGHT, WIDTH, 3), 90, np.uint8), 16.0)
    for name in CORE:
        with pytest.raises(NotApplicable, match="no two moving objects|no moving object|background"):
            INJECTORS[name].apply(nothing, np.random.default_rng(0), 0.7)


def test_other_injectors_change_nothing_about_a_core_pair():
    def drawn(source, rng, severity):
        edit = INJECTORS["warp"].apply(source, rng, severity)
        rng.random(7)
        return edit

    source = two_squares()
    core = {name: INJECTORS[name] for name in ("warp", "teleport", "flicker", "fuse", "split")}
    others = {f"other{index}": Injector(f"other{index}", "inject", drawn) for index in range(3)}
    winners = set()
    for seed in range(12):
        alone, _ = make_pair(source, core, np.random.default_rng(seed), Injection())
        among, _ = make_pair(source, core | others, np.random.default_rng(seed), Injection())
        assert alone is not None and among is not None
        winners.add(among.injector in core)
        if among.injector in core:
            assert (among.injector, among.severity) == (alone.injector, alone.severity)
            assert np.array_equal(among.edit.anomalous, alone.edit.anomalous)
    assert winners == {True, False}


def test_an_unknown_injector_is_refused_by_name():
    with pytest.raises(ValueError, match="wrap"):
        usable_injectors(("core",), ["wrap"])


def test_the_sham_of_a_warp_leaves_no_bulge():
    """Interpolation is exact on a ramp: there and back gives it again, wherever the object was bent in between."""
    clip = square_clip(starts=((50, 40),), steps=((1, 0),), side=40)
    ramp = np.broadcast_to(np.arange(WIDTH, dtype=np.uint8)[:, None], clip.pixels.shape)
    source = SourceClip(ramp, clip.fps, clip.objects)
    for seed in range(4):
        edit = INJECTORS["warp"].apply(source, np.random.default_rng(seed), 1.0)
        assert np.abs(edit.anomalous.astype(int) - ramp).max() >= 4
        assert np.abs(edit.sham.astype(int) - ramp).max() <= 1
