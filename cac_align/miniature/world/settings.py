"""Settings of the miniature world: what can happen in a clip, the three named worlds, and which
seeds serve which purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.miniature.world.grammar import COLOURS, KINDS, MOTIONS, PLACES, WORDS

TRAIN_SEEDS = range(0, 1_000_000)
"""Seeds for every training and every fitted threshold."""
VALID_SEEDS = range(1_000_000, 2_000_000)
"""Seeds for choices between trainings."""
TEST_SEEDS = range(2_000_000, 3_000_000)
"""Seeds for published numbers only."""
PROMPT_SEEDS = range(3_000_000, 4_000_000)
"""Seeds for the prompts of generated clips."""

SUBTYPES: dict[str, tuple[str, ...]] = {
    "Object Distortion": ("stretch", "melt", "split", "hole", "mutate"),
    "Human Distortion": ("extra arm", "extra leg", "missing limb", "detached limb", "detached head", "split body"),
    "Motion Anomalies": ("vanish", "appear", "flicker", "teleport", "jitter"),
    "Physical Violations": ("float", "sink", "interpenetrate", "reverse"),
    "Character Anomalies": ("garbled", "changing", "mirrored"),
}
"""The defects that the world can render, by anomaly type."""

_ALL_MOTIONS = tuple(sorted({motion for motions in MOTIONS.values() for motion in motions}))


@dataclass(frozen=True)
class World:
    """What can happen in a clip. Shares are probabilities in [0, 1].

    Raises ``ValueError`` for sizes, lengths, words or anomaly types outside what the renderer can
    draw.
    """

    name: str = "full"
    # Height and width of the clips in px: multiples of 16 from 64 to 512.
    height: int = 64
    width: int = 64
    # Possible numbers of frames, each 4k + 1 from 17 to 81, and their weights (none: all equally likely).
    num_frames: tuple[int, ...] = (17, 25, 33, 41, 49, 65, 81)
    length_weights: tuple[float, ...] = (0.06, 0.12, 0.34, 0.2, 0.18, 0.06, 0.04)
    # Frames per second.
    fps: float = 16.0
    # The entities, colours, places, motions and sign texts that prompts may name (``grammar`` lists them all).
    kinds: tuple[str, ...] = KINDS
    colours: tuple[str, ...] = tuple(COLOURS)
    places: tuple[str, ...] = tuple(PLACES)
    motions: tuple[str, ...] = _ALL_MOTIONS
    words: tuple[str, ...] = WORDS
    # Largest number of entities in a scene.
    max_entities: int = 3
    # Share of clips with a textured ground.
    texture: float = 0.7
    # Share of clips with a pattern that flows over the ground.
    flow: float = 0.35
    # Share of clips whose brightness changes over time.
    shading: float = 0.3
    # Share of clips with a drifting camera.
    camera_drift: float = 0.3
    # Share of clips with a post in front of the entities.
    occlusion: float = 0.3
    # Share of left and right movers that enter or leave the frame.
    passing: float = 0.2
    # Share of clips with sensor noise.
    noise: float = 0.6
    # Share of anomalous clips where the caller does not ask for one or the other.
    anomaly_share: float = 0.5
    # Share of anomalous clips with two defects.
    second_defect: float = 0.12
    # Anomaly types that occur, equally often.
    types: tuple[str, ...] = ANOMALY_TYPES
    # Defects that occur, by anomaly type.
    subtypes: tuple[tuple[str, tuple[str, ...]], ...] = tuple(SUBTYPES.items())

    def __post_init__(self) -> None:
        for side, name in ((self.height, "height"), (self.width, "width")):
            if not (64 <= side <= 512 and side % 16 == 0):
                raise ValueError(f"World.{name} must be a multiple of 16 from 64 to 512 px, received {side}")
        for count in self.num_frames:
            if not (17 <= count <= 81 and count % 4 == 1):
                raise ValueError(
                    f"World.num_frames must be 4k + 1 (Wan's rule) from 17 to 81: 17, 21, …, 81; received {count}"
                )
        if len(self.length_weights) not in (0, len(self.num_frames)):
            object.__setattr__(self, "length_weights", ())
        for name, allowed in (
            ("kinds", KINDS),
            ("colours", COLOURS),
            ("places", PLACES),
            ("motions", _ALL_MOTIONS),
            ("words", WORDS),
        ):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown or not getattr(self, name):
                raise ValueError(f"World.{name} must name some of {', '.join(allowed)}; received {unknown or 'none'}")
        if unknown := sorted(set(self.types) - set(ANOMALY_TYPES)):
            raise ValueError(f"World.types must be some of {', '.join(ANOMALY_TYPES)}; received {unknown}")


FULL = World()
"""Everything that the renderer can draw."""

STUDIO = World(
    name="studio",
    num_frames=(33,),
    length_weights=(),
    kinds=("ball", "box", "figure", "sign"),
    colours=("red", "green", "blue", "yellow", "purple", "cyan"),
    places=("on grass", "on sand", "in a room", "at night"),
    motions=("left", "right", "up", "down", "bounce", "still"),
    words=WORDS[:6],
    max_entities=1,
    texture=0.0,
    flow=0.0,
    shading=0.0,
    camera_drift=0.0,
    occlusion=0.0,
    passing=0.0,
    noise=0.0,
    anomaly_share=0.4,
    second_defect=0.0,
)
"""Plain scenes: one large entity on plain ground, 33 frames, a still camera."""

PLAYGROUND = replace(
    STUDIO,
    name="playground",
    num_frames=(17,),
    kinds=("ball", "box"),
    places=("on grass", "on sand", "at night"),
    types=("Object Distortion", "Motion Anomalies", "Physical Violations"),
)
"""The world that the small Wan and the shipped judge know: a ball or a box on plain ground, 17
frames (1.06 s).
"""

WORLDS = {world.name: world for world in (FULL, STUDIO, PLAYGROUND)}
"""The named worlds."""
