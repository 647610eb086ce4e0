"""Video: any input, one type, fps always known; frames are decoded only when asked for.

path | bytes | array | tensor | PIL frames → Video.open → Video (source clock: times_s) →
sample(fps) / clip(window) → Frames

Time has one clock. ``times_s[i]`` is the time stamp of source frame ``i`` in seconds, starting at
0: read from the container's own time stamps (variable frame rate is honoured) or i / fps where the
caller overrides the container. Frames are named by their *source* index everywhere;
``Frames.indices`` carries it along. 81 frames at 16 fps give 21 frames at 4 fps (0, 4, …, 80) and
41 at 8 fps (CaC, Sec. 3.4 and Table S2).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from cac_align.core.decoding import FileFrames, read_index
from cac_align.core.images import is_animated_webp, open_image_folder
from cac_align.core.judgement import Window
from cac_align.core.limits import VideoLimits
from cac_align.core.shapes import UInt8

if TYPE_CHECKING:
    import PIL.Image
    import torch

_SAMPLES_AT_ONCE = 65_536  # sampling times in memory at one time

Layout = Literal["THWC", "TCHW", "CTHW"]
VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi")
"""Endings by which video files are found in a folder; WebP, which may be a still image, is told by its head."""


class Encoded(Protocol):
    """Frames that nobody has looked at yet. Picklable."""

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    @property
    def jpegs(self) -> tuple[bytes, ...] | None:
        """The frames as whole RGB JPEG files; None where any of them is something else."""
        ...

    def decode(self) -> UInt8[np.ndarray, "T H W 3"]:
        """Raises ``ValueError`` that names the frame that cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class Frames:
    """Some frames of a video, in order: ``pixels[n]`` is source frame ``indices[n]`` at
    ``times_s[n]`` seconds.

    pixels: uint8, shape (T, H, W, 3), RGB. indices: strictly increasing source indices. times_s:
    source clock. fps: the rate that was asked for (frames per second); may be higher than the
    source could give. num_source_frames: how many frames the whole video has. Frames that arrived
    as encoded images are decoded when ``pixels`` is first read, and that read raises ``ValueError``
    when one of them is broken; ``shape`` and ``encoded`` never decode.
    """

    pixels: UInt8[np.ndarray, "T H W 3"] = field(repr=False)
    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    fps: float
    num_source_frames: int

    @classmethod
    def undecoded(
        cls, images: Encoded, indices: tuple[int, ...], times_s: tuple[float, ...], fps: float, num_source_frames: int
    ) -> Frames:
        """Frames whose pixels are decoded on first use."""
        frames = cls.__new__(cls)
        clock = {"indices": indices, "times_s": times_s, "fps": fps, "num_source_frames": num_source_frames}
        frames.__dict__.update(clock, _images=images)
        return frames

    def __getattr__(self, name: str) -> Any:
        # Reached only for what an instance lacks: ``pixels`` of undecoded frames, once.
        if name != "pixels" or "_images" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        pixels = self.__dict__["pixels"] = self._images.decode()
        return pixels

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3)."""
        return self.__dict__["_images"].shape if "_images" in self.__dict__ else self.pixels.shape

    @property
    def encoded(self) -> tuple[bytes, ...] | None:
        """One whole RGB JPEG file per frame, as it arrived; None where the frames came as anything
        else.
        """
        return self.__dict__["_images"].jpegs if "_images" in self.__dict__ else None


@dataclass(frozen=True, eq=False)
class Video:
    """A video with a known clock. Make one with ``Video.open``.

    times_s: time stamp of every source frame in seconds, starting at 0, strictly increasing. fps:
    nominal frames per second of the source. height, width: pixels. name: how messages and reports
    call it.
    """

    fps: float
    times_s: tuple[float, ...]
    height: int
    width: int
    name: str
    _source: Any = field(repr=False)
    limits: VideoLimits = field(default_factory=VideoLimits.default, repr=False)

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | bytes | np.ndarray | torch.Tensor | Sequence[PIL.Image.Image] | Video,
        *,
        fps: float | None = None,
        layout: Layout | None = None,
        name: str | None = None,
        limits: VideoLimits | None = None,
    ) -> Video:
        """Open anything that is a video.

        source: path or bytes of an mp4, webm, gif, animated WebP, …; path of a folder with numbered
        images; a uint8 array or tensor in [0, 255] or a float one in [0, 1]; PIL frames.
        fps: frames per second. Required for arrays, tensors, PIL frames and folders of images. For
        files it overrides the container's clock
            (every RL stack tags its files with a wrong rate): time stamps then are index / fps.
        layout: axis order of an array or tensor, "THWC", "TCHW" or "CTHW"; needed only where the
        shape leaves two readings.
        limits: what the video may cost; None takes ``VideoLimits.default()``.
        Raises ``ValueError`` for anything that is not a readable video, with what was expected,
        received and how to mend it.
        """
        fps = None if fps is None else _checked_fps(fps)
        if isinstance(source, Video):
            return source if fps is None or fps == source.fps else source.with_fps(fps)
        limits = VideoLimits.default() if limits is None else limits
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _open_file(bytes(source), fps, name, limits)
        if isinstance(source, (str, os.PathLike)):
            return _open_file(Path(source), fps, name, limits)
        if hasattr(source, "read"):
            raise ValueError(
                f"expected a path or bytes, received an open file ({type(source).__name__}); pass its path"
            )
        if fps is None:
            raise ValueError(
                "fps is required for arrays, tensors and image lists: they carry no clock; pass fps=16 for Wan"
            )
        name = name or "video"
        pixels = _as_pixels(source, layout, limits, name)
        times = tuple(index / fps for index in range(len(pixels)))
        limits.check_clock(times[-1], fps, name)
        return cls(fps, times, pixels.shape[1], pixels.shape[2], name, pixels, limits)

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last one's display, (last time stamp) + 1
        / fps.
        """
        return self.times_s[-1] + 1 / self.fps

    @property
    def path(self) -> Path | None:
        """The file behind the video, if it is a file."""
        return self._source.path if isinstance(self._source, FileFrames) else None

    @property
    def length_verified(self) -> bool:
        """Whether a video that was cut short would have been noticed.

        False where the container cannot tell (MPEG-TS, live streams): the video may have had more frames.
        """
        return getattr(self._source, "length_verified", True)

    def with_fps(self, fps: float) -> Video:
        """The same frames on another clock: time stamps become index / fps."""
        fps = _checked_fps(fps)
        times = tuple(index / fps for index in range(len(self)))
        self.limits.check_clock(times[-1], fps, self.name)
        return Video(fps, times, self.height, self.width, self.name, self._source, self.limits)

    def frames(self, indices: Sequence[int], *, fps: float | None = None) -> Frames:
        """The frames at these source indices (strictly increasing), decoded now (those sent as
        images: on first use).

        Raises ``ValueError`` when an index is out of range, out of order, the file breaks off
        before it, or the frames are more than ``limits`` allow at once.
        """
        indices = tuple(int(index) for index in indices)
        if not indices:
            raise ValueError(f"{self.name}: no frames asked for; expected at least one source index")
        if list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= len(self):
            raise ValueError(
                f"{self.name}: expected increasing source indices in [0, {len(self) - 1}], received {indices}"
            )
        self.limits.check_read(len(indices), self.height, self.width, self.name)
        times = tuple(self.times_s[index] for index in indices)
        clock = (indices, times, self.fps if fps is None else fps, len(self))
        picked = self._source[list(indices)] if isinstance(self._source, np.ndarray) else self._source.read(indices)
        return Frames(picked, *clock) if isinstance(picked, np.ndarray) else Frames.undecoded(picked, *clock)

    def indices_at(self, fps: float, window: Window | None = None) -> tuple[int, ...]:
        """Source indices that sample the video (or its window) at ``fps`` frames per second. No
        pixels are decoded.

        Sampling times are window start + k / fps up to the window's end; each takes the source
        frame whose time stamp is nearest (the earlier one on a tie), and no frame is taken twice.
        Without a window, sampling starts at time 0. A window that holds a single sample is widened
        to the neighbouring one (Qwen3-VL needs two frames to see a video), where the video has two.
        Raises ``ValueError`` when ``fps`` is not positive or the window lies outside the video.
        """
        fps = _checked_fps(fps)
        last_s = self.times_s[-1]
        self.limits.check_clock(last_s, fps, self.name)
        start_s, end_s = (0.0, last_s) if window is None else (window.start_s, min(window.end_s, last_s))
        if start_s > last_s + 1e-6:
            raise ValueError(f"{self.name}: window starts at {start_s:.3f} s, after the last frame at {last_s:.3f} s")
        start_s = min(start_s, end_s)
        count = math.floor((end_s - start_s) * fps + 1e-6) + 1
        times_s = np.asarray(self.times_s)
        nearest: set[int] = set()
        for first in range(0, count, _SAMPLES_AT_ONCE):
            wanted = start_s + np.arange(first, min(first + _SAMPLES_AT_ONCE, count)) / fps
            nearest.update(_nearest(times_s, wanted).tolist())
        chosen = sorted(nearest)
        if len(chosen) == 1 and len(self) > 1:
            step_s = 1 / fps if chosen[0] < len(self) - 1 else -1 / fps
            near = int(_nearest(np.asarray(self.times_s), np.asarray([self.times_s[chosen[0]] + step_s]))[0])
            if near == chosen[0]:
                near += 1 if step_s > 0 else -1
            chosen = sorted({chosen[0], near})
        return tuple(chosen)

    def sample(self, fps: float) -> Frames:
        """The whole video at ``fps`` frames per second: turn 1 of CaC uses 4 (Sec. 3.4). Shape (T,
        H, W, 3), uint8.
        """
        return self.frames(self.indices_at(fps), fps=fps)

    def clip(self, window: Window, fps: float = 8.0, margin_s: float = 0.0) -> Frames:
        """The frames inside ``window`` at ``fps`` frames per second: turn 2 of CaC uses 8 (Sec.
        3.4). margin_s: seconds more on either side, as far as the video goes.
        """
        return self.frames(self.indices_at(fps, window.widened(margin_s)), fps=fps)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the encoded bytes of a file (or the raw pixels) and the clock: the video's
        identity in the ledger.
        """
        digest = hashlib.sha256()
        if isinstance(self._source, np.ndarray):
            digest.update(repr(self._source.shape).encode())
            digest.update(np.ascontiguousarray(self._source).data)
        else:
            digest.update(self._source.data())
        digest.update(np.asarray(self.times_s, dtype="<f8").tobytes())
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return (Video, (self.fps, self.times_s, self.height, self.width, self.name, self._source, self.limits))


def _nearest(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """Index of the time stamp nearest to each wanted time; the earlier one on a tie. Shapes (T), (K) → (K)."""
    right = np.clip(np.searchsorted(times_s, wanted_s), 0, len(times_s) - 1)
    left = np.maximum(right - 1, 0)
    nearer_left = np.abs(wanted_s - times_s[left]) <= np.abs(times_s[right] - wanted_s) + 1e-9
    return np.where(nearer_left, left, right)


def _checked_fps(fps: object) -> float:
    """The rate as a float. Raises ``ValueError`` for anything but a positive number."""
    try:
        rate = float(fps) if isinstance(fps, Real) and not isinstance(fps, bool) else math.nan
    except OverflowError:  # an integer beyond every float
        rate = math.inf
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"fps must be a positive number of frames per second, received {fps!r}")
    return rate


def is_video_file(path: Path) -> bool:
    """Whether a file is taken for a video by its ending, or by its head where it is WebP."""
    suffix = path.suffix.lower()
    return suffix in VIDEO_SUFFIXES or (suffix == ".webp" and is_animated_webp(path))


def _open_folder(folder: Path, fps: float | None, name: str, limits: VideoLimits) -> Video:
    images = open_image_folder(folder, limits, name)
    if fps is None:
        raise ValueError(f"{name}: a folder of images carries no clock; pass fps (--fps 16 for Wan)")
    times_s = tuple(index / fps for index in range(len(images.files)))
    limits.check_clock(times_s[-1], fps, name)
    return Video(fps, times_s, images.height, images.width, name, images, limits)


def _open_file(source: Path | bytes, fps: float | None, name: str | None, limits: VideoLimits) -> Video:
    if isinstance(source, Path) and source.is_dir():
        return _open_folder(source, fps, name or str(source), limits)
    frames = FileFrames(source, limits)
    label = name or (str(source) if isinstance(source, Path) else f"{len(source)} bytes")
    index = read_index(frames, label)
    limits.check_frames(len(index.times_s), label)
    video = Video(index.fps, index.times_s, index.height, index.width, label, frames, limits)
    if fps is not None:
        return video.with_fps(fps)
    limits.check_clock(index.times_s[-1], index.fps, label)
    return video


def _as_pixels(source: Any, layout: Layout | None, limits: VideoLimits, name: str) -> np.ndarray:
    """Arrays, tensors and PIL lists as uint8 (T, H, W, 3)."""
    if isinstance(source, (list, tuple)):
        return _stacked_images(source, limits, name)
    if hasattr(source, "detach"):  # a torch tensor, told by its method so that torch need not be imported
        source = _tensor_array(source)
    if not isinstance(source, np.ndarray):
        raise ValueError(
            f"expected a path, bytes, array, tensor or list of PIL images, received {type(source).__name__}"
        )
    if np.ma.is_masked(source):
        raise ValueError(f"{name}: some pixels are masked; fill them first (array.filled)")
    pixels = np.transpose(source, _axes(source.shape, layout))
    if pixels.size == 0:
        raise ValueError(f"a video needs at least one frame with pixels, received shape {source.shape}")
    limits.check_frames(len(pixels), name)
    limits.check_size(pixels.shape[1], pixels.shape[2], name)
    if np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all():
            raise ValueError(
                f"pixels hold {int((~np.isfinite(pixels)).sum())} NaN or infinite values; the generator diverged"
            )
        low, high = float(pixels.min()), float(pixels.max())
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(
                f"float pixels must lie in [0, 1], received [{low:.3g}, {high:.3g}]; "
                "rescale, or pass uint8 for [0, 255]"
            )
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 in [0, 255] or floats in [0, 1], received {pixels.dtype}")
    return np.ascontiguousarray(pixels)


def _stacked_images(images: Sequence[Any], limits: VideoLimits, name: str) -> np.ndarray:
    """PIL images of one size as uint8 (T, H, W, 3)."""
    if not images:
        raise ValueError("expected at least one PIL frame, received an empty list")
    for image in images:
        if not (hasattr(image, "convert") and hasattr(image, "size")):
            raise ValueError(f"expected a list of PIL images, received a list of {type(image).__name__}")
    if len({image.size for image in images}) != 1:
        raise ValueError(f"frames differ in size: {sorted({image.size for image in images})}; resize them first")
    width, height = images[0].size
    limits.check_frames(len(images), name)
    limits.check_size(height, width, name)
    limits.check_read(len(images), height, width, name)
    pixels = np.empty((len(images), height, width, 3), np.uint8)
    for index, image in enumerate(images):
        try:
            pixels[index] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # its file is read only now, and may be cut
            raise ValueError(f"{name}: image {index} of the list cannot be read: {error}") from error
    return pixels


def _tensor_array(tensor: Any) -> np.ndarray:
    """A torch tensor as an array. Raises ``ValueError`` for one that holds no plain dense numbers."""
    try:
        tensor = tensor.detach().to("cpu")
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"expected a dense tensor of uint8 or floats, received a tensor that is no array "
            f"(layout {tensor.layout}, dtype {tensor.dtype}, device {tensor.device}): {str(error).splitlines()[0]}"
        ) from error


def _axes(shape: tuple[int, ...], layout: Layout | None) -> tuple[int, int, int, int]:
    """The permutation that brings an array of this shape to (T, H, W, 3)."""
    if len(shape) != 4:
        raise ValueError(f"expected 4 axes (frames, height, width, 3 channels), received shape {shape}")
    readings = {"THWC": (0, 1, 2, 3), "TCHW": (0, 2, 3, 1), "CTHW": (1, 2, 3, 0)}
    if layout is not None:
        if not isinstance(layout, str) or layout not in readings:
            raise ValueError(f"layout must be one of {', '.join(readings)}; received {layout!r}")
        if shape[layout.index("C")] != 3:
            raise ValueError(f"layout {layout} expects 3 channels on axis {layout.index('C')}, received shape {shape}")
        return readings[layout]
    possible = [name for name in readings if shape[name.index("C")] == 3]
    if not possible:
        raise ValueError(f"no axis of shape {shape} has 3 channels; expected THWC, TCHW or CTHW in RGB")
    if possible == ["CTHW"]:  # or three frames that are grey (one channel) or have transparency (four)
        possible += [name for name in ("THWC", "TCHW") if shape[name.index("C")] in (1, 4)]
    if len(possible) > 1:
        raise ValueError(f"shape {shape} can be read as {' or '.join(possible)}; pass layout=, in RGB")
    return readings[possible[0]]


VideoInput = Video | str | os.PathLike[str]
"""What a reward takes as one video: the video, or the path of its file."""


def check_pairs(prompts: Sequence[str], videos: Sequence[Any]) -> None:
    """Raise ``ValueError`` unless there is exactly one prompt per video."""
    if len(prompts) != len(videos):
        raise ValueError(f"expected one prompt per video, received {len(prompts)} prompts and {len(videos)} videos")


def as_pairs(prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> tuple[list[str], list[Video]]:
    """Prompts and videos as lists of equal length. One text stands for one prompt, one video or path
    for one video, and paths are opened.

    Raises ``ValueError`` that names the argument which is neither, cannot be opened, or is missing.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    given = [videos] if isinstance(videos, (str, os.PathLike, Video)) else list(videos)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"prompts[{number}]: expected a text, received {type(text).__name__}")
    check_pairs(texts, given)
    return texts, [_opened(video, number) for number, video in enumerate(given)]


def _opened(video: VideoInput, number: int) -> Video:
    if isinstance(video, (str, os.PathLike)):
        try:
            return Video.open(video)
        except ValueError as error:
            raise ValueError(f"videos[{number}]: {error}") from error
    if not hasattr(video, "frames"):
        raise ValueError(
            f"videos[{number}]: expected a Video or the path of a file, received {type(video).__name__}; "
            "Video.open(frames, fps=…) makes a Video of frames"
        )
    return video
