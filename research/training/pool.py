"""World clips in a pool: rendered once, kept on disk at 8 fps, and made to look generated when they
are shown.

seeds → make_clip → ClipPool.open (resumable) → couple: one scene without and with its defect →
degrade (blur, noise, tint) → pixels

A couple differs in nothing but the defect, which is what makes it worth more than two clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from cac_align.core.judgement import BOX_MAX, Anomaly, Box, Window
from cac_align.core.video import Frames, Video
from cac_align.miniature.teacher import teacher
from cac_align.miniature.world.grammar import parse_prompt
from cac_align.miniature.world.settings import SUBTYPES, WORLDS
from cac_align.miniature.world.world import make_clip

KEPT_EVERY = 2
"""Source frames kept in the pool: every second one of 16 fps, because turn 2 looks at 8."""


GENERATED_DEGRADE_STRENGTH = 0.3
"""How strongly generated clips are degraded further, where they are: enough that none looks the
same twice.
"""


@dataclass(frozen=True)
class MixtureConfig:
    """Which clips a judge is trained on, how they are degraded, and what is asked about them.
    Shares lie in [0, 1].
    """

    # Wording of the instructions (``cac_align.cac.prompts``).
    wording: str = "brief"
    # Shares of the rendered clips, and of the batches, from these worlds; the rest comes from the full world.
    studio: float = 0.8
    playground: float = 0.0
    # Another share of batches from the studio, at the playground's cost (None: the share of clips).
    studio_batches: float | None = None
    # Share of batches from generated clips, and the share of those that are degraded a little further.
    generated: float = 0.0
    generated_degraded: float = 0.0
    # Share of rendered clips that are degraded so that they look generated, and how strongly (1: full strength).
    degraded: float = 0.5
    degrade_strength: float = 1.0
    # Shares of couples that are mirrored left to right, and whose colour channels are exchanged, with their annotations.
    mirrored: float = 0.0
    recoloured: float = 0.0
    # Share of batches whose clips begin 1/8 s late, as in the augmentation "later".
    later: float = 0.0
    # Shares of turn-2 batches and of frame-pair batches in the joint stage; the rest is turn 1.
    turn_two: float = 0.4
    pair: float = 0.1
    # Share of turn 2's abnormal windows that are shifted or too wide.
    hard_windows: float = 0.3
    # Share of turn-2 examples whose suspicion names another defect than the window shows.
    wrong_claim: float = 0.2
    # How many times as often as others a defect is drawn, by its subtype (``settings.SUBTYPES``).
    defect_weights: dict[str, float] = field(default_factory=dict)
    # Frames per second of the two turns, and seconds added on both sides of turn 2's window, as in ``TwoTurn``.
    scan_fps: float = 4.0
    look_fps: float = 8.0
    margin_s: float = 0.0

    def __post_init__(self) -> None:
        known = {name for subtypes in SUBTYPES.values() for name in subtypes}
        for name, times in self.defect_weights.items():
            if name not in known or not times > 0:
                raise ValueError(
                    f"defect_weights takes defects ({', '.join(sorted(known))}) and positive numbers, received {name}: {times}"
                )


@dataclass(frozen=True, eq=False)
class PoolClip:
    """A rendered clip. pixels: uint8 (K, H, W, 3), source frames 0, 2, 4, …; ``clock`` knows all
    source frames' times.

    places: where the main entity is, by source frame (``teacher.places``). shape_error: per kept
    frame, how far the entity is off its shape, 1 being what the oracle calls misshapen
    (``generated``); empty where nobody measured it.
    """

    seed: int
    prompt: str
    anomalies: tuple[Anomaly, ...]
    clock: Video
    places: tuple[str, ...]
    pixels: UInt8[np.ndarray, "K H W 3"]
    shape_error: tuple[float, ...] = ()

    def frames(self, indices: Sequence[int], fps: float) -> Frames:
        """These source frames; an odd one shows its even neighbour's pixels."""
        picked = self.pixels[[index // KEPT_EVERY for index in indices]]
        return Frames(picked, tuple(indices), tuple(self.clock.times_s[i] for i in indices), fps, len(self.clock))


def mirrored(clip: PoolClip) -> PoolClip:
    """The same clip seen in a mirror: left is right in its pixels, prompt, boxes and places; no
    reason names a side.
    """
    spec = parse_prompt(clip.prompt)
    sides = {"left": "right", "right": "left"}
    actors = tuple(replace(actor, motion=sides.get(actor.motion, actor.motion)) for actor in spec.actors)
    anomalies = tuple(
        replace(anomaly, boxes={frame: tuple(map(_mirrored_box, boxes)) for frame, boxes in anomaly.boxes.items()})
        for anomaly in clip.anomalies
    )
    places = tuple(place if place == teacher.AWAY else f"{place[0]}{5 - int(place[1])}" for place in clip.places)
    prompt, pixels = replace(spec, actors=actors).prompt, clip.pixels[:, :, ::-1]
    return replace(clip, prompt=prompt, anomalies=anomalies, places=places, pixels=pixels)


def _mirrored_box(box: Box) -> Box:
    return Box(BOX_MAX - box.xmax, box.ymin, BOX_MAX - box.xmin, box.ymax)


CHANNELS = tuple(order for order in permutations(range(3)) if order != (0, 1, 2))
"""The five ways to exchange red, green and blue: channel i of the new picture is channel order[i]
of the old one.
"""

_STRONG = ("red", "green", "blue")
_WEAK = ("cyan", "purple", "yellow")
"""Colours by the channel they have most of, and by the one they have least of: exchanged channels
turn each into another of its row.
"""


def recoloured(clip: PoolClip, order: tuple[int, int, int]) -> PoolClip:
    """The same clip with its colour channels exchanged, and every word that names a colour with
    them.

    A clip with an actor of another colour than the Studio's six comes back as it is: its new colour
    would have no name.
    """
    names = {row[old]: row[new] for row in (_STRONG, _WEAK) for new, old in enumerate(order)}
    spec = parse_prompt(clip.prompt)
    if any(actor.colour not in names for actor in spec.actors):
        return clip
    actors = tuple(replace(actor, colour=names[actor.colour]) for actor in spec.actors)
    anomalies = tuple(_repainted(anomaly, names) for anomaly in clip.anomalies)
    return replace(
        clip, prompt=replace(spec, actors=actors).prompt, anomalies=anomalies, pixels=clip.pixels[..., list(order)]
    )


def _repainted(anomaly: Anomaly, names: dict[str, str]) -> Anomaly:
    colour, kind = teacher.who(anomaly)
    return teacher.about_entity(anomaly, names[colour], kind) if colour in names else anomaly


def delayed(clip: PoolClip) -> PoolClip:
    """The same clip without its first two source frames, its clock at 0 again. Anomalies that ended
    before are gone; a box that was cut off stands on the first frame where its anomaly has no
    other.
    """
    begin_s = clip.clock.times_s[KEPT_EVERY]
    times = tuple(time - begin_s for time in clip.clock.times_s[KEPT_EVERY:])
    clock = Video(clip.clock.fps, times, clip.clock.height, clip.clock.width, clip.clock.name, None)
    anomalies = tuple(
        replace(
            anomaly,
            window=Window(max(0.0, anomaly.window.start_s - begin_s), anomaly.window.end_s - begin_s),
            boxes={max(0, frame - KEPT_EVERY): boxes for frame, boxes in sorted(anomaly.boxes.items())},
        )
        for anomaly in clip.anomalies
        if anomaly.window.end_s > begin_s - 1e-6
    )
    return replace(
        clip,
        anomalies=anomalies,
        clock=clock,
        places=clip.places[KEPT_EVERY:],
        pixels=clip.pixels[1:],
        shape_error=clip.shape_error[1:],
    )


class ClipPool:
    """Rendered clips on disk: ``pixels.u8`` (all clips one after another) and ``clips.jsonl``
    (where each begins, and its truth).
    """

    def __init__(self, folder: Path) -> None:
        lines = (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]
        self.pixels = np.memmap(folder / "pixels.u8", np.uint8, "r")
        self.groups: dict[tuple[str, int, bool], list[int]] = {}
        self._late: dict[tuple[str, int | None], list[int]] = {}
        for number, row in enumerate(self.rows):
            # Left out: a defect that falls between two frames of the first scan (it cannot be learned from), and one whose scene
            # without it is another scene.
            paired = not row["anomalies"] or row["prompt"] == self.rows[number - 1]["prompt"]
            if not row["anomalies"] or (row["scannable"] and paired):
                key = (row["world"], row["num_frames"], bool(row["anomalies"]))
                self.groups.setdefault(key, []).append(number)
            if row["anomalies"] and paired and self._scannable_late(number):
                self._late.setdefault((row["world"], row["num_frames"]), []).append(number)
        for (world, _), members in list(self._late.items()):
            self._late.setdefault((world, None), []).extend(members)
        self._read: dict[int, PoolClip] = {}
        self._abnormal: dict[str, list[int]] = {}
        for (world, _, abnormal), members in self.groups.items():
            if abnormal:
                self._abnormal.setdefault(world, []).extend(members)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> PoolClip:
        if number not in self._read:
            self._read[number] = self._open(number)
        return self._read[number]

    def _open(self, number: int) -> PoolClip:
        row = self.rows[number]
        shape = (-(-row["num_frames"] // KEPT_EVERY), row["height"], row["width"], 3)
        pixels = self.pixels[row["offset"] : row["offset"] + int(np.prod(shape))].reshape(shape)
        times = tuple(frame / row["fps"] for frame in range(row["num_frames"]))
        clock = Video(row["fps"], times, row["height"], row["width"], f"world {row['seed']}", None)
        anomalies = tuple(Anomaly.from_json(item) for item in row["anomalies"])
        shape_error = tuple(row.get("shape_error", ()))
        return PoolClip(row["seed"], row["prompt"], anomalies, clock, tuple(row["places"]), pixels, shape_error)

    def _scannable_late(self, number: int) -> bool:
        """Whether the scan of this clip, ``delayed``, falls on one of its defects."""
        clip = delayed(self._open(number))
        scan = clip.clock.indices_at(MixtureConfig().scan_fps)
        return bool(teacher.visible(clip.anomalies, [clip.clock.times_s[index] for index in scan]))

    def draw(self, rng: np.random.Generator, mixture: MixtureConfig) -> tuple[str, int]:
        """Which world a batch comes from, and a number of frames, as often as its abnormal clips
        have it.
        """
        studio = mixture.studio if mixture.studio_batches is None else mixture.studio_batches
        world = _world(rng.random(), studio, mixture.studio + mixture.playground - studio)
        options = self._abnormal.get(world) or next(iter(self._abnormal.values()))
        row = self.rows[options[int(rng.integers(len(options)))]]
        return row["world"], row["num_frames"]

    def couple(
        self,
        rng: np.random.Generator,
        world: str,
        length: int | None = None,
        defect_weights: Mapping[str, float] | None = None,
        late: bool = False,
    ) -> tuple[PoolClip, PoolClip]:
        """A normal and an abnormal clip of one world and length: the same scene where possible. Any
        length when None.

        defect_weights: as in ``MixtureConfig``; a clip whose pool does not know its defect (a
        generated one) counts once. late: both ``delayed``, the abnormal one of those whose defect
        the scan then falls on (where there is none: as they are).
        """
        options = self._abnormal[world] if length is None else self.groups[world, length, True]
        if late:
            late, options = (world, length) in self._late, self._late.get((world, length), options)
        number = options[int(rng.integers(len(options)))]
        while defect_weights and rng.random() * max(1.0, *defect_weights.values()) >= defect_weights.get(
            self.rows[number].get("defect", ""), 1.0
        ):
            number = options[int(rng.integers(len(options)))]
        wanted = self.rows[number]["num_frames"]
        twin = number - 1
        if self.rows[twin]["num_frames"] != wanted:
            others = self.groups.get((world, wanted, False)) or [twin]
            twin = others[int(rng.integers(len(others)))]
        return (delayed(self[twin]), delayed(self[number])) if late else (self[twin], self[number])

    @classmethod
    def open(
        cls,
        folder: Path,
        mixture: MixtureConfig,
        first_seed: int,
        clips: int,
        *,
        progress: Callable[[str], None] | None = None,
    ) -> ClipPool:
        """The pool in this folder, rendering what is missing; goes on where a former call was
        stopped.

        Clips 2k and 2k + 1 share seed ``first_seed + k``: the scene without and with its defect.
        Raises ``ValueError`` when the folder holds another pool.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[str] = []
        end = 0
        if (folder / "clips.jsonl").is_file():
            for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # a kill tore the last line
                    break
                rows.append(line)
                end = row["offset"] + row["bytes"]
            for number, line in enumerate(rows[:40]):
                row, seed = json.loads(line), first_seed + number // 2
                if (row["seed"], row["world"]) != (seed, world_of(seed, mixture)):
                    raise ValueError(
                        f"{folder} holds clips from other seeds or worlds: clip {number} is {row['world']} {row['seed']}, expected "
                        f"{world_of(seed, mixture)} {seed}; give another pool"
                    )
        rows = rows[:clips] if len(rows) > clips else rows
        with open(folder / "pixels.u8", "ab") as pixels, open(folder / "clips.jsonl", "w", encoding="utf-8") as lines:
            pixels.truncate(end)
            pixels.seek(end)
            lines.write("".join(line + "\n" for line in rows))
            for number in range(len(rows), clips):
                seed = first_seed + number // 2
                clip = make_clip(seed, WORLDS[world_of(seed, mixture)], anomalous=number % 2 == 1)
                kept = np.ascontiguousarray(clip.pixels[::KEPT_EVERY])
                video = clip.video()
                scan_s = [video.times_s[index] for index in video.indices_at(mixture.scan_fps)]
                pixels.write(kept.tobytes())
                pixels.flush()
                row = {
                    "seed": seed,
                    "world": world_of(seed, mixture),
                    "prompt": clip.prompt,
                    "fps": clip.fps,
                    "num_frames": len(clip.pixels),
                    "height": kept.shape[1],
                    "width": kept.shape[2],
                    "anomalies": [anomaly.to_json() for anomaly in clip.anomalies],
                    "defect": clip.defects[0].subtype if clip.defects else "",
                    "places": teacher.places(clip.scene, clip.anomalies),
                    "scannable": len(teacher.visible(clip.anomalies, scan_s)) == len(clip.anomalies),
                    "offset": end,
                    "bytes": kept.nbytes,
                }
                end += kept.nbytes
                lines.write(json.dumps(row) + "\n")
                if progress is not None and (number + 1) % 500 == 0:
                    lines.flush()
                    progress(f"rendered {number + 1}/{clips} clips")
        return cls(folder)


def world_of(seed: int, mixture: MixtureConfig) -> str:
    """The name of the world from which a pool takes its clips of this seed."""
    return _world(np.random.default_rng((seed, 1)).random(), mixture.studio, mixture.playground)


def _world(draw: float, studio: float, playground: float) -> str:
    if draw < studio:
        return "studio"
    return "playground" if draw < studio + playground else "full"


# ---- making clips look generated ----------------------------------------------------------------------------------


def degrade(
    pixels: UInt8[np.ndarray, "T H W 3"], rng: np.random.Generator, strength: float = 1.0
) -> UInt8[np.ndarray, "T H W 3"]:
    """Blur, blotches, grain, block averages and a tint, the same for all frames but for grain and
    blotches: what a small VAE does.

    ``strength`` scales all of them; 1 is the strength of training. Labels stay true: nothing is
    moved or mirrored.
    """
    import torch

    count, height, width, _ = pixels.shape
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    resize = torch.nn.functional.interpolate
    if rng.random() < 0.7:  # lost detail
        scale = 1 - strength * rng.uniform(0.1, 0.45)
        small = resize(
            x, size=(max(8, round(height * scale)), max(8, round(width * scale))), mode="bilinear", antialias=True
        )
        x = resize(small, size=(height, width), mode="bilinear")
    if rng.random() < 0.5:  # blotches that come and go
        coarse = rng.standard_normal((count, 3, height // 8, width // 8)).astype(np.float32)
        x = x + float(strength * rng.uniform(0.005, 0.03)) * resize(
            torch.from_numpy(coarse), size=(height, width), mode="bilinear"
        )
    if rng.random() < 0.4:  # block averages, as in a coarse JPEG
        mix = float(strength * rng.uniform(0.1, 0.45))
        blocks = resize(torch.nn.functional.avg_pool2d(x, 4), size=(height, width), mode="nearest")
        x = (1 - mix) * x + mix * blocks
    if rng.random() < 0.5:  # grain
        x = x + float(strength * rng.uniform(0.005, 0.035)) * torch.from_numpy(
            rng.standard_normal(x.shape).astype(np.float32)
        )
    gain = torch.from_numpy((1 + strength * rng.uniform(-0.08, 0.08, (1, 3, 1, 1))).astype(np.float32))
    shift = float(strength * rng.uniform(-0.05, 0.05))
    x = (x * gain + shift).clamp(0, 1)
    return (x.permute(0, 2, 3, 1) * 255 + 0.5).to(torch.uint8).numpy()
