"""What a video may cost in memory and time; a larger one is refused before anything is allocated."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from functools import lru_cache

ENVIRONMENT_VARIABLE = "CAC_ALIGN_VIDEO_LIMITS"
"""Changes the limits of a whole process, e.g. ``max_frames=50000,max_duration_s=36000``."""


@dataclass(frozen=True)
class VideoLimits:
    """Upper limits of one video. Raises ``ValueError`` for one that is no positive number."""

    # Frames of the whole video.
    max_frames: int = 10_000
    # Seconds from the first frame to the last one. A damaged time stamp may state years.
    max_duration_s: float = 14_400.0
    # Frames per second, of the video's clock and of sampling.
    max_fps: float = 1000.0
    # Pixels of one frame; the default is 8K.
    max_pixels: int = 7680 * 4320
    # Pixels of all the frames that are decoded together; each takes three bytes. The default is 1.6 GB.
    max_decoded_pixels: int = 2**29

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be a positive number, received {value!r}")

    @classmethod
    def default(cls) -> VideoLimits:
        """The limits of this process: those above, changed by ``CAC_ALIGN_VIDEO_LIMITS``.

        Raises ``ValueError`` when that variable names no limit or gives it no positive number.
        """
        return _parse(os.environ.get(ENVIRONMENT_VARIABLE, ""))

    def check_frames(self, count: int, name: str) -> None:
        """Raise ``ValueError`` for a video without frames or with too many."""
        if count == 0:
            raise ValueError(f"{name}: a video needs at least one frame, received none")
        if count > self.max_frames:
            raise ValueError(f"{name}: {count} frames; at most {self.max_frames} are accepted, cut the video first")

    def check_clock(self, duration_s: float, fps: float, name: str) -> None:
        """Raise ``ValueError`` for a video that lasts too long, or a rate that is too high."""
        if not duration_s <= self.max_duration_s:
            raise ValueError(
                f"{name}: lasts {duration_s:.6g} s; at most {self.max_duration_s:g} s are accepted. "
                "A damaged time stamp looks like this too; otherwise cut the video, or raise max_duration_s"
            )
        if not fps <= self.max_fps:
            raise ValueError(f"{name}: {fps:g} frames per second; at most {self.max_fps:g} are accepted")

    def check_size(self, height: int, width: int, name: str) -> None:
        """Raise ``ValueError`` for frames that are too large."""
        if height * width > self.max_pixels:
            raise ValueError(
                f"{name}: frames of {height}×{width} px; at most {self.max_pixels} pixels are accepted, scale it down"
            )

    def check_read(self, count: int, height: int, width: int, name: str) -> None:
        """Raise ``ValueError`` for frames that together would take too much memory."""
        if count * height * width > self.max_decoded_pixels:
            raise ValueError(
                f"{name}: {count} frames of {height}×{width} px at once are more than {self.max_decoded_pixels} "
                f"pixels; scale the video down, sample fewer frames, or raise max_decoded_pixels in "
                f"{ENVIRONMENT_VARIABLE}"
            )


@lru_cache(maxsize=8)
def _parse(text: str) -> VideoLimits:
    known = {field.name for field in fields(VideoLimits)}
    values: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = entry.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in known or not (math.isfinite(number) and number > 0):
            raise ValueError(
                f"{ENVIRONMENT_VARIABLE}: expected limits such as max_frames=20000,max_duration_s=7200 "
                f"({', '.join(sorted(known))}), received {entry!r}"
            )
        values[name] = number if name in ("max_duration_s", "max_fps") else int(number)
    return VideoLimits(**values)  # pyright: ignore[reportArgumentType]
