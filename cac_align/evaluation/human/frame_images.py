"""Encoded frames for the rating page, decoded by source index, a chunk at a time, and cached."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from cac_align.core.video import Video

FRAMES_PER_CHUNK = 48
CACHED_BYTES = 512 * 2**20


class FrameImages:
    """Encoded frames by clip and index. Whole chunks are decoded at once; the least recently used
    are dropped.
    """

    def __init__(self, clips: dict[str, Video]) -> None:
        self.clips = clips
        self._locks = {token: threading.Lock() for token in clips}
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._bytes = 0

    def image(self, token: str, index: int) -> bytes:
        """One frame as PNG (small videos) or JPEG. Raises ``ValueError`` when it cannot be decoded."""
        chunk = index // FRAMES_PER_CHUNK
        with self._locks[token]:
            with self._lock:
                found = self._chunks.get((token, chunk))
                if found is not None:
                    self._chunks.move_to_end((token, chunk))
            if found is None:
                found = self._decoded(self.clips[token], chunk)
                with self._lock:
                    self._chunks[token, chunk] = found
                    self._bytes += sum(map(len, found))
                    while self._bytes > CACHED_BYTES and len(self._chunks) > 1:
                        self._bytes -= sum(map(len, self._chunks.popitem(last=False)[1]))
        return found[index % FRAMES_PER_CHUNK]

    @staticmethod
    def _decoded(video: Video, chunk: int) -> list[bytes]:
        import PIL.Image

        frames = video.frames(range(chunk * FRAMES_PER_CHUNK, min((chunk + 1) * FRAMES_PER_CHUNK, len(video))))
        images = []
        for pixels in frames.pixels:
            buffer = io.BytesIO()
            if is_lossless(video):
                PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            else:
                PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=93, subsampling=0)
            images.append(buffer.getvalue())
        return images


def is_lossless(video: Video) -> bool:
    """Whether the video is small enough for PNG frames."""
    return video.height * video.width <= 256 * 256
