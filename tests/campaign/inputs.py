"""Arrays, tensors and image lists of every shape; prompts of every text."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cac_align.core.judgement import Window
from cac_align.core.prompts import read_prompts
from cac_align.core.video import Video
from cac_align.generation.candidates import file_stem
from cac_align.rewards.cac import CaC
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger
from cac_align.vlm.scripted import ScriptedVlm
from tests.campaign.promise import Broken, Promise, refused

_DTYPES = [
    "uint8",
    "int8",
    "int64",
    "uint16",
    "float16",
    "float32",
    "float64",
    "bool",
    "complex64",
    "object",
    "U3",
    "M8[s]",
]
_FPS = [
    16,
    16.0,
    0,
    -1,
    math.nan,
    math.inf,
    1e-6,
    1e300,
    None,
    "16",
    True,
    np.float32(8),
    Fraction(30, 1),
    1j,
    [],
    10**400,
]


@dataclass(frozen=True)
class Array:
    """How an array is made: small enough to be stored."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    fill: float
    fps: Any
    layout: Any
    sample: Any

    def source(self) -> Any:
        if self.kind == "images":
            return _images(self)
        if self.kind == "open file":
            return io.BytesIO(b"x" * 100)
        with np.errstate(all="ignore"):
            made = (
                np.full(self.shape, self.fill).astype(self.dtype)
                if self.dtype != "object"
                else np.empty(self.shape, object)
            )
        if self.kind == "numpy":
            return made
        if self.kind == "list":
            return made.tolist()
        import torch

        if self.dtype not in ("uint8", "int8", "int64", "float16", "float32", "float64", "bool", "complex64"):
            return made[..., None]
        tensor = torch.from_numpy(made)
        if self.kind == "sparse":
            return tensor.to_sparse()
        if self.kind == "meta":
            return tensor.to("meta")
        if self.kind == "quantised" and self.dtype == "float32":
            return torch.quantize_per_tensor(torch.nan_to_num(tensor), 0.1, 0, torch.quint8)
        return tensor.requires_grad_() if self.dtype.startswith("float") else tensor


def _import_readers(_: Path) -> None:
    """Slow imports are no part of a case's time."""
    import PIL.Image  # noqa: F401
    import torch  # noqa: F401


def _images(array: Array) -> list[Any]:
    from PIL import Image

    modes = ["RGB", "L", "RGBA", "P", "1", "I;16", "F", "CMYK"]
    sizes = [max(side, 1) for side in array.shape] or [1]
    frames: list[Any] = [Image.new(modes[(n + len(sizes)) % 8], (sizes[0], sizes[-1])) for n in range(sizes[0])]
    if array.dtype == "object":
        frames.append(None)
    if array.dtype == "float16":
        whole = io.BytesIO()
        Image.new("RGB", (64, 64)).save(whole, "PNG")
        frames.append(Image.open(io.BytesIO(whole.getvalue()[:60])))
    return frames


def _check_array(_: Any, array: Array) -> None:
    source = array.source()
    video = refused(Video.open, source, fps=array.fps, layout=array.layout)
    if video is None:
        return
    frames = refused(video.frames, range(len(video)))
    if frames is not None:
        pixels, times = frames.pixels, np.asarray(video.times_s)
        if pixels.dtype != np.uint8 or pixels.shape != (len(video), video.height, video.width, 3) or 0 in pixels.shape:
            raise Broken(f"pixels of {pixels.dtype} {pixels.shape}")
        if not (np.isfinite(times).all() and (np.diff(times) > 0).all() and 0 < video.fps < math.inf):
            raise Broken("a clock that is not finite and increasing")
        if array.layout is None and len(array.shape) == 4 and array.kind in ("numpy", "tensor"):
            could = [name for name, axis in (("THWC", 3), ("TCHW", 1), ("CTHW", 0)) if array.shape[axis] == 3]
            if len(could) > 1:
                raise Broken(f"shape {array.shape} was read although it may be {' or '.join(could)}")
    refused(video.sample, array.sample)
    refused(video.with_fps, array.sample)
    refused(lambda: video.clip(Window(0.0, 0.1), 8))


_side = st.one_of(st.sampled_from([1, 2, 3, 4, 16]), st.integers(0, 9))
_array = st.builds(
    Array,
    st.sampled_from(
        ["numpy", "numpy", "tensor", "tensor", "sparse", "meta", "quantised", "images", "list", "open file"]
    ),
    st.sampled_from(_DTYPES),
    st.one_of(st.tuples(_side, _side, _side, _side), st.lists(_side, max_size=6).map(tuple)),
    st.sampled_from([0, 0.5, 1, 255, 256, -1, math.nan, math.inf, 1e-8]),
    st.one_of(st.just(16), st.sampled_from(_FPS), st.floats()),
    st.one_of(st.none(), st.sampled_from(["THWC", "TCHW", "CTHW", "HWC", "", [], 3, {}])),
    st.one_of(st.just(4), st.sampled_from(_FPS), st.floats()),
)


# ---- prompts --------------------------------------------------------------------------------------------------------

_NORMAL = json.dumps({"COT": "", "status": "normal", "anomalies": []})


@dataclass
class _Judged:
    folder: Path
    video: Video


def _prepare_prompts(folder: Path) -> _Judged:
    return _Judged(folder, Video.open(np.zeros((9, 16, 16, 3), np.uint8), fps=16))


def _check_prompt(context: _Judged, prompt: str) -> None:
    path = context.folder / "ledger.jsonl"
    path.unlink(missing_ok=True)
    judge = CaC(ScriptedVlm(lambda _: _NORMAL))
    first = refused(cached(judge, Ledger(path)), [prompt, "a ball"], [context.video] * 2)
    if first is None:
        raise Broken("one prompt refused the call, and the neighbour has no score")
    if not abs(first[1].value - 0.9) < 1e-9 or (first[0].scored and not abs(first[0].value - 0.9) < 1e-9):
        raise Broken(f"scores {[score.value for score in first]}, expected 0.9")
    again = Ledger(path)
    if again.faults or cached(judge, again)([prompt, "a ball"], [context.video] * 2)[1] != first[1]:
        raise Broken(f"the ledger gives back something else: {again.faults}")
    stem = refused(file_stem, prompt)
    if stem is not None and ("/" in stem or len(stem.encode("utf-8", "replace")) > 200):
        raise Broken(f"a file stem that is no file name: {stem[:80]!r}")
    file = context.folder / "prompts.txt"
    file.write_bytes(prompt.encode("utf-8", "surrogatepass"))
    refused(read_prompts, file)


_text = st.one_of(
    st.text(st.characters(), max_size=60),
    st.text(st.sampled_from('{}[]"\\:,/.%$\0\r\n\u2028\ud800\udfffpromt '), max_size=40),
    st.tuples(st.sampled_from([" ", "a", "{prompt}", "\n", "</script>", "é"]), st.integers(0, 5000)).map(
        lambda p: p[0] * p[1]
    ),
)
PROMISES = (
    Promise("arrays", "Arrays, tensors, images and clocks of any kind are read as uint8 frames or refused",
            _import_readers, _array, _check_array, 3.0),
    Promise("prompts", "No prompt harms its neighbour, the ledger or a file name",
            _prepare_prompts, _text, _check_prompt),
)  # fmt: skip
