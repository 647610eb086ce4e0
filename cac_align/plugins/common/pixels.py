"""A host's pixels as a ``Video``: tensors on any device, in any order of axes, float or uint8.

tensor, fps, layout → open_pixels → Video

Pixels become uint8 on the device where they are, and the CPU holds the copy: no tensor of the host
is kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cac_align.core.shapes import UInt8
from cac_align.core.video import Layout, Video

_DTYPES = ("torch.uint8", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")


def open_pixels(pixels: Any, fps: float, layout: Layout | None, name: str) -> Video:
    """A host's video as a ``Video`` at ``fps``; a leading batch axis of one is dropped.

    Raises ``ValueError`` as ``Video.open`` does.
    """
    if getattr(pixels, "ndim", 0) == 5 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if hasattr(pixels, "detach") and pixels.ndim == 4 and str(pixels.dtype) in _DTYPES:
        channels = ["THWC", "TCHW", "CTHW"] if layout is None else [layout]
        axes = [order.index("C") for order in channels if pixels.shape[order.index("C")] == 3]
        if len(axes) == 1 and (layout or axes[0] > 0):  # otherwise Video.open says how it reads the shape
            pixels, layout = _packed(pixels, axes[0]), "THWC"
    return Video.open(pixels, fps=fps, layout=layout, name=None if isinstance(pixels, str) else name)


def _packed(pixels: Any, channel_axis: int) -> UInt8[np.ndarray, "T H W 3"]:
    """A tensor, uint8 or float in [0, 1], as uint8 (T, H, W, 3) in memory.

    On the CPU the planes of a frame are scaled in NumPy, whose casts and strided writes are about
    five times as fast there as torch's. One plane at a time stays in the processor's cache.
    """
    import torch

    frames = pixels.detach().movedim(channel_axis, 1)  # (T, 3, H, W)
    if frames.numel() == 0:
        raise ValueError(f"pixels are empty, shape {tuple(pixels.shape)}")
    count, _, height, width = frames.shape
    packed, scaled = np.empty((count, height, width, 3), np.uint8), np.empty((height, width), np.float32)
    for frame, target in zip(frames, packed, strict=True):
        if pixels.is_floating_point():
            _check_range(*(float(end) for end in torch.aminmax(frame)))  # NaN comes through both
            frame = frame.float()
            if frame.device.type != "cpu":
                frame = frame.mul(255).round_().to(torch.uint8)
        for channel, plane in enumerate(frame.cpu().numpy()):
            if plane.dtype != np.uint8:
                np.rint(np.multiply(plane, 255, out=scaled), out=scaled)
                plane = scaled.astype(np.uint8)
            target[..., channel] = plane
    return packed


def _check_range(low: float, high: float) -> None:
    """Raise ``ValueError`` for float pixels that go beyond [0, 1] by more than a thousandth."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("pixels hold NaN or infinite values; the generator diverged")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"float pixels must lie in [0, 1], received [{low:.3g}, {high:.3g}]; rescale, or pass uint8 for [0, 255]"
        )
