"""A video file's frames, decoded once and kept while several readers need them.

video → shared_video → the same video; the first read decodes all its frames, later reads pick from them
    → release_frames → the frames are dropped

Judges of one bench ask for different frames of the same file: 4 per second, 8 per second, 16 evenly spaced ones.
A decoder passes through the frames between them anyway, so one pass for all of them costs less than one for each.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cac_align.core.decoding import FileFrames
from cac_align.core.shapes import UInt8
from cac_align.core.video import Video


def decoded_bytes(video: Video) -> int:
    """The bytes that all frames of a video take as uint8 RGB."""
    return 3 * len(video) * video.height * video.width


def shared_video(video: Video) -> Video:
    """The same video, whose frames are all decoded when the first of them is read, and kept.

    Only a file's frames are kept. Frames that are in memory already, and folders of images, are returned as they are.
    A file of which some frame cannot be decoded is read as if it were not shared. Threads may share the video. A copy
    in another process decodes for itself.
    """
    source = video._source
    if type(source) is not FileFrames:
        return video
    kept = KeptFrames(source.source, source.limits)
    kept.__dict__["_table"] = source._table  # found when the file was opened
    return Video(video.fps, video.times_s, video.height, video.width, video.name, kept, video.limits)


def release_frames(video: Video) -> None:
    """Drop the frames that ``shared_video`` kept; a later read decodes them again."""
    if isinstance(video._source, KeptFrames):
        video._source.release()


@dataclass
class _Store:
    """The decoded frames, once they are there. It is pickled empty."""

    pixels: UInt8[np.ndarray, "T H W 3"] | None = None
    undecodable: bool = False
    lock: Any = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Store, ())


@dataclass(frozen=True)
class KeptFrames(FileFrames):
    """A file whose frames are decoded together and kept. Made by ``shared_video``."""

    store: _Store = field(default_factory=_Store, compare=False, repr=False)

    def read(self, indices: tuple[int, ...]) -> UInt8[np.ndarray, "T H W 3"]:
        """These frames, in order. Raises ``ValueError`` as ``FileFrames.read`` does."""
        count = len(self._table.stamps)
        with self.store.lock:
            if self.store.pixels is None and not self.store.undecodable:
                try:
                    self.store.pixels = super().read(tuple(range(count)))
                except ValueError:
                    self.store.undecodable = True
            pixels = self.store.pixels
        if pixels is None or any(not 0 <= index < count for index in indices):
            return super().read(indices)
        return pixels[list(indices)]

    def release(self) -> None:
        """Drop the frames."""
        with self.store.lock:
            self.store.pixels, self.store.undecodable = None, False
