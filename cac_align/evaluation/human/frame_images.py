"""Exact frames for the rating page: decoded by source index, encoded once, kept while they are near.

Video + index → the chunk around it, decoded in one go → PNG (small videos) or JPEG → least recently used cache
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from cac_align.core.video import Video

CHUNK = 48  # frames decoded together: stepping asks for neighbours
CACHED_BYTES = 512 * 2**20


class FrameImages:
    """Encoded frames by clip and index; whole chunks are decoded at once and the least used ones are forgotten."""

    def __init__(self, clips: dict[str, Video]) -> None:
        self.clips = clips
        self._locks = {token: threading.Lock() for token in clips}
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._bytes = 0

    def image(self, token: str, index: int) -> bytes:
        """One frame as PNG (small videos, every pixel counts) or JPEG. Raises ``ValueError`` when it cannot be decoded."""
        chunk = index // CHUNK
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
        return found[index % CHUNK]

    @staticmethod
    def _decoded(video: Video, chunk: int) -> list[bytes]:
        import PIL.Image

        frames = video.frames(range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(video))))
        images = []
        for pixels in frames.pixels:
            buffer = io.BytesIO()
            if exact(video):
                PIL.Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            else:
                PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=93, subsampling=0)
            images.append(buffer.getvalue())
        return images


def exact(video: Video) -> bool:
    return video.height * video.width <= 256 * 256
