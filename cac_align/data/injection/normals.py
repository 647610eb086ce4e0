"""Hard normals: clips without a defect that look unusual, so that a judge does not learn to fear them.

SourceClip + random stream → ``make_normal`` → pixels and what was done to the whole picture

A whole picture that is blurred, flashes, stutters, was coded badly or went through a VAE is normal,
and so is a thing that leaves the picture or goes behind another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cac_align.data.injection.injector import NotApplicable, SourceClip
from cac_align.data.injection.vae import vae_round_trip

Change = Callable[[SourceClip, np.random.Generator], np.ndarray]
"""(source, random stream) → pixels (T, H, W, 3) uint8. Raises ``NotApplicable``."""


def _untouched(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    return source.pixels


def _true_exit(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """Untouched, of a clip in which something really leaves, enters or is hidden."""
    count, height, width = source.shape
    for thing in source.objects:
        for end, beyond in ((thing.frames[-1], thing.frames[-1] < count - 1), (thing.frames[0], thing.frames[0] > 0)):
            left, top, right, bottom = thing.boxes[end]
            if beyond and (left <= 2 or top <= 2 or right >= width - 2 or bottom >= height - 2):
                return source.pixels
    raise NotApplicable("nothing leaves or enters the picture")


def _blur(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """The whole picture out of focus for a while."""
    from scipy import ndimage

    count = len(source.pixels)
    strongest = rng.uniform(0.004, 0.012) * min(source.shape[1:])
    middle, width = rng.uniform(0, count), rng.uniform(0.2, 0.6) * count
    out = source.pixels.copy()
    for frame in range(count):
        sigma = strongest * float(np.exp(-(((frame - middle) / width) ** 2)))
        if sigma > 0.3:
            out[frame] = ndimage.gaussian_filter(source.pixels[frame], (sigma, sigma, 0))
    return out


def _motion_blur(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """Every frame mixed with its neighbours, as a slow shutter does."""
    own = source.pixels.astype(np.uint16)
    before, after = np.concatenate([own[:1], own[:-1]]), np.concatenate([own[1:], own[-1:]])
    return ((before + 2 * own + after + 2) // 4).astype(np.uint8)


def _exposure(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """The light of the whole picture jumps at some frame, or flashes for one to three frames."""
    count = len(source.pixels)
    start = int(rng.integers(1, count - 1))
    end = count if rng.random() < 0.5 else min(start + int(rng.integers(1, 4)), count)
    gain = rng.uniform(1.15, 1.6) if rng.random() < 0.5 else rng.uniform(0.5, 0.85)
    levels = np.clip(np.arange(256) * gain + 0.5, 0, 255).astype(np.uint8)
    out = source.pixels.copy()
    out[start:end] = levels[out[start:end]]
    return out


def _dropped(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """The whole picture stands still for two to five frames and then jumps: frames were dropped."""
    count = len(source.pixels)
    length = int(rng.integers(2, 6))
    start = int(rng.integers(1, max(count - length, 2)))
    order = np.arange(count)
    order[start : start + length] = start - 1
    return source.pixels[order]


def _cut_out(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """A few frames are missing in the middle: the whole picture jumps; the last frame is held."""
    count = len(source.pixels)
    length = int(rng.integers(2, max(count // 5, 3)))
    start = int(rng.integers(2, max(count - length - 2, 3)))
    order = np.concatenate([np.arange(start), np.arange(start + length, count)])
    return source.pixels[np.concatenate([order, np.full(count - len(order), order[-1])])]


def _slow_motion(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """Half the speed: frames in between are mixed from their neighbours."""
    places = np.arange(len(source.pixels)) / 2 + float(rng.uniform(0, len(source.pixels) / 2 - 1))
    places = np.minimum(places, len(source.pixels) - 1)
    low = np.minimum(places.astype(int), len(source.pixels) - 2)
    share = (places - low)[:, None, None, None].astype(np.float32)
    mixed = source.pixels[low] * (1 - share) + source.pixels[low + 1] * share
    return (mixed + 0.5).astype(np.uint8)


def _recoded(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """Through x264 at a constant rate factor of 18 to 35."""
    import av

    from cac_align.core.encoding import REPEATABLE

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "coded.mp4")
        with av.open(path, "w") as container:
            stream = container.add_stream("libx264", rate=16)
            stream.width, stream.height, stream.pix_fmt = source.shape[2], source.shape[1], "yuv420p"
            stream.options = {"crf": str(int(rng.integers(18, 36))), "preset": "veryfast", **REPEATABLE}
            for frame in source.pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())
        with av.open(path) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _resized(source: SourceClip, rng: np.random.Generator) -> np.ndarray:
    """Scaled down to 40 to 70 % and up again."""
    import PIL.Image

    _, height, width = source.shape
    scale = rng.uniform(0.4, 0.7)
    small = (max(round(width * scale), 8), max(round(height * scale), 8))
    images = (PIL.Image.fromarray(frame) for frame in source.pixels)
    return np.stack([np.asarray(image.resize(small).resize((width, height))) for image in images])


NORMALS: Mapping[str, Change] = {
    "untouched": _untouched,
    "true exit": _true_exit,
    "blur": _blur,
    "motion blur": _motion_blur,
    "exposure jump": _exposure,
    "dropped frames": _dropped,
    "frames cut out": _cut_out,
    "slow motion": _slow_motion,
    "re-encoded": _recoded,
    "resized": _resized,
}
"""What makes a hard normal, by name. "vae" is added where a recipe names one."""


def make_normal(source: SourceClip, rng: np.random.Generator, vae: str = "") -> tuple[str, np.ndarray]:
    """A hard normal of this source: its name and pixels (T, H, W, 3).

    vae: a folder with an ``AutoencoderKLWan``; every fourth normal then goes through it.
    """
    if vae and rng.random() < 0.25:
        return "vae", vae_round_trip(source.pixels, vae)
    names = list(NORMALS)
    for index in rng.permutation(len(names)):
        try:
            return names[index], NORMALS[names[index]](source, rng)
        except NotApplicable:
            continue
    raise AssertionError("an untouched clip always applies")
