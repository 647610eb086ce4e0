"""What an injector takes and gives: a source clip with its moving objects, and the two twins of an
edit.

SourceClip + random stream + severity → Injector.apply → Edit (anomalous, sham, subject, vacated)

Masks are bool (T, H, W), pixels uint8 RGB (T, H, W, 3), lengths are in pixels and y points down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from cac_align.core.shapes import UInt8

Tier = Literal["core", "inject", "gpu"]
"""What must be installed: nothing more, the extra ``inject``, or a GPU and weights that a recipe names."""


class NotApplicable(ValueError):
    """The source has not what an injector needs. The text says what is missing."""


@dataclass(frozen=True, eq=False)
class MovingObject:
    """A thing followed from frame to frame: one that moves against the background, or one that the recipe names.

    ``masks`` is empty on frames on which it was not found.
    """

    masks: np.ndarray
    noun: str = "moving object"

    @cached_property
    def frames(self) -> np.ndarray:
        """Indices of the frames on which the object is seen, (N,)."""
        return np.flatnonzero(self.masks.any((1, 2)))

    @cached_property
    def boxes(self) -> np.ndarray:
        """Left, top, right, bottom in px (right and bottom exclusive) on every frame, (T, 4); NaN
        where the object is not seen.
        """
        boxes = np.full((len(self.masks), 4), np.nan)
        rows, columns = np.any(self.masks, axis=2), np.any(self.masks, axis=1)
        for frame in self.frames:
            y, x = np.flatnonzero(rows[frame]), np.flatnonzero(columns[frame])
            boxes[frame] = x[0], y[0], x[-1] + 1, y[-1] + 1
        return boxes

    @property
    def centres(self) -> np.ndarray:
        """Centres of the boxes, x and y in px, (T, 2); NaN where the object is not seen."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @property
    def size(self) -> np.ndarray:
        """Median width and height of the boxes in px, (2,)."""
        return np.nanmedian(self.boxes[:, 2:] - self.boxes[:, :2], axis=0)

    @property
    def grounded(self) -> bool:
        """Whether its lower edge stays nearly level, as that of something that stands or rolls."""
        bottom = self.boxes[self.frames, 3]
        return bool(np.ptp(np.quantile(bottom, [0.05, 0.95])) <= max(0.12 * self.size[1], 2.0))


@dataclass(frozen=True, eq=False)
class SourceClip:
    """A good clip on a constant clock, ready for an injector.

    ``background`` (T, H, W, 3) uint8 is what is behind the moving objects, with ``background_known``
    (T, H, W) where that was really seen; both None where it could not be found (then injectors that
    uncover something do not apply). ``grain`` is the standard deviation of the sensor noise in grey
    levels. ``body_models``: where the models of people, hands and faces are, as in the recipe.
    ``lost_things``: for each named thing that could not be followed, why.
    """

    pixels: UInt8[np.ndarray, "T H W 3"]
    fps: float
    objects: tuple[MovingObject, ...] = ()
    background: np.ndarray | None = None
    background_known: np.ndarray | None = None
    grain: float = 0.0
    prompt: str = ""
    name: str = "clip"
    body_models: str = ""
    lost_things: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return self.pixels.shape[:3]


@dataclass(frozen=True, eq=False)
class Edit:
    """Two twins and what an injector did to one of them.

    ``anomalous`` and ``sham`` went through the same operation; that of the sham had no effect.
    ``subject``: the anomalous thing on the frames on which it is anomalous; of an ``absence`` the
    missing thing where the sham shows it, on all frames. ``vacated``: what changed only because
    something left it. ``numbers`` go into the record.
    """

    anomalous: UInt8[np.ndarray, "T H W 3"]
    sham: UInt8[np.ndarray, "T H W 3"]
    type: str
    subtype: str
    reason: str
    region: str
    subject: np.ndarray
    vacated: np.ndarray | None = None
    absence: bool = False
    numbers: Mapping[str, Any] = field(default_factory=dict)


Apply = Callable[[SourceClip, np.random.Generator, float], Edit]
"""(source, random stream, severity in (0, 1]) → Edit. Raises ``NotApplicable``."""


@dataclass(frozen=True)
class Injector:
    """A named way to put a defect into a clip.

    requires: names of the modules without which it cannot run. unmoved: it also applies to clips in
    which no moving object is found. body_models: it needs the models that find people, hands and faces.
    """

    name: str
    tier: Tier
    apply: Apply
    requires: tuple[str, ...] = ()
    unmoved: bool = False
    body_models: bool = False
