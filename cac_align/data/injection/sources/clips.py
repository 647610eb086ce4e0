"""A place in a video file → a clip that injectors can work on.

file → open (limits, clock) → frames around a place at a whole share of the source's rate → the shot
between cuts → black bars and subtitles off, scaled, cropped → background and moving objects →
SourceClip

The same file, place and settings give the same bytes. What cannot be used is refused with a reason
(``UnusableSource``), and whether the whole file is useless or only this place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from cac_align.core.limits import VideoLimits
from cac_align.core.video import Video
from cac_align.data.injection.injector import MovingObject, SourceClip
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.background import (
    grain_of,
    median_frame,
    median_indices,
    moving_masks,
    relit,
)
from cac_align.data.injection.sources.camera import camera_motion, warped
from cac_align.data.injection.sources.masks import difference, dilated
from cac_align.data.injection.sources.named_things import Segmenter, named_objects
from cac_align.data.injection.sources.objects import track_objects
from cac_align.data.injection.sources.shots import cuts, is_slide, picture_area
from cac_align.data.record_video import frames_off_clock

LONG_FOOTAGE = VideoLimits(
    max_frames=2_000_000, max_duration_s=86_400.0, max_fps=1000.0, max_pixels=7680 * 4320, max_decoded_pixels=2**29
)
"""Limits of a source: hours of footage may be one file, of which a few seconds are read at a time."""
_CONTEXT = 3  # a clip is looked for, and its background learnt, in so many times its length
_CHUNK = 2**26  # pixels decoded at once
_CHANGED = 0.3  # share of the picture that may change where the camera's motion is not understood
_KNOWN = 0.4  # share of the frames on which a pixel of the background must be seen


class UnusableSource(ValueError):
    """Why a source gives no clip. ``whole_file``: no other place of the file will do either."""

    def __init__(self, reason: str, whole_file: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.whole_file = reason, whole_file

    def __reduce__(self) -> tuple[type, tuple[str, bool]]:
        return UnusableSource, (self.reason, self.whole_file)


@dataclass(frozen=True)
class ClipOrigin:
    """Where a clip comes from. start_s and end_s: seconds on the source's clock. cropped: in words."""

    sha256: str
    start_s: float
    end_s: float
    source_fps: float
    cropped: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@lru_cache(maxsize=4)
def _opened(path: Path, changed_ns: int) -> Video:
    return Video.open(path, limits=LONG_FOOTAGE)


def open_source(path: Path, settings: Injection) -> Video:
    """The video behind a file. Raises ``UnusableSource`` for one that cannot be read or is too short."""
    try:
        video = _opened(path, path.stat().st_mtime_ns)
    except (ValueError, OSError) as error:
        raise UnusableSource(f"cannot be read: {error}", whole_file=True) from error
    if video.duration_s < settings.min_seconds - 1e-6:
        raise UnusableSource(f"too short: {video.duration_s:.2f} s, at least {settings.min_seconds:g}", whole_file=True)
    if min(video.height, video.width) < 64:
        raise UnusableSource(f"too small: {video.width}x{video.height}", whole_file=True)
    return video


def load_clip(
    video: Video,
    place: float,
    settings: Injection,
    prompt: str = "",
    *,
    unmoved: bool = False,
    segmenter: Segmenter | None = None,
) -> tuple[SourceClip, ClipOrigin]:
    """The clip near ``place`` (0: the video's first frame, 1: its last one) of an opened source.

    unmoved, segmenter: as for ``prepared_clip``. Raises ``UnusableSource`` when there is no shot of the wanted
    length there, or nothing moves.
    """
    indices, fps = _clock(video, place, settings)
    pixels = _decoded(video, indices, settings)
    wanted, least = (round(seconds * fps) + 1 for seconds in (settings.seconds, settings.min_seconds))
    shot = _shot(pixels, round(place * (len(pixels) - 1)), min(wanted, len(pixels)), min(least, wanted, len(pixels)))
    pixels, indices = pixels[shot], indices[shot]
    if is_slide(pixels):
        raise UnusableSource("a slide: nothing moves")
    rows, columns, cropped = picture_area(pixels)
    rows, columns = _fitting(rows, columns, settings.max_aspect)
    pixels = pixels[:, rows, columns]
    if min(pixels.shape[1:3]) < 64:
        raise UnusableSource(f"too small: {pixels.shape[2]}x{pixels.shape[1]} without {cropped}")
    length = min(wanted, len(pixels))
    first = min(max(round(place * (len(pixels) - 1)) - length // 2, 0), len(pixels) - length)
    inside = slice(first, first + length)
    name = Path(video.name).name
    clip = prepared_clip(pixels, fps, inside, prompt=prompt, name=name, unmoved=unmoved, segmenter=segmenter)
    times = [video.times_s[index] for index in indices[inside]]
    clip = replace(clip, body_models=settings.body_models)
    return clip, ClipOrigin(video.content_hash, times[0], times[-1], round(video.fps, 4), cropped)


def _clock(video: Video, place: float, settings: Injection) -> tuple[np.ndarray, float]:
    """Source indices around a place, and the rate at which they follow one another."""
    if frames_off_clock(video, (len(video) - 1) / video.times_s[-1] if len(video) > 1 else video.fps) > 0.5:
        return _resampled(video, place, settings)
    step = max(round(video.fps / settings.fps), 1)
    fps = video.fps / step
    span = min(_CONTEXT * (round(settings.seconds * fps) + 1), (len(video) - 1) // step + 1)
    start = round(place * (len(video) - 1 - (span - 1) * step))
    return start + step * np.arange(span), fps


def _resampled(video: Video, place: float, settings: Injection) -> tuple[np.ndarray, float]:
    """The same for a variable frame rate: the nearest frame to every tick of an even clock."""
    times = np.asarray(video.times_s)
    typical = 1 / float(np.median(np.diff(times)))
    fps = min(settings.fps, typical)
    span_s = min(_CONTEXT * settings.seconds, times[-1])
    start_s = place * (times[-1] - span_s)
    ticks = start_s + np.arange(math.floor(span_s * fps + 1e-6) + 1) / fps
    right = np.clip(np.searchsorted(times, ticks), 1, len(times) - 1)
    nearest = np.where(ticks - times[right - 1] <= times[right] - ticks, right - 1, right)
    if len(set(nearest.tolist())) < len(nearest) or np.abs(times[nearest] - ticks).max() > 0.6 / fps:
        raise UnusableSource("a variable frame rate with gaps: frames would have to be repeated")
    return nearest, fps


def _decoded(video: Video, indices: np.ndarray, settings: Injection) -> np.ndarray:
    """The frames, scaled so that the shorter side is at most ``short_side``, a few at a time."""
    scale = min(settings.short_side / min(video.height, video.width), 1.0)
    height, width = round(video.height * scale), round(video.width * scale)
    at_once = max(_CHUNK // (video.height * video.width), 2)
    parts = []
    for first in range(0, len(indices), at_once):
        try:
            part = video.frames(indices[first : first + at_once].tolist()).pixels
        except ValueError as error:
            raise UnusableSource(f"cannot be read: {error}") from error
        parts.append(part if scale == 1.0 else np.stack([_scaled(frame, height, width) for frame in part]))
    return np.concatenate(parts)


def _scaled(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    import PIL.Image

    return np.asarray(PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.HAMMING, reducing_gap=2))


def _shot(pixels: np.ndarray, centre: int, wanted: int, least: int) -> slice:
    """The shot around a frame, or the longest one. Raises ``UnusableSource`` where all are short."""
    borders = [0, *cuts(pixels), len(pixels)]
    shots = [slice(first, last) for first, last in pairwise(borders)]
    here = next(shot for shot in shots if shot.start <= centre < shot.stop)
    for able in ([here], sorted(shots, key=lambda shot: shot.start - shot.stop)):
        if able[0].stop - able[0].start >= wanted:
            return able[0]
    longest = max(shots, key=lambda shot: shot.stop - shot.start)
    if longest.stop - longest.start < least:
        raise UnusableSource(f"cuts: no shot here has {least} frames, {len(borders) - 2} cuts in {len(pixels)} frames")
    return longest


def _fitting(rows: slice, columns: slice, max_aspect: float) -> tuple[slice, slice]:
    """Cropped about the middle to at most ``max_aspect``, and to multiples of 8 px (of 2 below 128)."""
    sizes = [rows.stop - rows.start, columns.stop - columns.start]
    sizes = [min(size, int(max_aspect * other)) for size, other in zip(sizes, sizes[::-1], strict=True)]
    sizes = [size - size % (8 if min(sizes) >= 128 else 2) for size in sizes]
    out = []
    for area, size in zip((rows, columns), sizes, strict=True):
        start = area.start + (area.stop - area.start - size) // 2
        out.append(slice(start, start + size))
    return out[0], out[1]


def prepared_clip(
    pixels: np.ndarray,
    fps: float,
    inside: slice | None = None,
    *,
    prompt: str = "",
    name: str = "clip",
    unmoved: bool = False,
    segmenter: Segmenter | None = None,
) -> SourceClip:
    """A clip with its background and moving objects.

    pixels: the frames of one shot, (T, H, W, 3). inside: the frames that become the clip (None:
    all); the others help to see the background. unmoved: a clip in which no moving object can be
    followed is taken too, without objects and background. segmenter: what finds the objects; None: they
    are what moves. Raises ``UnusableSource`` when there is no such object, or the camera's motion
    cannot be undone: then the picture has no background.
    """
    inside = slice(0, len(pixels)) if inside is None else inside
    around = _nearby(inside, len(pixels))
    context, own = pixels[around], slice(inside.start - around.start, inside.stop - around.start)
    moving_camera = ""
    try:
        motion = camera_motion(context)
    except ValueError as error:  # perhaps what moves is large and the camera stands: then little else changes
        motion, moving_camera = None, str(error)
    clip = np.ascontiguousarray(context[own])
    plate, aligned = _plate(context, motion)
    for _ in range(2):
        backgrounds, defined = _seen_from(plate, clip, None if motion is None else motion[own])
        masks = moving_masks(clip, backgrounds) & defined
        tracked = track_objects(masks, clip, backgrounds)
        if not tracked.ghosts or motion is not None:
            break
        plate = plate.copy()
        for ghost in tracked.ghosts:
            area = np.any(ghost.masks, axis=0)
            plate[area] = median_frame(clip[ghost.frames])[area]
    objects, lost = (tracked.objects, ()) if segmenter is None else named_objects(segmenter.carried(clip))
    usable = bool(objects) and not (moving_camera and np.mean(masks) > _CHANGED)
    if unmoved and not usable:
        return SourceClip(clip, fps, grain=grain_of(clip), prompt=prompt, name=name, lost_things=lost)
    if moving_camera and np.mean(masks) > _CHANGED:
        raise UnusableSource(moving_camera)
    if not objects and segmenter is not None:
        raise UnusableSource(f"no named thing: {'; '.join(lost) or 'none of them is found on the middle frame'}")
    if not objects:
        share = float(np.mean(masks))
        why = "nothing moves against the background" if share < 0.002 else f"{share:.0%} of the picture changes"
        raise UnusableSource(f"no moving object: {why}, and no part of it can be followed")
    known = _known(plate, context, aligned, motion, own) & defined
    if segmenter is not None:
        known = known & _uncovered(clip, backgrounds, objects, None if motion is None else motion[own])
    return SourceClip(clip, fps, objects, backgrounds, known, grain_of(clip), prompt, name, lost_things=lost)


def _nearby(inside: slice, count: int) -> slice:
    """The clip and as much again on either side."""
    length = inside.stop - inside.start
    return slice(max(inside.start - length, 0), min(inside.stop + length, count))


_Aligned = tuple[list[np.ndarray], list[np.ndarray]]
"""Frames on the middle frame's ground, and where each was defined there."""


def _plate(context: np.ndarray, motion: np.ndarray | None) -> tuple[np.ndarray, _Aligned | None]:
    """The background as the middle frame would see it, and the aligned frames of a moving camera."""
    if motion is None:
        return median_frame(context), None
    middle = context[len(context) // 2]
    pairs = [warped(context[index], motion[index]) for index in median_indices(len(context))]
    images = [np.where(seen[..., None], image, middle) for image, seen in pairs]
    return median_frame(images), (images, [seen for _, seen in pairs])


def _seen_from(plate: np.ndarray, clip: np.ndarray, motion: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The background behind every frame, in its light, (T, H, W, 3); and where that is defined."""
    if motion is None:
        lit = [relit(plate, frame) for frame in clip]
        same = all(background is plate for background in lit)
        backgrounds = np.broadcast_to(plate, clip.shape) if same else np.stack(lit)
        return backgrounds, np.broadcast_to(np.True_, clip.shape[:3])
    backgrounds, defined = np.empty_like(clip), np.empty(clip.shape[:3], bool)
    for index, (frame, matrix) in enumerate(zip(clip, motion, strict=True)):
        image, defined[index] = warped(plate, np.linalg.inv(matrix))
        backgrounds[index] = np.where(defined[index][..., None], relit(image, frame), frame)
    return backgrounds, defined


def _known(
    plate: np.ndarray, context: np.ndarray, aligned: _Aligned | None, motion: np.ndarray | None, own: slice
) -> np.ndarray:
    """Where the background was seen on enough of the frames that the median was taken of, bool (T, H, W)."""
    images, seen = aligned if aligned is not None else (context[median_indices(len(context))], None)
    lit = [relit(plate, image) for image in images]
    noise = max(12.0, 5 * grain_of(context))
    free = np.stack([difference(image, background) <= noise for image, background in zip(images, lit, strict=True)])
    free &= ~dilated(moving_masks(np.asarray(images), lit), round(min(plate.shape[:2]) / 160))
    plane = np.mean(free if seen is None else free & np.asarray(seen), axis=0) >= _KNOWN
    return _on_frames(plane, own.stop - own.start, None if motion is None else motion[own])


def _on_frames(plane: np.ndarray, count: int, motion: np.ndarray | None) -> np.ndarray:
    """A mask (H, W) on the middle frame's ground as every frame sees it, bool (T, H, W)."""
    if motion is None:
        return np.broadcast_to(plane, (count, *plane.shape))
    pairs = [warped(_as_image(plane), np.linalg.inv(matrix)) for matrix in motion]
    return np.stack([inside & (picture[..., 0] >= 128) for picture, inside in pairs])


def _as_image(mask: np.ndarray) -> np.ndarray:
    return np.repeat(mask[..., None].astype(np.uint8) * 255, 3, -1)


def _uncovered(
    clip: np.ndarray, backgrounds: np.ndarray, objects: Sequence[MovingObject], motion: np.ndarray | None
) -> np.ndarray:
    """Where the background is what enough frames show beside the objects, bool (T, H, W). A named thing
    may stand still, and then the background learnt from the frames is the thing itself.
    """
    covered = dilated(np.any([thing.masks for thing in objects], axis=0), round(min(clip.shape[1:3]) / 160))
    noise = max(12.0, 5 * grain_of(clip))
    beside = ~covered & np.stack(
        [difference(frame, behind) <= noise for frame, behind in zip(clip, backgrounds, strict=True)]
    )
    if motion is not None:
        pairs = [warped(_as_image(mask), matrix) for mask, matrix in zip(beside, motion, strict=True)]
        beside = np.stack([inside & (picture[..., 0] >= 128) for picture, inside in pairs])
    return _on_frames(beside.mean(0) >= _KNOWN, len(clip), motion)
