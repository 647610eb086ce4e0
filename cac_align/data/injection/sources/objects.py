"""Moving things followed from frame to frame.

masks of what moves → components → tracks → MovingObject, the largest and longest first

A component is the same thing as the one on the frame before with which it shares most pixels, or
that lies nearest. Where two things meet and become one component, both tracks end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cac_align.data.injection.injector import MovingObject
from cac_align.data.injection.sources.background import outline_edges

MAX_OBJECTS = 5
"""How many objects of a clip are kept."""
_SHORTEST = 6  # frames
_LOST_OUTLINE = 0.12  # share of an outline along which the background has the edge and the frame has none
LARGEST = 0.4
"""The largest share of the frame's area that an object covers."""


@dataclass
class _Track:
    frames: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    centres: list[tuple[float, float]] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)

    def add(self, frame: int, label: int, area: int, centre: tuple[float, float], size: float) -> None:
        self.frames.append(frame)
        self.labels.append(label)
        self.areas.append(area)
        self.centres.append(centre)
        self.sizes.append(size)

    @property
    def travel(self) -> float:
        """The largest distance between two centres, as a share of the size."""
        centres = np.asarray(self.centres)
        return float(np.linalg.norm(np.ptp(centres, axis=0)) / max(float(np.median(self.sizes)), 1.0))


@dataclass(frozen=True, eq=False)
class TrackedMasks:
    """Objects that move, and ghosts: places where the background holds a thing that has left."""

    objects: tuple[MovingObject, ...]
    ghosts: tuple[MovingObject, ...]


def track_objects(masks: np.ndarray, pixels: np.ndarray, backgrounds: np.ndarray) -> TrackedMasks:
    """The moving objects behind masks (T, H, W) of what differs from the backgrounds (T, H, W, 3)."""
    labels = _labelled(masks)
    tracks = _linked(labels)
    found: list[tuple[float, MovingObject]] = []
    ghosts = []
    for track in tracks:
        if len(track.frames) < _SHORTEST or np.median(track.areas) > LARGEST * masks[0].size:
            continue
        thing = MovingObject(_masks_of(track, labels))
        chosen = np.asarray(track.frames)[np.linspace(0, len(track.frames) - 1, 4).round().astype(int)]
        edges = np.median([outline_edges(thing.masks[t], pixels[t], backgrounds[t]) for t in chosen], axis=0)
        real, whole = edges[0] > 0, edges[1] <= _LOST_OUTLINE
        if real and whole and track.travel >= 0.15:
            found.append((float(np.sqrt(np.median(track.areas)) * len(track.frames)), thing))
        elif not real and track.travel < 0.15:
            ghosts.append(thing)
    found.sort(key=lambda pair: -pair[0])
    return TrackedMasks(tuple(thing for _, thing in found[:MAX_OBJECTS]), tuple(ghosts))


def _labelled(masks: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels = np.zeros(masks.shape, np.int32)
    for mask, out in zip(masks, labels, strict=True):
        ndimage.label(mask, np.ones((3, 3), bool), out)
    return labels


def _masks_of(track: _Track, labels: np.ndarray) -> np.ndarray:
    masks = np.zeros(labels.shape, bool)
    for frame, label in zip(track.frames, track.labels, strict=True):
        masks[frame] = labels[frame] == label
    return masks


def _linked(labels: np.ndarray) -> list[_Track]:
    from scipy import ndimage

    done: list[_Track] = []
    open_tracks: list[_Track] = []
    for frame, current in enumerate(labels):
        boxes = ndimage.find_objects(current)
        parts = []
        for index, box in enumerate(boxes, 1):
            if box is None:
                continue
            inside = current[box] == index
            y, x = np.nonzero(inside)
            centre = (float(x.mean()) + box[1].start, float(y.mean()) + box[0].start)
            parts.append((index, int(inside.sum()), centre, float(max(inside.shape)), box, inside))
        links = []
        for position, track in enumerate(open_tracks):
            before = labels[track.frames[-1]] == track.labels[-1]
            speed = np.subtract(track.centres[-1], track.centres[-2]) if len(track.centres) > 1 else np.zeros(2)
            expected = np.add(track.centres[-1], speed)
            for place, (_, area, centre, size, box, inside) in enumerate(parts):
                ratio = area / track.areas[-1]
                if not 0.4 < ratio < 1.7:
                    continue
                shared = int((before[box] & inside).sum()) / min(area, track.areas[-1])
                distance = float(np.linalg.norm(np.subtract(centre, expected))) / max(size, track.sizes[-1])
                if shared > 0.25 or distance < 0.5:
                    links.append((distance - shared, position, place))
        taken_tracks, taken_parts = set[int](), set[int]()
        for _, position, place in sorted(links):
            if position not in taken_tracks and place not in taken_parts:
                open_tracks[position].add(frame, *parts[place][:4])
                taken_tracks.add(position)
                taken_parts.add(place)
        done += [track for position, track in enumerate(open_tracks) if position not in taken_tracks]
        open_tracks = [track for position, track in enumerate(open_tracks) if position in taken_tracks]
        for place, part in enumerate(parts):
            if place not in taken_parts:
                track = _Track()
                track.add(frame, *part[:4])
                open_tracks.append(track)
    return done + open_tracks
