"""The training samples of a stage: read, checked, balanced, and turned into segments whose prompts
are those of inference.

records.jsonl + stage JSONL → read_stage → Stage (by task and class) → draw(step) → segment
    → policy.make_batch

A line of a stage file is {"record", "task": "frame" | "scan" | "look" | "single", "answer"}. A
frame has its source index as "frame"; a look has "window": [start_s, end_s] and may have "claim"
(the whole answer of turn 1) or "suspicion": [{"type", "reason"}]. A step's samples are a function
of (seed, step): pairs of one normal and one abnormal sample of the same task, each class walked
through in its own shuffled order, so every batch holds as many of one as of the other.

A look's prompt repeats what turn 1 suspected. Without claim or suspicion of its own that is the
record's true anomalies, or another record's (for normal records, and for a share of the abnormal
ones), so that a suspicion alone does not give the answer away. Claims were mixed in the same way
when they were made (``data.synthesis.questions``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cac_align.cac.prompts import single_turn_conversation, turn_one_conversation, turn_two_conversation
from cac_align.cac.two_turn import TwoTurn
from cac_align.core.answer import read_answer
from cac_align.core.judgement import Anomaly, Turn, Window
from cac_align.core.video import Frames, Video
from cac_align.data.record_video import VARIABLE_RATE, has_variable_rate
from cac_align.data.records import Record, read_records
from cac_align.data.synthesis.questions import Task
from cac_align.training.policy import Segment, store_videos
from cac_align.vlm.inputs import encode_one
from cac_align.vlm.protocol import Conversation

STAGE_TASKS: tuple[str, ...] = ("frame", "scan", "look", "single")
CLASSES: tuple[str, str] = ("normal", "abnormal")


@dataclass(frozen=True)
class Sample:
    """One line of a stage file. ``window``: of a look, in seconds. ``frame``: source index of a
    single frame.
    """

    record: str
    task: Task
    answer: str
    window: Window | None = None
    frame: int | None = None
    suspicion: tuple[Anomaly, ...] = ()
    claim: str = ""


@dataclass(frozen=True)
class DataRecipe:
    """The recipe section ``data``: which samples a stage learns from, and how they are presented."""

    # Folder with records.jsonl, the videos and the stage's samples, as `cac-align data split` writes it.
    folder: str = "data"
    # The stage's JSONL file, relative to ``folder``; "" takes every record (stage 3 only).
    samples: str = ""
    # Share of the records of each class that is kept for evaluation; at least one of each class where above 0.
    held_out: float = 0.02
    # A sample whose video is missing or broken is left out and counted ("skip"), or ends the run ("stop").
    unusable: str = "skip"
    # Largest share of samples, over all processes, that may be left out before the run ends.
    max_unusable: float = 0.05
    # Frames per second of turn 1. Stages 1 and 2 need 4, at which their answers count frames.
    scan_fps: float = 4.0
    # Frames per second of turn 2. Stages 1 and 2 need 8.
    look_fps: float = 8.0
    # Seconds added on either side of turn 2's window in stage 3; the clips of stage 2 carry their own margin.
    margin_s: float = 0.0
    # Which prompt texts are used: "full" (the paper's) or "brief".
    wording: str = "full"
    # Share of stage 2's pairs that are looks; the paper has 15 K looks beside 20 K scans.
    look_share: float = 3 / 7
    # Share of abnormal looks without a claim whose prompt names another record's anomaly.
    false_alarm_share: float = 0.5
    # 2, or 1: stages 2 and 3 learn to name windows and boxes in a single turn (``cac.single_turn``).
    turns: int = 2

    def __post_init__(self) -> None:
        if self.unusable not in ("skip", "stop"):
            raise ValueError(f"data.unusable must be 'skip' or 'stop', received {self.unusable!r}")
        if self.turns not in (1, 2):
            raise ValueError(f"data.turns must be 2 (two turns) or 1 (a single turn), received {self.turns}")
        for name in ("held_out", "max_unusable", "look_share", "false_alarm_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} is a share in [0, 1], received {getattr(self, name)}")

    @property
    def two_turn(self) -> TwoTurn:
        """How a judge that learns from these data is asked at inference, with turn 2 in a fresh
        context.
        """
        return TwoTurn(self.scan_fps, self.look_fps, wording=self.wording, margin_s=self.margin_s)


@dataclass(eq=False)
class Stage:
    """What one stage learns from. ``training`` and ``held_out`` share no record; ``held_out`` takes
    tasks and classes in turn.

    ``bad``: why samples were left out, by sample.
    """

    folder: Path
    records: Mapping[str, Record]
    training: Mapping[tuple[str, str], tuple[Sample, ...]]
    held_out: tuple[Sample, ...]
    recipe: DataRecipe
    seed: int
    bad: dict[str, str] = field(default_factory=dict)
    num_samples: int = 0

    def video(self, record: Record) -> Video:
        """On the record's clock. Raises ``ValueError`` when it cannot be read or has a variable
        frame rate.
        """
        video = Video.open(self.folder / record.video, name=record.id)
        if has_variable_rate(video, record.fps):
            raise ValueError(f"{record.id}: {VARIABLE_RATE}")
        return video.with_fps(record.fps)

    def leave_out(self, sample: Sample, why: str) -> None:
        """Count a bad sample. Raises ``ValueError`` where the recipe says stop, or when there are
        too many.
        """
        self.leave_out_all({sample_name(sample): why})

    def leave_out_all(self, bad: Mapping[str, str]) -> None:
        """Count bad samples by name, each once: those of all processes (``gather_reasons``). Raises
        as ``leave_out`` does.
        """
        self.bad.update(bad)
        self.check_unusable(bad)

    def check_unusable(self, bad: Mapping[str, str]) -> None:
        """Raise ``ValueError`` where the recipe says stop, or when these samples and those left out
        before are too many. Nothing is counted.
        """
        name, why = next(reversed(list(bad.items())), ("", ""))
        if bad and self.recipe.unusable == "stop":
            raise ValueError(f"sample {name}: {why}; mend it, or set data.unusable=skip to leave such samples out")
        count = len({**self.bad, **bad})
        if count > self.recipe.max_unusable * self.num_samples:
            raise ValueError(
                f"{count} of {self.num_samples} samples of {self.folder} cannot be used, more than data.max_unusable="
                f"{self.recipe.max_unusable:g} allows; the last one, {name}: {why}"
            )


def sample_name(sample: Sample) -> str:
    return f"{sample.record}/{sample.task}"


def read_stage(recipe: DataRecipe, tasks: Sequence[str], seed: int) -> Stage:
    """Read and check a stage's records and samples.

    Raises ``ValueError`` naming file and line for what cannot be read, and for an empty split, a
    missing class or task.
    """
    folder = Path(recipe.folder)
    path = folder / "records.jsonl"
    if not path.is_file():
        raise ValueError(
            f"data.folder: {path} does not exist; `cac-align data split` writes this folder (docs/full_size.md)"
        )
    records = {record.id: record for record in read_records(path)}
    if recipe.samples:
        samples = [sample for sample in read_samples(folder / recipe.samples, records, tasks) if sample.task in tasks]
    else:
        samples = [Sample(record.id, "scan", "") for record in records.values()]
    where = folder / recipe.samples if recipe.samples else path
    if not samples:
        raise ValueError(f"{where}: the split is empty; expected samples of task {' or '.join(tasks)}")
    kept_aside = _held_out(records, {sample.record for sample in samples}, recipe.held_out, seed)
    stage = Stage(folder, records, {}, (), recipe, seed, num_samples=len(samples))
    present = []
    exists = {record: (folder / records[record].video).is_file() for record in {sample.record for sample in samples}}
    for sample in samples:
        if exists[sample.record]:
            present.append(sample)
        else:
            stage.leave_out(sample, f"its video {folder / records[sample.record].video} does not exist")
    stage.held_out = _in_turn([sample for sample in present if sample.record in kept_aside], records, seed)
    by: dict[tuple[str, str], list[Sample]] = {(task, status): [] for task in tasks for status in CLASSES}
    for sample in present:
        if sample.record not in kept_aside:
            by[sample.task, records[sample.record].status].append(sample)
    for (task, status), found in by.items():
        if not found:
            raise ValueError(
                f"{where}: no {status} sample of task {task!r} is left to train on; each stage needs both classes, 1:1"
            )
    stage.training = {key: tuple(found) for key, found in by.items()}
    return stage


def read_samples(path: Path, records: Mapping[str, Record], tasks: Sequence[str] = STAGE_TASKS) -> Iterable[Sample]:
    """Stream a stage file. Raises ``ValueError`` naming the line and what is wrong with it."""
    if not path.is_file():
        raise ValueError(f"data.samples: {path} does not exist; `cac-align data split` writes it (docs/full_size.md)")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _sample(json.loads(line), records, tasks)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a sample: {error}") from error


def _sample(row: Mapping[str, Any], records: Mapping[str, Record], tasks: Sequence[str]) -> Sample:
    if row["record"] not in records:
        raise ValueError(f"record {row['record']!r} is not in records.jsonl")
    if row["task"] not in STAGE_TASKS:
        raise ValueError(f"task must be one of {', '.join(STAGE_TASKS)}, received {row['task']!r}")
    window = Window(*row["window"]) if row.get("window") is not None else None
    if row["task"] == "look" and window is None:
        raise ValueError("a look needs its window, [start_s, end_s]")
    if row["task"] == "frame" and not isinstance(row.get("frame"), int):
        raise ValueError(f"a frame sample needs its source index, received {row.get('frame')!r}")
    if row["task"] in tasks and not isinstance(row.get("answer"), str):
        raise ValueError("answer must be a string")
    claims = tuple(Anomaly(item["type"], None, item.get("reason", "")) for item in row.get("suspicion") or ())
    return Sample(
        row["record"], row["task"], row.get("answer") or "", window, row.get("frame"), claims, row.get("claim") or ""
    )


def _held_out(records: Mapping[str, Record], used: set[str], share: float, seed: int) -> set[str]:
    """The records kept for evaluation: per class, those whose hash is lowest. The same whatever the
    order of the files.
    """
    kept: set[str] = set()
    for status in CLASSES:
        names = [name for name in used if records[name].status == status]
        names.sort(key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
        kept |= set(names[: math.ceil(share * len(names))])
    return kept


def _in_turn(samples: Sequence[Sample], records: Mapping[str, Record], seed: int) -> tuple[Sample, ...]:
    """Round by round one sample of every task and class that has one left: the first n are as
    balanced as n samples can be.
    """
    by: dict[tuple[str, str], list[Sample]] = {(task, status): [] for task in STAGE_TASKS for status in CLASSES}
    for sample in sorted(samples, key=lambda sample: _number(seed, sample)):
        by[sample.task, records[sample.record].status].append(sample)
    return tuple(sample for turn in zip_longest(*by.values()) for sample in turn if sample is not None)


# ---- drawing --------------------------------------------------------------------------------------------------------


def draw(stage: Stage, step: int, batch: int) -> list[Sample]:
    """The samples of one step: ``batch`` / 2 pairs, normal then abnormal. A function of (seed,
    step) alone.
    """
    pairs = batch // 2
    tasks = sorted({task for task, _ in stage.training}, key=STAGE_TASKS.index)
    drawn = []
    for pair in range(step * pairs, (step + 1) * pairs):
        task, number = _task_of(pair, tasks, stage.recipe.look_share)
        for status in CLASSES:
            pool = stage.training[task, status]
            drawn.append(pool[_shuffled(stage.seed, task, status, number // len(pool), len(pool))[number % len(pool)]])
    return drawn


def _task_of(pair: int, tasks: Sequence[str], look_share: float) -> tuple[str, int]:
    """Task of the pair-th pair, and how many of that task came before it: looks are spread evenly
    among scans.
    """
    if len(tasks) == 1:
        return tasks[0], pair
    before, after = math.floor(pair * look_share + 1e-9), math.floor((pair + 1) * look_share + 1e-9)
    return ("look", before) if after > before else ("scan", pair - before)


@lru_cache(maxsize=16)
def _shuffled(seed: int, task: str, status: str, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng(_number(seed, task, status, epoch)).permutation(length)


# ---- from sample to segment -----------------------------------------------------------------------------------------

NO_FIRST_LOOK = "There was no first look: this is a single frame."


def conversation(stage: Stage, sample: Sample) -> tuple[Conversation, Frames]:
    """What the model is asked for this sample, exactly as at inference. Raises ``ValueError`` when
    the video cannot be read.
    """
    record, recipe = stage.records[sample.record], stage.recipe
    video = stage.video(record)
    if sample.task in ("scan", "single"):
        frames = video.sample(recipe.scan_fps)
        asked = turn_one_conversation if sample.task == "scan" else single_turn_conversation
        return asked(record.prompt, frames, wording=recipe.wording), frames
    if sample.task == "frame":
        assert sample.frame is not None, "a single frame has its source index (``read_samples``)"
        frames = video.frames([sample.frame], fps=recipe.look_fps)
        first = Turn(1, "", frames.indices, "abnormal", (), NO_FIRST_LOOK)
    else:
        assert sample.window is not None, "a look has its window (``read_samples``)"
        frames = video.clip(sample.window, recipe.look_fps)
        first = _first_turn(stage, sample, record, video)
    return turn_two_conversation(record.prompt, frames, first, wording=recipe.wording), frames


def _first_turn(stage: Stage, sample: Sample, record: Record, video: Video) -> Turn:
    """Turn 1 as the prompt of turn 2 repeats it: the whole answer where the sample carries one
    (``claim``), else a suspicion alone.
    """
    if sample.claim:  # its frame numbers need the scan's clock, not its pixels
        indices = video.indices_at(stage.recipe.scan_fps)
        times_s = tuple(video.times_s[index] for index in indices)
        return read_answer(sample.claim, number=1, frames=indices, times_s=times_s)
    return Turn(1, "", (), "abnormal", sample.suspicion or _suspicion(stage, sample, record))


def _suspicion(stage: Stage, sample: Sample, record: Record) -> tuple[Anomaly, ...]:
    rng = np.random.default_rng(_number(stage.seed, sample))
    if record.status == "abnormal" and rng.random() >= stage.recipe.false_alarm_share:
        return record.anomalies
    others = stage.training["look", "abnormal"]
    return stage.records[others[int(rng.integers(len(others)))].record].anomalies


def segment(
    stage: Stage, sample: Sample, processor: Any, store: dict[Any, Any], max_pixels: int | None = None
) -> Segment:
    """The sample as token ids, its video put into ``store``. Raises ``ValueError`` when video or
    answer cannot be used.
    """
    asked, frames = conversation(stage, sample)
    answer = processor.tokenizer(sample.answer, add_special_tokens=False).input_ids
    if set(answer) & set(processor.tokenizer.all_special_ids):
        raise ValueError(f"the answer {sample.answer[:60]!r} holds a special token; answers are plain text")
    row = encode_one(processor, asked, max_pixels=max_pixels)
    key = (sample.record, frames.indices)
    store_videos(row, [key], store)
    return Segment(row["input_ids"], (*answer, end_token(processor)), (key,))


def usable_segment(
    stage: Stage,
    sample: Sample,
    processor: Any,
    store: dict[Any, Any],
    bad: dict[str, str],
    max_pixels: int | None = None,
) -> Segment:
    """``segment``, or that of the next usable sample of the same task and class where this one
    cannot be used.

    bad: gets the reason of each that cannot, by name; the stage itself is not changed, so that
    samples can be read ahead. Raises ``ValueError`` as ``Stage.check_unusable`` does.
    """
    pool = stage.training[sample.task, stage.records[sample.record].status]
    at = pool.index(sample)
    for step in range(len(pool)):
        candidate = pool[(at + step) % len(pool)]
        try:
            return segment(stage, candidate, processor, store, max_pixels)
        except ValueError as error:
            bad[sample_name(candidate)] = str(error)
            stage.check_unusable(bad)
    raise ValueError(f"no usable {sample.task} sample of class {stage.records[sample.record].status} is left")


def end_token(processor: Any) -> int:
    return int(processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))


def seeded_generator(*parts: object) -> torch.Generator:
    """A CPU generator that is a function of its parts alone."""
    return torch.Generator().manual_seed(_number(*parts))


def _number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
