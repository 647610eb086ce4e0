"""A run's evidence in TensorBoard or Weights & Biases: boxed clips beside the advantages their
scores led to.

ledger rows → Evidence → per clip a strip of boxed frames and a text;
per step the mean score, the share of videos without a score, and each component's contribution

    writer = SummaryWriter("runs/wan")        # or wandb.init(...)
    log_evidence(Path("runs/wan/ledger.jsonl"), writer)

The ledger is only read, and may be logged again at any time. A video is drawn where its row names a
file that still exists; everything else about the row is logged in any case. A missing score is
shown as missing, never as a number.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.judgement import Anomaly
from cac_align.core.shapes import UInt8
from cac_align.core.video import Video
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score

log = logging.getLogger(__name__)

STEP_FIELDS = ("step", "host_step", "epoch")
"""Names under which hosts record their step, in the order in which they are looked up."""

_ROW_FIELDS = ("prompt", "reward", "video")


@dataclass(frozen=True)
class Evidence:
    """One video of a run, with or without a score."""

    # Under which the ledger holds it.
    key: str
    # "score", "missing" or "combined", see ``rewards.ledger``.
    kind: str
    prompt: str
    # The video's name, or the path of its file.
    video: str
    # The name of the reward that scored it.
    reward: str
    score: Score
    # What the host said about it (group, advantage, …); where it said something twice, the later value.
    facts: Mapping[str, Any]

    @property
    def step(self) -> int | None:
        """The host's step; None where it gave none."""
        value = next((self.facts[name] for name in STEP_FIELDS if self.facts.get(name) is not None), None)
        return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    @property
    def advantage(self) -> float | None:
        """The advantage that the host gave the video; None where it said nothing."""
        value = self.facts.get("advantage")
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def read_evidence(ledger: Path) -> list[Evidence]:
    """Every video of a run, in the order of the ledger, with what its host said about it later.

    Where the reward is a combination, these are the combined scores, without the components' own. A
    video that was scored again after a failure counts once, with the score. Raises ``ValueError``
    when there is no such file.
    """
    if not ledger.is_file():
        raise ValueError(f"{ledger}: no such ledger; expected the JSONL file a run wrote (ledger= of its host adapter)")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for row in Ledger(ledger, write=False).rows():
        if row["kind"] == "extra":
            facts.setdefault(row["key"], {}).update(row["extra"])
        else:
            rows[row["key"], row["kind"]] = row
            facts.setdefault(row["key"], {}).update(row["extra"])
    for key, kind in list(rows):
        if kind == "missing" and (key, "score") in rows:
            del rows[key, kind]
    combined = any(kind == "combined" for _, kind in rows)
    chosen = [row for (_, kind), row in rows.items() if kind == "combined" or not combined]
    return [
        Evidence(
            row["key"], row["kind"], row["prompt"], row["video"], row["reward"], Score.from_json(row), facts[row["key"]]
        )
        for row in chosen
    ]


def log_evidence(ledger: Path, writer: Any, *, clips_per_step: int = 4, frames: int = 6, width_px: int = 240) -> int:
    """Log a run's evidence; returns how many clips were logged, drawn or not.

    ledger: the run's JSONL. writer: a TensorBoard ``SummaryWriter`` or a W&B run. clips_per_step:
    how many clips of each step, see ``most_informative``. frames, width_px: frames of a strip, and
    the width of each. Rows without a step are logged as step 0.

    Raises ``ValueError`` for a writer that is neither of the two, a count below 1, or a ledger that
    is not there.
    """
    if clips_per_step < 1 or frames < 1 or width_px < 16:
        raise ValueError(
            "expected clips_per_step >= 1, frames >= 1 and width_px >= 16; "
            f"received {clips_per_step}, {frames}, {width_px}"
        )
    send = _sender(writer)
    steps: dict[int, list[Evidence]] = {}
    for item in read_evidence(ledger):
        steps.setdefault(item.step or 0, []).append(item)
    logged = 0
    for step, items in sorted(steps.items()):
        clips = [
            (f"evidence/{number}", draw_strip(item, frames=frames, width_px=width_px), evidence_text(item))
            for number, item in enumerate(most_informative(items, clips_per_step))
        ]
        send(step, step_metrics(items), clips)
        logged += len(clips)
    return logged


def step_metrics(items: Sequence[Evidence]) -> dict[str, float]:
    """The scalars of one step: mean score, share of videos without a score, mean share of each
    component.

    What cannot be computed (no video has a score, no spread in the group) is left out and not
    written as 0.
    """
    scored = [item.score.value for item in items if item.score.scored]
    numbers = {"reward/unscored_share": 1 - len(scored) / len(items)}
    if scored:
        numbers["reward/mean_score"] = math.fsum(scored) / len(scored)
    shares: dict[str, list[float]] = {}
    for item in items:
        for name, value in item.score.parts.items():
            if name.startswith("share/") and math.isfinite(value):
                shares.setdefault(name, []).append(value)
    return numbers | {f"reward/{name}": math.fsum(values) / len(values) for name, values in shares.items()}


def most_informative(items: Sequence[Evidence], count: int) -> list[Evidence]:
    """At most ``count`` of a step's videos: the first without a score, then the lowest and the
    highest in turn.

    They are ordered by advantage, or by score where the host gave no advantages.
    """
    unscored = [item for item in items if not item.score.scored][:1]
    by_advantage = all(item.advantage is not None for item in items if item.score.scored)
    ranked = sorted(
        (item for item in items if item.score.scored),
        key=lambda item: (item.advantage if by_advantage else item.score.value, item.key),
    )
    ends = [ranked[n // 2] if n % 2 == 0 else ranked[-1 - n // 2] for n in range(len(ranked))]
    return [*unscored, *ends][:count]


def evidence_text(item: Evidence) -> str:
    """Everything about one video as Markdown; what a prompt, a model or a host wrote is escaped."""
    score = item.score
    lines = [("score", f"{score.value:.6g}" if score.scored else f"none: {score.error}")]
    lines += [(name, _plain(value)) for name, value in item.facts.items()]
    lines += [(name, getattr(item, name)) for name in _ROW_FIELDS]
    lines += [(name, f"{value:.4g}") for name, value in score.parts.items() if math.isfinite(value)]
    if score.evidence is not None:
        lines.append(("verdict", score.evidence.status or "none"))
        for anomaly in score.evidence.anomalies:
            when = f"{anomaly.window.start_s:.2f}-{anomaly.window.end_s:.2f} s: " if anomaly.window else ""
            lines.append((anomaly.type, f"{when}{anomaly.reason} ({anomaly.region})"))
    return "\n".join(f"- **{_escaped(name)}**: {_escaped(str(value))}" for name, value in lines)


def draw_strip(item: Evidence, *, frames: int = 6, width_px: int = 240) -> UInt8[np.ndarray, "H W 3"] | None:
    """The frames that show what was found, side by side with their boxes, below the advantage and
    the score.

    None when the video is not a file or no longer exists, or when it cannot be decoded, which is
    logged.
    """
    path = Path(item.video)
    try:
        if not path.is_file():
            return None
        video = Video.open(path, fps=_fps(item))
        anomalies = item.score.evidence.anomalies if item.score.evidence is not None else ()
        shown = video.frames(informative_frames(video, anomalies, frames))
        return _drawn(shown.pixels, shown.indices, anomalies, _headline(item), width_px)
    except (ValueError, OSError) as error:
        log.warning("%s: not drawn: %s", item.video, error)
        return None


def informative_frames(video: Video, anomalies: Sequence[Anomaly], count: int) -> list[int]:
    """At most ``count`` source indices, increasing.

    Boxed frames are taken first, then frames of the windows, then evenly spaced ones.
    """
    boxed = sorted({frame for anomaly in anomalies for frame in anomaly.boxes if frame < len(video)})
    windows = [anomaly.window for anomaly in anomalies if anomaly.window is not None]
    inside = [n for n, t in enumerate(video.times_s) if any(w.start_s - 1e-6 <= t <= w.end_s + 1e-6 for w in windows)]
    chosen: set[int] = set()
    for source in (boxed, inside, range(len(video))):
        left = [index for index in source if index not in chosen]
        room = min(count - len(chosen), len(left))
        chosen.update(left[round(n * (len(left) - 1) / max(room - 1, 1))] for n in range(room))
    return sorted(chosen)


# ---- drawing and sending -------------------------------------------------------------------------------------------


def _drawn(
    pixels: UInt8[np.ndarray, "T H W 3"],
    indices: Sequence[int],
    anomalies: Sequence[Anomaly],
    headline: str,
    width_px: int,
) -> UInt8[np.ndarray, "H2 W2 3"]:
    from PIL import Image, ImageDraw

    height_px = max(round(pixels.shape[1] * width_px / pixels.shape[2]), 1)
    sheet = Image.new("RGB", (width_px * len(indices), height_px + 32), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((4, 3), headline, fill="black")
    for place, (frame, index) in enumerate(zip(pixels, indices, strict=True)):
        left = place * width_px
        sheet.paste(Image.fromarray(frame).resize((width_px, height_px)), (left, 32))
        pen.text((left + 4, 18), f"frame {index}", fill="black")
        for box in (box for anomaly in anomalies for box in anomaly.boxes.get(index, ())):
            x0, y0, x1, y1 = box.to_pixels(width_px, height_px)
            edges = (
                left + round(x0),
                32 + round(y0),
                left + max(round(x1) - 1, round(x0)),
                32 + max(round(y1) - 1, round(y0)),
            )
            pen.rectangle(edges, outline=(255, 0, 0), width=2)
    return np.asarray(sheet)


def _headline(item: Evidence) -> str:
    advantage = "advantage not given" if item.advantage is None else f"advantage {item.advantage:+.3f}"
    score = f"score {item.score.value:.4f}" if item.score.scored else "no score"
    group = f" · group {item.facts['group']}" if "group" in item.facts else ""
    # Pillow's own font holds no other characters.
    return f"{advantage} · {score}{group}".encode("latin-1", "replace").decode("latin-1")


def _fps(item: Evidence) -> float | None:
    """The frame rate at which the video was judged, where the host said so; its files may state
    another.
    """
    fps = item.facts.get("fps")
    return float(fps) if isinstance(fps, (int, float)) and math.isfinite(fps) and fps > 0 else None


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]!#|])", r"\\\1", flat)


LoggedClip = tuple[str, UInt8[np.ndarray, "H W 3"] | None, str]


def _sender(writer: Any) -> Callable[[int, Mapping[str, float], Sequence[LoggedClip]], None]:
    """The function that logs a step's numbers and its clips (tag, strip, text) to this writer."""
    if hasattr(writer, "add_scalar"):

        def to_tensorboard(step: int, numbers: Mapping[str, float], clips: Sequence[LoggedClip]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            for tag, strip, text in clips:
                if strip is not None:
                    writer.add_image(tag, strip, step, dataformats="HWC")
                writer.add_text(tag, text, step)

        return to_tensorboard
    if hasattr(writer, "log") and hasattr(writer, "config"):

        def to_wandb(step: int, numbers: Mapping[str, float], clips: Sequence[LoggedClip]) -> None:
            import wandb

            table = wandb.Table(columns=["clip", "text"], data=[[tag, text] for tag, _, text in clips])
            # Beside the table and not in it: W&B keeps a table's pictures out of the run's own files until a sync.
            strips = {tag: wandb.Image(strip, caption=text) for tag, strip, text in clips if strip is not None}
            # A step of its own, because W&B refuses steps that go back, and a run may be logged while it trains.
            writer.log({**numbers, **strips, "evidence": table, "evidence_step": step})

        return to_wandb
    raise ValueError(f"writer must be a TensorBoard SummaryWriter or a W&B run, received {type(writer).__name__}")
