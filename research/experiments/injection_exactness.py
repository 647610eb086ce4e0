"""Are measured windows and boxes true? Clips of the miniature's world, injected through pixels only.

    python -m research.experiments.injection_exactness --seeds 200 --world studio --size 256

seed → clean clip → moving objects found in its pixels → injector → truth by difference
     → the renderer's own truth: where the entity really is, moved as the injector says → IoU

The renderer is never asked before the truth is measured. Second table: twins of the renderer itself,
with the defects that it draws; there nothing is known but the two clips.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cac_align.core.iou import box_iou
from cac_align.core.judgement import Box
from cac_align.data.injection.injector import Edit, NotApplicable
from cac_align.data.injection.registry import INJECTORS
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.clips import UnusableSource, prepared_clip
from cac_align.data.injection.truth import Truth, anomaly_of, measure
from cac_align.data.injection.visible import why_rejected
from cac_align.miniature.world.annotation import window_frames
from cac_align.miniature.world.draw import PixelBox, extent
from cac_align.miniature.world.render import in_frame_coordinates
from cac_align.miniature.world.scene import Scene, foot
from cac_align.miniature.world.settings import WORLDS, World
from cac_align.miniature.world.world import make_clip

ABSENT = ("vanish", "appear")
STILL = ("flicker", "identity_change")
MOVED = ("teleport", "jitter", "freeze", "float", "sink", "impossible_turn")
COMPARED = (*ABSENT, *STILL, *MOVED)
"""Injectors of which the renderer can tell where the thing must be."""


@dataclass(frozen=True)
class Comparison:
    """One injected defect. first_off, last_off: frames between the window's ends and the true ones. iou:
    mean box IoU over the frames that both have.
    """

    injector: str
    first_off: int
    last_off: int
    iou: float

    @property
    def window_right(self) -> bool:
        """Both ends within one frame."""
        return abs(self.first_off) <= 1 and abs(self.last_off) <= 1


def compare_injections(seeds: Iterable[int], world: World, counts: dict[str, int]) -> list[Comparison]:
    """One comparison per seed and injector that applies; ``counts`` counts what does not, by reason."""
    found = []
    for seed in seeds:
        clip = make_clip(seed, world, anomalous=False)
        try:
            source = prepared_clip(clip.pixels, clip.fps)
        except UnusableSource as error:
            counts[error.reason.partition(":")[0]] += 1
            continue
        for name in COMPARED:
            rng = np.random.default_rng((seed, COMPARED.index(name)))
            severity = float(rng.uniform(0.3, 1.0))
            try:
                edit = INJECTORS[name].apply(source, rng, severity)
            except NotApplicable as error:
                counts[f"{name}: {str(error).partition(':')[0]}"] += 1
                continue
            truth = measure(edit)
            if truth is None or why_rejected(edit, truth, clip.fps, Injection()) is not None:
                counts[f"{name}: not visible or absurd"] += 1
                continue
            found.append(_compared(name, edit, truth, clip.scene))
    return found


def _compared(name: str, edit: Edit, truth: Truth, scene: Scene) -> Comparison:
    measured = anomaly_of(edit, truth, scene.fps).boxes
    best = None
    for entity in range(len(scene.entities)):
        (first, last), boxes = _renderers_truth(name, edit.numbers, entity, scene)
        common = [frame for frame in boxes if frame in measured]
        total = sum(max(box_iou(box, boxes[frame]) for box in measured[frame]) for frame in common)
        iou = total / max(len(boxes), 1)  # a frame without a measured box counts 0
        if best is None or iou > best.iou:
            best = Comparison(name, truth.first - first, truth.last - last, iou)
    assert best is not None
    return best


def _renderers_truth(
    name: str, numbers: Mapping[str, Any], entity: int, scene: Scene
) -> tuple[tuple[int, int], dict[int, Box]]:
    """Window and boxes of the defect if it befell this entity, from the scene's own geometry."""
    first, last, count = numbers["first"], numbers["last"], scene.num_frames
    extents = _extents(scene, entity)
    if name in ABSENT:
        window = (max(first - 1, 0), min(last + 1, count - 1))
        frames = [frame for frame in (first - 1, last + 1) if 0 <= frame < count]
        return window, {frame: box for frame in frames if (box := _box(extents[frame], scene)) is not None}
    shifts = dict.fromkeys(range(first, last + 1), (0, 0))
    if name in MOVED:
        shifts = dict(zip(shifts, zip(numbers["dx"], numbers["dy"], strict=True), strict=True))
        if name != "freeze":  # on frames on which it is where it belongs nothing is wrong
            wrong = [frame for frame, shift in shifts.items() if shift != (0, 0)]
            shifts = {frame: shifts[frame] for frame in range(min(wrong), max(wrong) + 1)}
    if name == "freeze":
        frozen = _box(extents[first - 1], scene)
        return (first, last), {} if frozen is None else dict.fromkeys(shifts, frozen)
    moved = _extents(scene, entity, shifts, sinks=name == "sink")
    boxes = {frame: box for frame in shifts if (box := _box(moved[frame], scene)) is not None}
    return (min(shifts), max(shifts)), boxes


def _extents(
    scene: Scene, entity: int, shifts: Mapping[int, tuple[int, int]] | None = None, sinks: bool = False
) -> list[PixelBox | None]:
    """The tight box of an entity on every frame, moved by ``shifts`` (dx, dy in px). sinks: what comes
    below the line on which it stands is not drawn.
    """
    thing = in_frame_coordinates(scene.entities[entity], scene)
    if shifts is not None:
        track = {name: np.array(values, float) for name, values in thing.track.items()}
        if sinks:
            track["floor"] = track["y"] + foot(thing.kind, thing.size_px)
        for frame, (dx, dy) in shifts.items():
            track["x"][frame] += dx
            track["y"][frame] += dy
        thing = replace(thing, track=track)
    return extent(thing, np.arange(scene.num_frames), scene.height, scene.width)


def _box(found: PixelBox | None, scene: Scene) -> Box | None:
    return None if found is None else Box.from_pixels(*found, scene.width, scene.height)


def compare_renderers_twins(seeds: Iterable[int], world: World) -> dict[str, list[tuple[bool, float]]]:
    """Twins that the renderer drew: by subtype, whether the measured window has both ends within one
    frame, and the mean IoU of the boxes that the difference alone gives (no mask is known).

    Of an absence the difference has no boxes: its IoU is NaN.
    """
    found: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for seed in seeds:
        clip = make_clip(seed, world, anomalous=True)
        if len(clip.defects) != 1:
            continue
        defect, anomaly = clip.defects[0], clip.anomalies[0]
        nothing = np.zeros(clip.pixels.shape[:3], bool)
        edit = Edit(clip.pixels, clip.normal_pixels, defect.type, defect.subtype, "", "", nothing)
        truth = measure(edit)
        if truth is None:
            found[defect.subtype].append((False, 0.0))
            continue
        window = window_frames(replace(defect, subtype=""), clip.scene.num_frames)
        right = abs(truth.first - window[0]) <= 1 and abs(truth.last - window[-1]) <= 1
        measured = anomaly_of(edit, truth, clip.fps).boxes
        ious = [
            max((box_iou(box, boxes[0]) for box in measured.get(frame, ())), default=0.0)
            for frame, boxes in anomaly.boxes.items()
        ]
        absent = defect.subtype in ABSENT
        found[defect.subtype].append((right, float("nan") if absent else float(np.mean(ious))))
    return found


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=2_000_000)
    parser.add_argument("--world", choices=sorted(WORLDS), default="studio")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--twins", type=int, default=0, help="seeds of the second table")
    options = parser.parse_args()
    # Signs are left to the injectors of text: their letters move, their plain boards show no difference.
    kinds = tuple(kind for kind in WORLDS[options.world].kinds if kind != "sign")
    world = replace(WORLDS[options.world], height=options.size, width=options.size, occlusion=0.0, kinds=kinds)
    world = replace(world, types=tuple(name for name in world.types if name != "Character Anomalies"))
    counts: dict[str, int] = defaultdict(int)
    found = compare_injections(range(options.first, options.first + options.seeds), world, counts)
    print(f"{options.world}, {options.size} px, {options.seeds} seeds from {options.first}: {len(found)} defects\n")
    print("| injector | defects | window within one frame | box IoU, mean | lowest tenth |\n|---|---|---|---|---|")
    for name in (*COMPARED, "all"):
        rows = [one for one in found if name in (one.injector, "all")]
        if rows:
            ious = [one.iou for one in rows]
            right = np.mean([one.window_right for one in rows])
            print(f"| {name} | {len(rows)} | {right:.1%} | {np.mean(ious):.3f} | {np.quantile(ious, 0.1):.3f} |")
    print("\nnot compared: " + "; ".join(f"{reason} {count}" for reason, count in sorted(counts.items())))
    if options.twins:
        print("\n| renderer's defect | clips | window within one frame | box IoU, mean |\n|---|---|---|---|")
        by_subtype = compare_renderers_twins(range(options.first, options.first + options.twins), world)
        for name, pairs in sorted(by_subtype.items()):
            right, iou = np.mean([one for one, _ in pairs]), np.mean([value for _, value in pairs])
            print(f"| {name} | {len(pairs)} | {right:.1%} | {iou:.3f} |")


if __name__ == "__main__":
    main()
