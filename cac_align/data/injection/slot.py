"""One slot of a run: one place of one video → a pair on disk, or the reason why there is none.

SlotTask → ``fill_slot`` → videos/KEY-*.mp4 and slots/KEY.json, the latter written last

A slot depends on its task only, so any worker may fill it, in any order. A slot whose file is there
is done: whoever resumes trusts it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.encoding import pad_mp4, write_mp4
from cac_align.core.judgement import Anomaly, Status
from cac_align.core.whole_file import whole_file
from cac_align.data.injection.audit import twin_features
from cac_align.data.injection.injector import SourceClip
from cac_align.data.injection.models import Models
from cac_align.data.injection.normals import make_normal
from cac_align.data.injection.pairs import Rejection, TwinPair, make_pair
from cac_align.data.injection.registry import usable_injectors
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.clips import ClipOrigin, UnusableSource, load_clip, open_source
from cac_align.data.injection.truth import conspicuousness
from cac_align.data.records import Record
from cac_align.runs.files import atomic_write
from cac_align.runs.metrics_log import json_values

ANNOTATOR = "inject"
"""Who annotated an injected record."""


@dataclass(frozen=True)
class SlotTask:
    """What fills one slot. name: the video as the records call it. round: how often this video had a
    turn before. models: what the settings name, loaded by each process.
    """

    path: str
    name: str
    round: int
    seed: int
    prompt: str
    out: str
    settings: Injection
    models: Models = field(default_factory=Models)

    @property
    def key(self) -> str:
        """How the slot's files begin: the video's name as far as file systems take it, a hash of it,
        and the round.
        """
        readable = re.sub(r"[^A-Za-z0-9_]+", "_", Path(self.name).stem)[:24].strip("_")
        return f"{readable}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}-{self.round}".lstrip("-")

    @property
    def report(self) -> Path:
        """The file that says that the slot is done, and how it ended."""
        return Path(self.out) / "slots" / f"{self.key}.json"

    @property
    def features(self) -> Path:
        """What the audit's classifiers are shown of the pair."""
        return self.report.with_suffix(".npz")

    def stream(self, purpose: str) -> np.random.Generator:
        """A random stream of the seed, the video's name and the round: other videos beside it change
        nothing.
        """
        digest = hashlib.sha256(f"{self.seed}\0{self.name}\0{self.round}\0{purpose}".encode()).digest()
        return np.random.default_rng(list(digest[:16]))

    @property
    def place(self) -> float:
        """Where in the video the clip is looked for, in [0, 1]; the rounds of a video lie far apart."""
        digest = hashlib.sha256(f"{self.seed}\0{self.name}\0place".encode()).digest()
        return (digest[0] / 256 + digest[1] / 65536 + 0.6180339887 * self.round) % 1.0


def fill_slot(task: SlotTask) -> dict[str, Any]:
    """Fill a slot and return its report: ``outcome`` ("pair", "skipped" or "failed"), ``reason``,
    ``whole_file``, ``records`` and ``rejected`` attempts.

    A source that cannot be used is skipped; an injector that fails on it is a failure, named and
    counted. Raises ``OSError`` where nothing can be written.
    """
    if task.report.is_file():
        return json.loads(task.report.read_text(encoding="utf-8"))
    report: dict[str, Any] = {
        "key": task.key, "source": task.name, "round": task.round, "outcome": "skipped", "reason": "",
        "whole_file": False, "records": [], "rejected": [],
    }  # fmt: skip
    try:
        _fill(task, report)
    except UnusableSource as error:
        report |= {"reason": error.reason, "whole_file": error.whole_file}
    except OSError:
        raise
    except Exception as error:
        report |= {"outcome": "failed", "reason": f"{type(error).__name__}: {error}", "records": []}
    atomic_write(task.report, json.dumps(report, ensure_ascii=False))
    return report


def _fill(task: SlotTask, report: dict[str, Any]) -> None:
    settings = task.settings
    video = open_source(Path(task.path), settings)
    injectors, _ = usable_injectors(settings.tiers, settings.injectors, task.models, body_models=settings.body_models)
    unmoved = any(injector.unmoved for injector in injectors.values())
    clip, origin = load_clip(video, task.place, settings, task.prompt, unmoved=unmoved, segmenter=task.models.segmenter)
    report["rejected"] = lost = [Rejection("things", None, reason).to_json() for reason in clip.lost_things]
    if not clip.objects:
        injectors = {name: injector for name, injector in injectors.items() if injector.unmoved}
    pair, rejected = make_pair(clip, injectors, task.stream("pair"), settings)
    report["rejected"] = lost + [attempt.to_json() for attempt in rejected]
    if pair is None:
        reasons = "; ".join(sorted({f"{attempt.injector}: {attempt.reason}" for attempt in rejected}))
        raise UnusableSource(f"no injector fits: {reasons}" if clip.objects else f"no moving object: {reasons}")
    names = [f"videos/{task.key}-{kind}.mp4" for kind in ("anomalous", "sham")]
    for name, pixels in zip(names, (pair.edit.anomalous, pair.edit.sham), strict=True):
        _write(task, name, pixels, clip.fps)
    _equal_lengths([Path(task.out) / name for name in names])
    facts, (anomalous, sham) = _pair_facts(pair, task, clip.fps), (Path(name).stem for name in names)
    records = [
        _record(task, clip, origin, names[0], "abnormal", (pair.anomaly,), {**facts, "twin": sham}),
        _record(task, clip, origin, names[1], "normal", (), {**facts, "twin": anomalous, "sham": True}),
    ]
    draw = task.stream("normal")
    if draw.random() < settings.hard_normals:
        kind, pixels = make_normal(clip, draw, settings.vae)
        name = f"videos/{task.key}-normal.mp4"
        _write(task, name, pixels, clip.fps)
        records.append(_record(task, clip, origin, name, "normal", (), {"hard_normal": kind, "seed": task.seed}))
    sizes = [(Path(task.out) / name).stat().st_size for name in names]
    features: dict[str, Any] = twin_features(pair, sizes, clip.fps)
    with whole_file(task.features) as part, open(part, "wb") as file:
        np.savez_compressed(file, **features)
    report |= {"outcome": "pair", "injector": pair.injector, "records": [record.to_json() for record in records]}


def _write(task: SlotTask, name: str, pixels: np.ndarray, fps: float) -> None:
    write_mp4(Path(task.out) / name, pixels, fps, lossless="rgb" if task.settings.pixel_format == "rgb" else "yuv420p")


def _equal_lengths(twins: Sequence[Path]) -> None:
    """Give both files one length: a defect costs bytes, and a file's length must not tell the twins apart."""
    size = max(path.stat().st_size for path in twins) + 8
    for path in twins:
        pad_mp4(path, size)


def _pair_facts(pair: TwinPair, task: SlotTask, fps: float) -> dict[str, Any]:
    return {
        "injector": pair.injector,
        "subtype": pair.edit.subtype,
        "seed": task.seed,
        "severity": round(pair.severity, 4),
        "numbers": json_values(pair.edit.numbers),
        "contrast": round(pair.truth.contrast, 2),
        "area_share": round(pair.truth.area_share, 5),
        "conspicuousness": round(conspicuousness(pair.truth, fps), 4),
    }


def _record(
    task: SlotTask,
    clip: SourceClip,
    origin: ClipOrigin,
    video: str,
    status: Status,
    anomalies: tuple[Anomaly, ...],
    facts: dict[str, Any],
) -> Record:
    count, height, width = clip.shape
    extra = {"source": task.name, "origin": origin.to_json(), **facts}
    return Record(
        Path(video).stem, video, clip.prompt, clip.fps, count, width, height, status, anomalies, ANNOTATOR,
        "accepted", extra,
    )  # fmt: skip
