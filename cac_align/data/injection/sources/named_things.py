"""Things that a recipe names, found by GroundingDINO and followed by SAM 2 (both in transformers).

frames → boxes of every name on the middle frame → SAM 2, forwards and backwards → masks (T, H, W)
    → ``named_objects`` → MovingObject, or why a thing was lost

What SAM 2 does not follow is not guessed: a thing that is lost in the middle of the shot, or whose
mask jumps, is left out with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cac_align.core.shapes import UInt8
from cac_align.data.injection.injector import MovingObject
from cac_align.data.injection.sources.objects import LARGEST, MAX_OBJECTS

_SMALLEST = 0.0005  # share of the frame's area
_JUMP = 2.5  # ratio of a mask's area to that of the frame before
_SAME = 0.7  # IoU of two boxes from which they are taken for one thing


@dataclass(frozen=True, eq=False)
class Carried:
    """What a segmenter says of one thing: its name, and masks, bool (T, H, W), empty where it is not seen."""

    noun: str
    masks: np.ndarray


class Segmenter(Protocol):
    """Masks of things through a shot. It can be pickled, so that worker processes load it by themselves."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """What identifies its models, and what they look for."""
        ...

    def carried(self, pixels: UInt8[np.ndarray, "T H W 3"]) -> Sequence[Carried]:
        """The things of a shot."""
        ...


def named_objects(things: Sequence[Carried]) -> tuple[tuple[MovingObject, ...], tuple[str, ...]]:
    """The things that were followed through the whole shot, at most ``MAX_OBJECTS``, the largest first; and
    for each of the others why not.
    """
    found: list[MovingObject] = []
    lost: list[str] = []
    for thing in things:
        reason = _why_lost(thing)
        if reason is None:
            found.append(MovingObject(thing.masks, thing.noun))
        else:
            lost.append(reason)
    found.sort(key=lambda thing: -int(thing.masks.sum()))
    return tuple(found[:MAX_OBJECTS]), tuple(lost)


def _why_lost(thing: Carried) -> str | None:
    masks, noun = thing.masks, thing.noun
    seen, areas = np.flatnonzero(masks.any((1, 2))), masks.sum((1, 2))
    count, size = len(masks), masks[0].size
    if not len(seen):
        return f"not segmented: the {noun} has a box and no mask"
    if gone := sorted(set(range(seen[0], seen[-1] + 1)) - set(seen.tolist())):
        return f"lost mid-shot: the {noun} has no mask on frame {gone[0] + 1} of {count}"
    for frame, outside in ((seen[0], seen[0] > 0), (seen[-1], seen[-1] < count - 1)):
        if outside and not _touches_border(masks[frame]):
            return f"lost mid-shot: the {noun} ends on frame {frame + 1} of {count}, inside the picture"
    typical = np.median(areas[seen])
    if not _SMALLEST * size <= typical <= LARGEST * size:
        return f"too small or too large: the {noun} covers {typical / size:.2%} of the picture"
    inner = [frame for frame in seen if not _touches_border(masks[frame])]  # an entering thing grows in leaps
    for before, after in pairwise(inner):
        if after == before + 1 and max(areas[after], areas[before]) > _JUMP * min(areas[after], areas[before]):
            return f"mask jumps: the {noun} has {areas[before]} px and then {areas[after]} on frame {after + 1}"
    return None


def _touches_border(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


# ---- the models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroundedSam:
    """GroundingDINO and SAM 2 video by their names: folders or hub ids.

    things: what to look for, in words, such as "dog" or "red car". threshold: the least score of a
    box, in (0, 1). device: as for ``pick_device``. Each process loads the weights on first use.
    """

    grounding_dino: str
    sam2: str
    things: tuple[str, ...]
    threshold: float = 0.35
    device: str | None = None

    @property
    def provenance(self) -> Mapping[str, str]:
        """The models' names and the hashes of their weights, the names looked for, and the threshold."""
        detector, tracker = _loaded(self.grounding_dino, self.sam2, self.device)
        return {
            "grounding_dino": Path(self.grounding_dino).name,
            "grounding_dino_sha256": detector.sha256,
            "sam2": Path(self.sam2).name,
            "sam2_sha256": tracker.sha256,
            "things": ", ".join(self.things),
            "threshold": f"{self.threshold:g}",
        }

    def carried(self, pixels: UInt8[np.ndarray, "T H W 3"]) -> list[Carried]:
        """The named things of the middle frame, through the whole shot. They are looked for one name at a time."""
        detector, tracker = _loaded(self.grounding_dino, self.sam2, self.device)
        middle = len(pixels) // 2
        boxes = [(noun, *each) for noun in self.things for each in _boxes(detector, pixels[middle], noun, self)]
        chosen = _distinct(sorted(boxes, key=lambda each: -each[1]))[: 2 * MAX_OBJECTS]
        if not chosen:
            return []
        masks = _tracked(tracker, pixels, middle, [box for _, _, box in chosen])
        return [Carried(noun, mask) for (noun, _, _), mask in zip(chosen, masks, strict=True)]


@dataclass(frozen=True)
class _Model:
    """A model, its processor, and the sha256 of its checkpoint."""

    model: Any
    processor: Any
    sha256: str


@lru_cache(maxsize=1)
def _loaded(grounding_dino: str, sam2: str, device: str | None) -> tuple[_Model, _Model]:
    """Both models. Raises ``ValueError`` where one is missing or is another model."""
    import transformers

    detector = _load("grounding_dino", grounding_dino, device, transformers.AutoProcessor)
    return detector, _load("sam2", sam2, device, transformers.Sam2VideoProcessor)


def _load(key: str, name: str, device: str | None, processor: Any) -> _Model:
    import transformers

    from cac_align.runs.device import pick_device
    from cac_align.vlm.checkpoint_hash import hash_files

    kinds = {
        "grounding_dino": ("grounding-dino", transformers.GroundingDinoForObjectDetection),
        "sam2": ("sam2_video", transformers.Sam2VideoModel),
    }
    kind, model = kinds[key]
    chosen = pick_device(device)
    try:
        folder = _folder(name)
        found = transformers.AutoConfig.from_pretrained(folder).model_type
        if found != kind:
            raise ValueError(f"it is a {found}, expected a {kind}")
        return _Model(
            model.from_pretrained(folder).eval().to(chosen), processor.from_pretrained(folder), hash_files(folder)
        )
    except Exception as error:  # offline, gated, misspelt, incomplete: each has a class of its own
        raise ValueError(f"injection.{key}: {name} cannot be loaded: {error}") from error


def _folder(name: str) -> Path:
    """The local folder of a checkpoint, downloaded where it is a hub id."""
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError("no such folder; expected one, or a hub id such as facebook/sam2.1-hiera-small")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.safetensors"]))


def _boxes(
    detector: _Model, frame: np.ndarray, noun: str, settings: GroundedSam
) -> list[tuple[float, tuple[float, ...]]]:
    """(score, box) of every place that the detector calls by this name."""
    import torch

    inputs = detector.processor(images=frame, text=f"{noun.lower().rstrip('.')}.", return_tensors="pt")
    with torch.inference_mode():
        outputs = detector.model(**inputs.to(detector.model.device))
    (found,) = detector.processor.post_process_grounded_object_detection(
        outputs, inputs.input_ids, threshold=settings.threshold, target_sizes=[frame.shape[:2]]
    )
    height, width = frame.shape[:2]
    boxes = found["boxes"].clamp(min=0).minimum(found["boxes"].new_tensor([width, height, width, height]))
    return [
        (float(score), tuple(box))
        for score, box in zip(found["scores"].tolist(), boxes.tolist(), strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]


_Box = tuple[str, float, tuple[float, ...]]


def _distinct(boxes: Sequence[_Box]) -> list[_Box]:
    """The boxes without those that nearly are an earlier one."""
    kept: list[_Box] = []
    for each in boxes:
        if all(_iou(each[2], other[2]) <= _SAME for other in kept):
            kept.append(each)
    return kept


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _tracked(tracker: _Model, pixels: np.ndarray, start: int, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Masks of the things in these boxes of frame ``start``, bool (N, T, H, W)."""
    import torch

    masks = np.zeros((len(boxes), *pixels.shape[:3]), bool)
    with torch.inference_mode():
        session = tracker.processor.init_video_session(video=pixels, inference_device=tracker.model.device)
        tracker.processor.add_inputs_to_inference_session(
            session, frame_idx=start, obj_ids=list(range(len(boxes))), input_boxes=[[list(box) for box in boxes]]
        )
        tracker.model(session, frame_idx=start)
        for reverse in (False, True):
            for output in tracker.model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
                (found,) = tracker.processor.post_process_masks(
                    [output.pred_masks], original_sizes=[pixels.shape[1:3]], binarize=True
                )
                for thing, mask in zip(output.object_ids, found[:, 0].cpu().numpy(), strict=True):
                    masks[thing, output.frame_idx] = mask
    return masks
