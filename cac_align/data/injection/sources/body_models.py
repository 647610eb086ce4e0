"""The small models that find people, hands and faces: MediaPipe's .tflite files, run by ai-edge-litert.

frame + place → ``crop`` → network → ``detections`` (boxes and key points) or ``landmarks``

The files are not part of this package. They are read from the wheel of mediapipe 0.10.21 (later ones
have none), from a folder into which it was unpacked, or from the installed package.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["pose", "hand", "face"]
HOW_TO_GET = (
    "pip download --no-deps --only-binary=:all: --python-version 3.12 mediapipe==0.10.21, and set "
    "injection.body_models to the .whl file that it fetches"
)
"""The fix where the files are missing."""

_DETECTORS = {"pose": "pose_detection", "hand": "palm_detection_full", "face": "face_detection_full_range_sparse"}
_LANDMARKS = {"pose": "pose_landmark_full", "hand": "hand_landmark_full", "face": "face_landmark"}
MODEL_FILES = (*_DETECTORS.values(), *_LANDMARKS.values())
"""The .tflite files that are used, without their endings."""
_GRIDS: dict[str, tuple[tuple[int, int], ...]] = {  # cells per side of the picture, and boxes per cell
    "pose": ((28, 2), (14, 2), (7, 6)),
    "hand": ((24, 2), (12, 6)),
    "face": ((48, 1),),
}
_SURE = 0.5  # probability that there is one


@dataclass(frozen=True)
class Place:
    """A square in a picture: its centre and side in px, and its turn in radians (clockwise on screen)."""

    x: float
    y: float
    side: float
    turn: float = 0.0

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points (…, 2) in shares of the square, from its upper left corner, in px of the picture."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        return (points - 0.5) * self.side @ np.array([[c, s], [-s, c]]) + (self.x, self.y)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Points (N, 2) in px, how surely each can be seen (N,), and for a pose the person's mask (H, W)."""

    points: np.ndarray
    seen: np.ndarray
    mask: np.ndarray | None = None


# ---- the files ----------------------------------------------------------------------------------------------------


def why_no_models(where: str) -> str | None:
    """Why the models cannot be read: None where they can. where: a wheel or a folder; "" for the
    installed package.
    """
    found = _files(where)
    absent = sorted(name for name in MODEL_FILES if name not in found)
    if not absent:
        return None
    return f"{where or 'the installed mediapipe'} has no {absent[0]}.tflite: {HOW_TO_GET}"


@lru_cache(maxsize=4)
def _files(where: str) -> dict[str, tuple[str, str]]:
    """Wheel ("" for plain files) and path of every .tflite file, by name."""
    path = Path(where).expanduser()
    if not where:
        spec = find_spec("mediapipe")
        if spec is None or not spec.origin:
            return {}
        path = Path(spec.origin).parent
    if path.is_dir():
        return {file.stem: ("", str(file)) for file in sorted(path.rglob("*.tflite"))}
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as wheel:
        return {Path(name).stem: (str(path), name) for name in sorted(wheel.namelist()) if name.endswith(".tflite")}


@lru_cache(maxsize=8)
def _network(where: str, name: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    wheel, path = _files(where)[name]
    if wheel:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(path)
    else:
        content = Path(path).read_bytes()
    network = Interpreter(model_content=content, num_threads=1)
    network.allocate_tensors()
    return network


def _run(where: str, name: str, image: np.ndarray) -> list[np.ndarray]:
    """The outputs of a network for an image (S, S, 3), in the order of their names, without the batch axis."""
    network = _network(where, name)
    network.set_tensor(network.get_input_details()[0]["index"], image[None].astype(np.float32))
    network.invoke()
    outputs = sorted(network.get_output_details(), key=lambda output: output["name"])
    return [network.get_tensor(output["index"])[0] for output in outputs]


def _side(where: str, name: str) -> int:
    return int(_network(where, name).get_input_details()[0]["shape"][1])


# ---- pictures and places ------------------------------------------------------------------------------------------


def crop(frame: np.ndarray, place: Place, side: int) -> np.ndarray:
    """What a place of the frame (H, W, 3) shows, upright, float32 (side, side, 3) in [0, 1]; black beyond
    the frame.
    """
    import PIL.Image

    image = PIL.Image.fromarray(frame)
    smaller = max(int(place.side / side), 1)
    if smaller > 1:
        image = image.reduce(smaller)
    origin = place.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) / smaller
    across, down = (origin[1] - origin[0]) / side, (origin[2] - origin[0]) / side
    numbers = (across[0], down[0], origin[0, 0], across[1], down[1], origin[0, 1])
    turned = image.transform((side, side), PIL.Image.Transform.AFFINE, numbers, PIL.Image.Resampling.BILINEAR)
    return np.asarray(turned, np.float32) / 255


def _whole(frame: np.ndarray) -> Place:
    height, width = frame.shape[:2]
    return Place(width / 2, height / 2, max(height, width))


def anchors(kind: Kind) -> np.ndarray:
    """The centres of a detector's boxes, x and y in shares of the picture, (N, 2)."""
    rows = []
    for cells, count in _GRIDS[kind]:
        centres = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(centres, centres, indexing="ij")
        rows.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), count, axis=0))
    return np.concatenate(rows)


def decoded(kind: Kind, raw: np.ndarray, scores: np.ndarray, side: int) -> list[np.ndarray]:
    """Boxes and key points of what a detector found, best first, each (2 + K, 2) in shares of the picture:
    the box's centre, its size, and the key points. raw: (N, 4 + 2 K) in px. scores: (N,) logits.
    """
    likely = 1 / (1 + np.exp(-np.clip(scores, -80, 80)))
    kept: list[np.ndarray] = []
    for index in np.argsort(-likely, kind="stable"):
        if likely[index] < _SURE:
            break
        rows = raw[index].reshape(-1, 2) / side
        rows = rows + np.where(np.arange(len(rows))[:, None] == 1, 0.0, anchors(kind)[index])
        if all(np.any(np.abs(rows[0] - other[0]) > np.maximum(other[1], rows[1]) / 2) for other in kept):
            kept.append(rows)
    return kept


def detections(where: str, kind: Kind, frame: np.ndarray, within: Place | None = None) -> list[Place]:
    """Where people, hands or faces are in a frame (or in a place of it), the surest first: the squares
    that the network of landmarks wants.
    """
    name = _DETECTORS[kind]
    side, within = _side(where, name), within or _whole(frame)
    image = crop(frame, within, side)
    raw, scores = _run(where, name, image if kind == "hand" else 2 * image - 1)
    places = []
    for rows in decoded(kind, raw, scores[:, 0], side):
        points = within.to_picture(np.concatenate([rows[:1], rows[2:]]))
        places.append(_place_of(kind, points[0], float(rows[1].max()) * within.side, points[1:]))
    return places


def _place_of(kind: Kind, centre: np.ndarray, size: float, points: np.ndarray) -> Place:
    if kind == "pose":  # the hips' middle and a point on a circle around the person
        reach = points[1] - points[0]
        return _square(points[0], 2.5 * float(np.linalg.norm(reach)), _upright(reach))
    if kind == "hand":  # the palm, from the wrist to the middle finger's root; the fingers lie beyond it
        turn = _upright(points[2] - points[0])
        shift = 0.5 * size * np.array([np.sin(turn), -np.cos(turn)])
        return _square(centre + shift, 2.6 * size, turn)
    eyes = points[1] - points[0]
    return _square(centre, 1.5 * size, float(np.arctan2(eyes[1], eyes[0])))


def _square(centre: np.ndarray, side: float, turn: float) -> Place:
    return Place(float(centre[0]), float(centre[1]), side, turn)


def _upright(direction: np.ndarray) -> float:
    """The turn of a square whose upward side points in this direction (y down)."""
    return float(np.arctan2(direction[0], -direction[1]))


def next_place(kind: Kind, points: np.ndarray) -> Place:
    """Where to look on the next frame, from the landmarks on this one, in px."""
    if kind == "pose":
        reach = points[34] - points[33]
        return _square(points[33], 2.5 * float(np.linalg.norm(reach)), _upright(reach))
    if kind == "hand":
        turn = _upright(points[9] - points[0])
        chosen, grow, shift = points[[0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18]], 2.0, 0.1
    else:
        eyes = points[263] - points[33]
        turn, chosen, grow, shift = float(np.arctan2(eyes[1], eyes[0])), points, 1.5, 0.0
    c, s = np.cos(turn), np.sin(turn)
    flat = chosen @ np.array([[c, -s], [s, c]])
    low, high = flat.min(0), flat.max(0)
    middle = (low + high) / 2 - (0, shift * (high - low)[1])
    return _square(np.array([[c, -s], [s, c]]) @ middle, grow * float((high - low).max()), turn)


def landmarks(where: str, kind: Kind, frame: np.ndarray, place: Place) -> Landmarks | None:
    """The landmarks in a place of a frame; None where the network sees nobody there."""
    name = _LANDMARKS[kind]
    side = _side(where, name)
    outputs = _run(where, name, crop(frame, place, side))
    flat, sure = outputs[0].ravel(), float(outputs[1].ravel()[0])
    if kind == "face":
        sure = float(1 / (1 + np.exp(-sure)))
    if sure < _SURE:
        return None
    numbers = flat.reshape({"pose": 39, "hand": 21, "face": 468}[kind], -1)
    points = place.to_picture(numbers[:, :2] / side)
    if kind != "pose":
        return Landmarks(points, np.ones(len(points)))
    seen = 1 / (1 + np.exp(-np.clip(numbers[:, 3], -80, 80)))
    return Landmarks(points, seen, _uncropped(outputs[2][..., 0] > 0, place, frame.shape[:2]))


def _uncropped(mask: np.ndarray, place: Place, shape: tuple[int, int]) -> np.ndarray:
    """A mask (S, S) of a place as a mask (H, W) of the picture."""
    from scipy import ndimage

    rows, columns = np.indices(shape, np.float32)
    c, s = np.cos(place.turn), np.sin(place.turn)
    x, y = columns - place.x, rows - place.y
    scale = len(mask) / place.side
    places = np.stack([(-s * x + c * y) * scale + len(mask) / 2, (c * x + s * y) * scale + len(mask) / 2])
    return ndimage.map_coordinates(mask.astype(np.float32), places, order=1, mode="constant") > 0.5
