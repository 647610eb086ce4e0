"""The recipe of `cac-align data inject`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Injection:
    """What is injected into which clips. Raises ``ValueError`` for values that make no sense."""

    # Injectors to use, by name; empty: all of the tiers below that are installed.
    injectors: list[str] = field(default_factory=list)
    # Tiers to use: core, inject (the extra), gpu (needs the key wan, which adds this tier by itself).
    tiers: list[str] = field(default_factory=lambda: ["core", "inject"])
    # Length of a clip in seconds; a source shorter than min_seconds is skipped.
    seconds: float = 2.0
    min_seconds: float = 1.0
    # Frames per second to come near: a source's own rate is divided by a whole number, so that its motion stays even.
    fps: float = 16.0
    # Longest shorter side in px; larger sources are scaled down, none is scaled up.
    short_side: int = 480
    # Longest ratio of the sides; a wider or taller frame is cropped about its middle.
    max_aspect: float = 2.0
    # Severities are drawn from this range of (0, 1].
    min_severity: float = 0.3
    max_severity: float = 1.0
    # The judge that must be able to see the defect: frames per second of its two turns, and its frames' shorter side.
    scan_fps: float = 4.0
    look_fps: float = 8.0
    judge_short_side: int = 256
    # At the judge's size, a defect must change at least this share of the frame's pixels on a sampled frame, …
    min_area: float = 0.0004
    # … by at least this many grey levels on average …
    min_contrast: float = 12.0
    # … and at most this share: more is absurd.
    max_area: float = 0.4
    # Severities tried per injector, and injectors tried per source, before the source is skipped. Injectors of the
    # tier core and all others are counted apart.
    tries: int = 3
    max_injectors: int = 8
    # Records of normal clips that look unusual (true exits, blur, exposure jumps, dropped frames, …) per pair.
    hard_normals: float = 0.25
    # An AutoencoderKLWan folder for hard normals that went through its encoder and decoder; empty: none.
    vae: str = ""
    # A Wan text-to-video checkpoint: "miniature" (the shipped small one), a diffusers folder or a hub id. It adds the
    # tier gpu: redraw, latent_swap, latent_shuffle, latent_noise. Empty: none.
    wan: str = ""
    # Things to change, by name ("dog", "red car"), instead of whatever moves; empty: whatever moves.
    things: list[str] = field(default_factory=list)
    # What finds and follows them: a GroundingDINO and a SAM 2 (video), each a folder or a hub id; both, or none.
    grounding_dino: str = ""
    sam2: str = ""
    # The least score of GroundingDINO's boxes, in (0, 1).
    min_detection: float = 0.35
    # Where models run: cpu, cuda or cuda:N; empty: a GPU where there is one, else the CPU.
    device: str = ""
    # Where the models are that find people, hands and faces: the wheel of mediapipe 0.10.21 or a folder with its
    # .tflite files; empty: the installed package. Without them no body is changed.
    body_models: str = ""
    # How clips are stored: "rgb" is lossless; "yuv420p" is lossless but for the colours' resolution, and smaller.
    pixel_format: str = "yuv420p"

    def __post_init__(self) -> None:
        for name in ("seconds", "min_seconds", "fps", "scan_fps", "look_fps", "max_aspect"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"injection.{name} must be a positive number, received {value!r}")
        if not 0 < self.min_severity <= self.max_severity <= 1:
            raise ValueError(
                "injection needs 0 < min_severity <= max_severity <= 1, received "
                f"{self.min_severity} and {self.max_severity}"
            )
        if not 0 <= self.hard_normals <= 1:
            raise ValueError(f"injection.hard_normals must lie in [0, 1], received {self.hard_normals}")
        if self.pixel_format not in ("rgb", "yuv420p"):
            raise ValueError(f"injection.pixel_format must be rgb or yuv420p, received {self.pixel_format!r}")
        named = {"things": self.things, "grounding_dino": self.grounding_dino, "sam2": self.sam2}
        absent = [key for key, value in named.items() if not value]
        if 0 < len(absent) < len(named):
            raise ValueError(f"injection needs things, grounding_dino and sam2 together; {absent[0]} is missing")
        if any(not thing.strip() for thing in self.things) or not 0 < self.min_detection < 1:
            raise ValueError(
                "injection needs names in things and min_detection in (0, 1), received "
                f"{self.things} and {self.min_detection}"
            )
        if self.short_side < 64 or self.judge_short_side < 32 or self.tries < 1 or self.max_injectors < 1:
            raise ValueError(
                "injection needs short_side >= 64, judge_short_side >= 32, tries >= 1 and max_injectors >= 1, received "
                f"{self.short_side}, {self.judge_short_side}, {self.tries} and {self.max_injectors}"
            )
