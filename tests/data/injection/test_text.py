"""Text: flat patches that are followed, letters that are rearranged, and the injectors on text that is drawn here."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from cac_align.data.injection.injector import MovingObject, NotApplicable, SourceClip
from cac_align.data.injection.injectors import text
from cac_align.data.injection.injectors.glyphs import broken, drawn, ink_of, likeness, mirrored, reordered
from cac_align.data.injection.injectors.sign import SIGN_WORDS, render_sign, sign_board
from cac_align.data.injection.registry import INJECTORS
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.masks import dilated
from cac_align.data.injection.sources.planes import followed, patch_shape, put_back, quad_mask, rectified
from cac_align.data.injection.sources.text_lines import TextLine, likely_quads, smallest_rectangle
from cac_align.data.injection.truth import measure, twin_difference
from cac_align.data.injection.visible import why_rejected

FPS, HEIGHT, WIDTH = 16.0, 128, 288
TEXT = ("glyph_scramble", "mirrored_line", "changing_text")


def lettered(words: str, size: int = 28, at: tuple[int, int] = (40, 30)) -> tuple[PIL.Image.Image, np.ndarray]:
    """A plain picture with a line of text, and the line's quad."""
    image = PIL.Image.new("RGB", (WIDTH, HEIGHT), (196, 190, 170))
    pen, font = PIL.ImageDraw.Draw(image), PIL.ImageFont.load_default(size)
    pen.text(at, words, fill=(30, 26, 60), font=font)
    left, top, right, bottom = pen.textbbox(at, words, font=font)
    return image, np.array([[left - 4, top - 4], [right + 4, top - 4], [right + 4, bottom + 4], [left - 4, bottom + 4]])


def patch_of(words: str) -> np.ndarray:
    image, quad = lettered(words)
    return rectified(np.asarray(image), quad.astype(float), patch_shape(quad))


def clip_with(words: str, *, frames: int = 33, drift: float = 0.0) -> tuple[SourceClip, np.ndarray]:
    """A clip whose camera drifts by ``drift`` px per frame, with text and a square that passes below it; and the
    line's quad on the first frame.
    """
    image, quad = lettered(words)
    pixels, masks = [], np.zeros((frames, HEIGHT, WIDTH), bool)
    for t in range(frames):
        shift = (1, 0, drift * t, 0, 1, 0)
        frame = np.array(
            image.transform((WIDTH, HEIGHT), PIL.Image.Transform.AFFINE, shift, PIL.Image.Resampling.BICUBIC)
        )
        left = 8 + 7 * t
        frame[90:114, left : left + 24] = (200, 60, 40)
        masks[t, 90:114, left : left + 24] = True
        pixels.append(frame)
    return SourceClip(np.stack(pixels), FPS, (MovingObject(masks),)), quad.astype(float)


@pytest.fixture
def told(monkeypatch):
    """Says where the lines of a clip are instead of the models, and that nothing is read in them."""

    def say(source: SourceClip, quad: np.ndarray, words: str, drift: float = 0.0) -> TextLine:
        line = TextLine(quad - np.arange(33)[:, None, None] * (drift, 0), words, patch_shape(quad))
        monkeypatch.setattr(text, "text_lines", lambda clip: (line,))
        monkeypatch.setattr(text, "read_text", lambda patch: ("", 0.0))
        return line

    return say


def applied(name: str, source: SourceClip, seed: int = 0):
    for offset in range(20):
        try:
            return INJECTORS[name].apply(source, np.random.default_rng(seed + offset), 0.7)
        except NotApplicable:
            continue
    raise AssertionError(f"{name} never applies")


# ---- patches ------------------------------------------------------------------------------------------------------


def test_a_patch_that_is_put_back_where_it_was_leaves_an_upright_picture_as_it_was():
    image, quad = lettered("BAKERY")
    frame = np.asarray(image)
    shape = (int(quad[2, 1] - quad[0, 1]) + 1, int(quad[2, 0] - quad[0, 0]) + 1)
    patch = rectified(frame, quad.astype(float), shape)
    assert np.array_equal(patch, frame[quad[0, 1] : quad[2, 1] + 1, quad[0, 0] : quad[2, 0] + 1])
    assert np.array_equal(put_back(frame, patch, quad.astype(float), np.ones(shape, np.float32)), frame)


def test_a_quad_is_followed_through_shift_zoom_and_shear():
    image, quad = lettered("BAKERY", size=24, at=(60, 40))
    maps = [np.array([[1 - 0.008 * t, 0.004 * t, -2.0 * t], [0, 1 - 0.008 * t, -1.0 * t]]) for t in range(12)]
    frames = np.stack([
        np.asarray(image.transform((WIDTH, HEIGHT), PIL.Image.Transform.AFFINE, tuple(m.ravel()), PIL.Image.Resampling.BICUBIC))
        for m in maps
    ])  # fmt: skip
    quads = followed(frames, quad.astype(float), 0)
    for matrix, found in zip(maps, quads, strict=True):
        truth = np.linalg.solve(matrix[:, :2], (quad - matrix[:, 2]).T).T  # a transform maps places of the result back
        assert np.abs(found - truth).max() < 1.0


def test_a_line_is_lost_where_it_is_covered():
    source, quad = clip_with("BAKERY")
    pixels = source.pixels.copy()
    pixels[20:, 20:80, 60:200] = 90
    quads = followed(pixels, quad, 0)
    assert np.isfinite(quads[:20]).all() and np.isnan(quads[20:]).all()


def test_the_smallest_rectangle_of_a_turned_one_is_itself():
    turn = np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    corners = np.array([[0, 0], [50, 0], [50, 10], [0, 10]], float) @ turn + (30, 20)
    inner = np.random.default_rng(0).uniform((1, 1), (49, 9), (200, 2)) @ turn + (30, 20)
    found = smallest_rectangle(np.concatenate([inner, corners]))
    assert found is not None and np.allclose(found, corners)
    assert smallest_rectangle(np.array([[0.0, 0], [1, 1], [2, 2], [3, 3]])) is None


def test_a_likely_region_is_grown_by_area_over_perimeter():
    likely = np.zeros((60, 120), np.float32)
    likely[20:31, 30:71] = 0.9  # its pixels' centres span 40 x 10 px: grown by 1.6 * 400 / 100 = 6.4
    likely[50:52, 3:5] = 0.9
    (quad,) = likely_quads(likely, 0.6, 1.6)
    assert np.allclose(quad, [[23.6, 13.6], [76.4, 13.6], [76.4, 36.4], [23.6, 36.4]])


# ---- letters ------------------------------------------------------------------------------------------------------


def test_every_letter_is_found_and_the_edit_that_moves_nothing_gives_the_patch_back():
    patch = patch_of("BAKERY")
    ink = ink_of(patch)
    assert len(ink.cells) == 6
    assert np.allclose(drawn(patch, ink, ink.untouched), patch)


def test_letters_of_a_faint_line_and_of_a_plain_patch_are_refused():
    patch = patch_of("BAKERY")
    with pytest.raises(NotApplicable, match="faint"):
        ink_of(180 + 0.1 * (patch - 180))
    with pytest.raises(NotApplicable, match="stand out|faint"):
        ink_of(np.full((20, 80, 3), 120.0))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_broken_letters_keep_their_columns_and_the_ground(share):
    patch = patch_of("STATION")
    ink = ink_of(patch)
    edit = broken(ink, np.random.default_rng(2), share)
    result = drawn(patch, ink, edit)
    changed = [bool((np.abs(result - patch)[:, a:b] > 40).any()) for a, b in ink.cells]
    assert sum(changed) >= max(2, 0.4 * len(ink.cells)) and sum(changed) <= max(round(share * len(ink.cells)), 2)
    between = np.ones(patch.shape[1], bool)
    for a, b in ink.cells:
        between[a:b] = False
    assert np.abs(result - patch)[:, between].max() < 1
    assert np.abs(result[:2] - patch[:2]).max() < 8  # the ground above the letters


@pytest.mark.parametrize("words", ["OTTO", "WOW", "MAOAM", "AVA"])
def test_a_line_that_looks_the_same_mirrored_is_refused(words):
    with pytest.raises(NotApplicable, match="mirrored"):
        mirrored(ink_of(patch_of(words)))


@pytest.mark.parametrize("words", ["BAKERY", "FIRST", "Please"])
def test_a_mirrored_line_is_the_patch_read_backwards(words):
    patch = patch_of(words)
    ink = ink_of(patch)
    result = drawn(patch, ink, mirrored(ink))
    assert likeness(ink.light, ink_of(result).light[:, ::-1]) > 0.9


def test_letters_that_are_all_the_same_cannot_be_reordered():
    rng = np.random.default_rng(0)
    ink = ink_of(patch_of("OOOO"))
    with pytest.raises(NotApplicable, match="every order"):
        reordered(ink, rng, [ink.untouched])
    ink = ink_of(patch_of("BAKERY"))
    edit = reordered(ink, rng, [ink.untouched])
    assert ink.shown(edit).sum() == pytest.approx(ink.light.sum(), rel=0.05)


# ---- injectors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "drift"), [("glyph_scramble", 0.0), ("mirrored_line", 0.0), ("mirrored_line", 0.8), ("changing_text", 0.8)]
)
def test_the_twins_differ_in_the_line_and_nowhere_else(name, drift, told):
    source, quad = clip_with("BAKERY", drift=drift)
    line = told(source, quad, "BAKERY", drift)
    before = source.pixels.copy()
    edit = applied(name, source)
    assert np.array_equal(source.pixels, before) and edit.type == "Character Anomalies"
    truth = measure(edit)
    assert truth is not None and why_rejected(edit, truth, FPS, Injection()) is None
    assert (truth.first, truth.last) == (edit.numbers["first"], edit.numbers["last"])
    for frame, levels in enumerate(twin_difference(edit.anomalous, edit.sham)):
        assert levels[~dilated(quad_mask((HEIGHT, WIDTH), line.quads[frame]), 1)].max() == 0
        if not truth.first <= frame <= truth.last:
            assert levels.max() == 0
    # The sham was resampled, and nothing else: it is the source to within a blurred edge.
    assert np.mean(twin_difference(edit.sham, source.pixels) > 60) < 0.005
    again = applied(name, source)
    assert np.array_equal(edit.anomalous, again.anomalous)


def test_changing_text_changes_on_the_frames_that_a_judge_sees(told):
    source, quad = clip_with("BAKERY")
    told(source, quad, "BAKERY")
    for seed in range(4):
        edit = applied("changing_text", source, 100 * seed)
        seen = [t for t in range(0, 33, 4) if edit.numbers["first"] <= t <= edit.numbers["last"]]
        shown = [edit.anomalous[t, 26:70, 36:200].astype(int) for t in seen]
        assert len(shown) >= 2
        assert max(np.mean(np.abs(a - b).max(-1) > 60) for a, b in pairwise(shown)) > 0.05


def test_text_that_a_reader_still_reads_is_not_broken(told, monkeypatch):
    source, quad = clip_with("BAKERY")
    told(source, quad, "BAKERY")
    monkeypatch.setattr(text, "read_text", lambda patch: ("BAKERY", 1.0))
    with pytest.raises(NotApplicable, match="can still be read"):
        INJECTORS["glyph_scramble"].apply(source, np.random.default_rng(0), 0.7)


def test_a_clip_without_text_is_refused(monkeypatch):
    source, _ = clip_with("BAKERY")
    monkeypatch.setattr(text, "text_lines", lambda clip: ())
    for name in TEXT:
        with pytest.raises(NotApplicable, match="no text"):
            INJECTORS[name].apply(source, np.random.default_rng(0), 0.7)


# ---- signs --------------------------------------------------------------------------------------------------------


def plain_clip(crowd: range = range(0)) -> SourceClip:
    """33 frames of one picture without much detail; walkers pass through these rows from left to right."""
    ground = np.random.default_rng(0).integers(144, 157, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    pixels = np.repeat(np.kron(ground, np.ones((4, 4, 1), np.uint8))[None], 33, 0)
    for top in crowd:
        for t in range(33):
            left = -40 + 10 * t
            pixels[t, top : top + 20, max(left, 0) : max(left + 40, 0)] = (60, 70, 90)
    return SourceClip(pixels, FPS)


def test_both_twins_carry_the_sign_and_one_is_garbled():
    edit = applied("rendered_sign", plain_clip())
    truth = measure(edit)
    assert truth is not None and (truth.first, truth.last) == (0, 32)
    for twin in (edit.anomalous, edit.sham):
        assert (np.abs(twin.astype(int) - 150).max(-1) > 20)[:, edit.subject[0]].mean() > 0.2
    levels = twin_difference(edit.anomalous, edit.sham)
    assert levels[~edit.subject].max() == 0 and levels.max() > 60


def test_a_sign_stands_where_nobody_passes_and_is_refused_where_people_pass_everywhere():
    edit = applied("rendered_sign", plain_clip(range(64, 128, 32)))
    assert not edit.subject[:, 63:].any()
    with pytest.raises(NotApplicable, match="moves in front of every place"):
        render_sign(plain_clip(range(0, 128, 30)), np.random.default_rng(0), 0.7)


def test_a_sign_follows_the_camera():
    rng = np.random.default_rng(0)
    world = PIL.Image.fromarray(rng.integers(110, 190, (30, 60, 3), np.uint8)).resize((WIDTH + 60, HEIGHT))
    pixels = np.stack([np.asarray(world)[:, 2 * t : 2 * t + WIDTH] for t in range(25)])
    edit = applied("rendered_sign", SourceClip(pixels, FPS))
    columns = [np.flatnonzero(mask.any(0))[0] for mask in edit.subject]
    assert columns[0] - columns[20] == pytest.approx(40, abs=1.5)


# ---- with the real models -----------------------------------------------------------------------------------------


@pytest.fixture
def models():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("rapidocr")
    from cac_align.data.injection.sources import text_lines

    return SimpleNamespace(lines=text_lines.text_lines, read=text_lines.read_text)


def test_a_drawn_line_is_found_and_read_and_cannot_be_read_when_it_is_broken(models):
    source, quad = clip_with("BAKERY")
    (line,) = models.lines(source)
    assert line.text == "BAKERY" and len(line.frames) == 33
    assert np.abs(line.quads[0] - quad).max() < 8
    edit = applied("glyph_scramble", source)
    middle = (edit.numbers["first"] + edit.numbers["last"]) // 2
    read = [
        models.read(rectified(twin[middle], line.quads[middle], line.shape))[0] for twin in (edit.anomalous, edit.sham)
    ]
    assert read[1] == "BAKERY" and read[0] != "BAKERY"


def test_a_picture_without_text_has_none(models):
    assert models.lines(plain_clip(range(64, 128, 32))) == ()


@pytest.mark.parametrize("words", SIGN_WORDS[::7])
def test_a_sign_can_be_read(models, words):
    board, (rows, columns) = sign_board(words, 120, np.random.default_rng(1))
    assert models.read(board[rows, columns])[0].replace(" ", "") == words.replace(" ", "")
