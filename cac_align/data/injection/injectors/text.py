"""Text that is wrong: Character Anomalies. Letters that are broken, that change, or that stand mirrored.

A line is taken out upright on every frame on which it is seen, its ink is rearranged on those of the
defect, and it is put back. The sham is put back as it was, so that both twins are resampled alike.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher

import numpy as np

from cac_align.data.injection.injector import Edit, Injector, NotApplicable, SourceClip
from cac_align.data.injection.injectors.compositing import choose_span
from cac_align.data.injection.injectors.glyphs import Ink, broken, drawn, ink_of, mirrored, reordered
from cac_align.data.injection.sources.planes import put_back, quad_mask, rectified
from cac_align.data.injection.sources.text_lines import MIN_LINE_FRAMES, TextLine, read_text, text_lines

TYPE = "Character Anomalies"
_NEEDS = ("onnxruntime", "rapidocr")
_READABLE = 0.7  # share of the characters that are read as before
_SCAN_FPS = 4.0  # every form that changing text takes must be seen by a judge that looks so often


def scramble_glyphs(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The letters of a line are broken into pieces and cannot be read."""
    line, ink = _chosen(source, rng)
    first, last = _span(rng, line, 6, 32)
    edit = broken(ink, rng, 0.5 + 0.5 * severity)
    patch = rectified(source.pixels[first], line.quads[first], line.shape)
    read, _ = read_text(drawn(patch, ink, edit))
    if SequenceMatcher(None, read, line.text).ratio() > _READABLE:
        raise NotApplicable(f"the text can still be read when its letters are broken: {read!r}")
    return _edited(
        source,
        line,
        ink,
        lambda frame: edit if first <= frame <= last else ink.untouched,
        (first, last),
        ("unreadable text", "the letters of a line of text are broken into pieces and cannot be read"),
    )


def mirror_line(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """A line stands mirrored; everything around it does not."""
    line, ink = _chosen(source, rng)
    first, last = _span(rng, line, 6, 8 + round(24 * severity))
    edit = mirrored(ink)
    return _edited(
        source,
        line,
        ink,
        lambda frame: edit if first <= frame <= last else ink.untouched,
        (first, last),
        ("mirrored text", "a line of text is mirrored while everything around it is not"),
    )


def change_text(source: SourceClip, rng: np.random.Generator, severity: float) -> Edit:
    """The letters of a line change places again and again: each order stays for a quarter to half a
    second, the more severe the shorter, and looks unlike the ones before and after it.
    """
    line, ink = _chosen(source, rng)
    shortest = max(int(np.ceil(source.fps / _SCAN_FPS)), 3)
    longest = max(round((2 - severity) * shortest), shortest)
    first, last = _span(rng, line, 2 * shortest, len(source.pixels))
    forms: dict[int, np.ndarray] = {}
    form, before, at = ink.untouched, [ink.untouched], first
    while last + 1 - at >= shortest:
        length = int(rng.integers(shortest, longest + 1))
        if last + 1 - at - length < shortest:
            length = last + 1 - at
        form = reordered(ink, rng, before)
        before = [ink.untouched, form]
        forms |= dict.fromkeys(range(at, at + length), form)
        at += length
    if len({id(form) for form in forms.values()}) < 2:
        raise NotApplicable("the line is not seen long enough to change more than once")
    return _edited(
        source,
        line,
        ink,
        lambda frame: forms.get(frame, ink.untouched),
        (first, last),
        ("changing text", "the letters of a line of text change again and again while it should stay the same"),
    )


def _span(rng: np.random.Generator, line: TextLine, least: int, most: int) -> tuple[int, int]:
    try:
        return choose_span(rng, line.frames, least, most)
    except NotApplicable:
        raise NotApplicable(f"the text is not seen whole on {least + 2} frames in a row") from None


def _chosen(source: SourceClip, rng: np.random.Generator) -> tuple[TextLine, Ink]:
    """A line that is seen long enough and whose letters stand out; and where they are.

    Raises ``NotApplicable`` where there is none.
    """
    lines = text_lines(source)
    if not lines:
        raise NotApplicable("no text")
    able = [line for line in lines if len(line.frames) >= MIN_LINE_FRAMES]
    if not able:
        raise NotApplicable(f"no text is seen whole on {MIN_LINE_FRAMES} frames")
    line = able[int(rng.integers(len(able)))]
    sampled = line.frames[np.linspace(0, len(line.frames) - 1, 9).round().astype(int)]
    patches = [rectified(source.pixels[frame], line.quads[frame], line.shape) for frame in sampled]
    return line, ink_of(np.median(patches, axis=0))


def _edited(
    source: SourceClip,
    line: TextLine,
    ink: Ink,
    form: Callable[[int], np.ndarray],
    span: tuple[int, int],
    label: tuple[str, str],
) -> Edit:
    """Both twins. form: the edit on a frame. label: subtype and reason."""
    anomalous, sham = source.pixels.copy(), source.pixels.copy()
    matte = edge_matte(line.shape)
    subject = np.zeros(source.shape, bool)
    for frame in line.frames:
        quad = line.quads[frame]
        patch = rectified(source.pixels[frame], quad, line.shape)
        sham[frame] = put_back(source.pixels[frame], patch, quad, matte)
        edit = form(int(frame))
        if edit is ink.untouched:
            anomalous[frame] = sham[frame]
        else:
            anomalous[frame] = put_back(source.pixels[frame], drawn(patch, ink, edit), quad, matte)
            subject[frame] = quad_mask(source.shape[1:], quad)
    numbers = {"first": span[0], "last": span[1], "text": line.text, "letters": len(ink.cells)}
    return Edit(anomalous, sham, TYPE, *label, "line of text", subject, numbers=numbers)


def edge_matte(shape: tuple[int, int]) -> np.ndarray:
    """A matte (h, w) that is 1 inside and fades over the outermost px."""
    fade = max(shape[0] / 16, 1.0)
    rows, columns = (np.minimum(np.arange(size), np.arange(size)[::-1]) for size in shape)
    return np.clip(np.minimum.outer(rows, columns) / fade, 0, 1).astype(np.float32)


TEXT_INJECTORS = (
    Injector("glyph_scramble", "inject", scramble_glyphs, requires=_NEEDS, unmoved=True),
    Injector("mirrored_line", "inject", mirror_line, requires=_NEEDS, unmoved=True),
    Injector("changing_text", "inject", change_text, requires=_NEEDS, unmoved=True),
)
"""What is wrong with text that a clip shows."""
