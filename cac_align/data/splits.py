"""Split chains of thought into three stages that share no video, with as many normal as anomalous
samples each.

- stage 1: single frames (20 K in the paper).
- stage 2: full videos (20 K), and clips shorter than 1 s that cover their anomaly whole (15 K).
- stage 3: videos for two-turn GRPO (7.5 K).

Near-duplicates, and the records of one source file (the twins of an injected pair among them),
always go to the same stage. With fewer records every stage shrinks by the same factor. Where the
chains contain single-turn answers, stage 2 carries those of its videos too, so that both
formulations learn from the same videos.

``check_splits`` verifies stages independently of how they were made.

Source: CaC (arXiv 2605.11723) Sec. 3.2, Appendix C.2.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.judgement import SINGLE_FRAME_TYPES, Window
from cac_align.core.whole_file import whole_file
from cac_align.data.mixture import mixed, related, source_hash
from cac_align.data.perceptual_hash import NEAR_DUPLICATE, duplicate_groups, near_duplicates, perceptual_hash
from cac_align.data.record_video import open_record_video
from cac_align.data.records import Record, moved_record, read_records, write_records
from cac_align.data.visibility import cuts_no_anomaly, window_duration_s

TASKS_BY_STAGE: Mapping[str, tuple[str, ...]] = {
    "stage1": ("frame",),
    "stage2": ("scan", "look", "single"),
    "stage3": ("scan",),
}
"""The tasks of each stage's samples. Single-turn answers exist only where they were asked for."""

Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""A stage's samples by its name."""


@dataclass
class Splits:
    """Sizes of the stages, normal and anomalous together (the paper's; scaled down to the records
    there are).
    """

    # Stage 1: single frames (Appendix C.2).
    frames: int = 20_000
    # Stage 2: full videos (Appendix C.2).
    videos: int = 20_000
    # Stage 2: clips (Appendix C.2).
    clips: int = 15_000
    # Stage 3: videos (Appendix C.2).
    rollouts: int = 7_500
    # Clips are shorter than this, in seconds (Sec. 3.2: one second).
    max_clip_s: float = 1.0
    # Share of hash bits in which near-duplicates may differ (measured, see ``perceptual_hash``).
    near: float = NEAR_DUPLICATE
    # Seed of the assignment and the draws.
    seed: int = 0
    # Other folders of `cac-align data synthesise` whose records join in, each with its share of all records, in
    # (0, 1): {out/human_chains: 0.1}. What is too much for the shares is left out.
    mix: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("frames", "videos", "clips", "rollouts"):
            if getattr(self, name) < 2:
                raise ValueError(
                    f"{name} must be at least 2 (one normal, one anomalous), received {getattr(self, name)}"
                )
        if any(not 0 < share < 1 for share in self.mix.values()) or sum(self.mix.values()) >= 1:
            raise ValueError(
                f"mix gives each folder a share in (0, 1), together below 1 (the rest is the folder that is split), "
                f"received {dict(self.mix)}"
            )


def split_stages(
    folder: str | Path,
    out: str | Path,
    settings: Splits | None = None,
    *,
    apart: Sequence[str | Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Split the folder of a synthesis (records.jsonl, chains.jsonl) into ``out``; return the
    report.

    Written are stage1.jsonl, stage2.jsonl, stage3.jsonl, records.jsonl (the records they use)
    and report.json: all of them or none.

    apart: records files (a benchmark's) whose videos and near-duplicates must not be in any
    stage. Stage 1 is left empty, and the report's ``missing`` says why, where no record of a class
    has a single-frame sample. Raises ``ValueError`` when a class is missing, another stage would be
    empty, a video cannot be read, or the check fails.
    """
    settings, folder, out = settings or Splits(), Path(folder), Path(out)
    records, samples, pools = _pools(folder, settings)
    names = sorted(name for name in records if samples[name])
    classes = Counter(records[name].status for name in names)
    for status in ("normal", "abnormal"):
        if not classes[status]:
            raise ValueError(
                f"{folder}: no {status} record has a chain of thought; every stage needs as many normal as "
                f"anomalous ones"
            )
    benchmark = [(Path(path).parent, record) for path in apart for record in read_records(path)]
    hashes = _hashes([(folder, records[name]) for name in names] + benchmark, progress)
    own, foreign = hashes[: len(names)], hashes[len(names) :]
    forbidden = {row for row, _, _ in near_duplicates(own, foreign, near=settings.near)} if len(foreign) else set()
    sources = {source_hash(record) for _, record in benchmark} - {None}
    forbidden |= {row for row, name in enumerate(names) if source_hash(records[name]) in sources}
    kin = [(one, other, 0.0) for one, other in related([records[name] for name in names])]
    groups = duplicate_groups(len(names), [*near_duplicates(own, near=settings.near), *kin])
    kept = [[names[row] for row in group] for group in groups if not forbidden & set(group)]
    missing = _missing_frames(kept, records, samples)
    chosen, factor = _assign(kept, records, samples, settings, without_frames=bool(missing))
    try:
        stages = _stages(chosen, records, samples, settings, factor)
    except ValueError as error:
        largest = max(map(len, groups))
        if largest <= len(names) // 2 and len(groups) > 2 * len(TASKS_BY_STAGE):
            raise
        alike = (
            f"{largest} of {len(names)} videos are near-duplicates of one another, or of one source, and stay "
            f"together; there are {len(groups)} such groups"
        )
        raise ValueError(f"{error}; {alike}: add other videos, or lower near (now {settings.near:g})") from error
    used = sorted({row["record"] for rows in stages.values() for row in rows})
    row_of = {name: row for row, name in enumerate(names)}
    wrong = check_splits(stages, records, own[[row_of[name] for name in used]], used, settings, foreign)
    if wrong:
        raise ValueError(f"the splits are not clean: {wrong[0]} ({len(wrong)} findings); nothing was written")
    report = {
        "records": len(records),
        "factor": round(factor, 6),
        "duplicate_groups": len(groups),
        "largest_duplicate_group": max(map(len, groups)),
        "near_benchmark": sum(len(group) for group in groups if forbidden & set(group)),
        "unused": len(names) - len(used),
        "mix": _summarise_mix(pools, stages),
        "missing": {"stage1": missing} if missing else {},
        "stages": {name: summarise_samples(rows, records) for name, rows in stages.items()},
        "shared": 0,
        "near_duplicates_across": 0,
    }
    out.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows) for name, rows in stages.items()}
    texts["report.json"] = json.dumps(report, indent=1) + "\n"
    with ExitStack() as files:  # all of them appear when all are written
        for name, text in texts.items():
            files.enter_context(whole_file(out / name, len(text))).write_text(text, encoding="utf-8")
        write_records(out / "records.jsonl", (moved_record(records[name], folder, out) for name in used))
    return report


def _pools(
    folder: Path, settings: Splits
) -> tuple[dict[str, Record], dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """Records and samples of the folder and of those that are mixed in, and by folder how many
    records there were and which are used. Without a mixture the folder's are all used.
    """
    every: dict[str, list[Record]] = {}
    records: dict[str, Record] = {}
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pool in (folder, *map(Path, settings.mix)):
        own = {record.id: moved_record(record, pool, folder) for record in read_records(pool / "records.jsonl")}
        if twice := own.keys() & records.keys():
            raise ValueError(
                f"{pool}: record {min(twice)!r} is in another folder of the mixture as well; ids must be unique"
            )
        found = _samples(pool / "chains.jsonl", own)
        every[str(pool)] = [record for name, record in own.items() if found[name]] if settings.mix else [*own.values()]
        records |= own
        samples |= found
    chosen = every
    if settings.mix:
        shares = {str(folder): 1 - sum(settings.mix.values()), **{str(Path(k)): v for k, v in settings.mix.items()}}
        chosen = mixed(every, shares, settings.seed)
    pools = {name: {"records": [record.id for record in chosen[name]], "of": len(every[name])} for name in every}
    used = {name for pool in pools.values() for name in pool["records"]}
    return {name: record for name, record in records.items() if name in used}, samples, pools


def _summarise_mix(pools: Mapping[str, Mapping[str, Any]], stages: Samples) -> dict[str, Any]:
    """By folder: records that take part and how many there were, their share, and samples by stage.
    Empty without a mixture.
    """
    if len(pools) < 2:
        return {}
    total = sum(len(pool["records"]) for pool in pools.values())
    summary = {}
    for name, pool in pools.items():
        own = set(pool["records"])
        counts = {stage: sum(row["record"] in own for row in rows) for stage, rows in stages.items()}
        share = round(len(own) / total, 6)
        summary[name] = {"records": len(own), "of": pool["of"], "share": share, "samples": counts}
    return summary


def _samples(path: Path, records: Mapping[str, Record]) -> dict[str, list[dict[str, Any]]]:
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, row in _rows(path):
        if row["record"] not in records:
            raise ValueError(f"{path}:{number}: record {row['record']!r} is not in {path.parent / 'records.jsonl'}")
        samples[row["record"]].append(row)
    return samples


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                missing = [name for name in ("record", "task", "window", "frame", "answer") if name not in row]
                if missing:
                    raise ValueError(f"{path}:{number}: a sample lacks {missing}")
                rows.append((number, row))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read: {error.strerror}; make it with `cac-align data synthesise`"
        ) from error
    return rows


def _hashes(items: Sequence[tuple[Path, Record]], progress: Callable[[int, int], None] | None) -> np.ndarray:
    hashes = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves Python's lock
        each = pool.map(lambda item: perceptual_hash(open_record_video(item[1], item[0], clocked=False)), items)
        for number, found in enumerate(each, 1):
            hashes.append(found)
            if progress is not None:
                progress(number, len(items))
    return np.stack(hashes) if hashes else np.zeros((0, 0), bool)


def _missing_frames(
    groups: Sequence[Sequence[str]],
    records: Mapping[str, Record],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Why stage 1, which is all single frames, cannot be filled; empty where it can."""
    names = [name for group in groups for name in group]
    found = {records[name].status for name in names if _count(samples[name], "frame")}
    lacking = [status for status in ("normal", "abnormal") if status not in found]
    if not lacking or not names:
        return ""
    kinds = ", ".join(sorted(SINGLE_FRAME_TYPES))
    why = f": none of {len(names)} records shows a category that one frame can show ({kinds})"
    return f"no {' and no '.join(lacking)} frame{why if 'abnormal' in lacking else ''}"


def _assign(
    groups: Sequence[Sequence[str]],
    records: Mapping[str, Record],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Splits,
    *,
    without_frames: bool = False,
) -> tuple[dict[str, list[str]], float]:
    """Assign each group of near-duplicates to the stage that lacks most of what the group offers.

    without_frames: stage 1 gets nothing. Returns record ids by stage, and the factor by which all
    stages shrink.
    """
    draw = random.Random(settings.seed)
    frames_each = max((_count(samples[name], "frame") for group in groups for name in group), default=0) or 1
    full = {"stage1": settings.frames / frames_each, "stage2": settings.videos, "stage3": settings.rollouts}
    if without_frames:
        del full["stage1"]
    classes = Counter(records[name].status for group in groups for name in group)
    factor = min(1.0, 2 * min(classes["normal"], classes["abnormal"]) / sum(full.values()))
    wanted = {
        (stage, status): max(1.0, factor * size / 2)
        for stage, size in full.items()
        for status in ("normal", "abnormal")
    }
    lacks = dict(wanted)
    chosen: dict[str, list[str]] = {stage: [] for stage in full}
    order = list(groups)
    draw.shuffle(order)
    for group in sorted(order, key=len, reverse=True):
        gains = {stage: _offer(group, stage, records, samples) for stage in full}
        worth = {
            stage: sum(min(count, max(0.0, lacks[stage, status])) * lacks[stage, status] / wanted[stage, status]
                       for status, count in offered.items())
            for stage, offered in gains.items()
        }  # fmt: skip
        best = max(worth, key=lambda stage: worth[stage])
        if worth[best] <= 0:
            continue
        chosen[best] += sorted(group)
        for status, count in gains[best].items():
            lacks[best, status] -= count
    return chosen, factor


def _offer(
    group: Sequence[str], stage: str, records: Mapping[str, Record], samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Counter[str]:
    return Counter(records[name].status for name in group if _count(samples[name], TASKS_BY_STAGE[stage][0]))


def _count(rows: Sequence[Mapping[str, Any]], task: str) -> int:
    return sum(row["task"] == task for row in rows)


def _stages(
    chosen: Mapping[str, Sequence[str]],
    records: Mapping[str, Record],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Splits,
    factor: float,
) -> dict[str, list[Mapping[str, Any]]]:
    """As many normal as anomalous samples of each task. Raises ``ValueError`` where that leaves
    none.
    """
    most = {
        ("stage1", "frame"): settings.frames,
        ("stage2", "scan"): settings.videos,
        ("stage2", "look"): settings.clips,
        ("stage2", "single"): settings.videos,
        ("stage3", "scan"): settings.rollouts,
    }
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for stage, tasks in TASKS_BY_STAGE.items():
        stages[stage] = []
        if stage not in chosen:
            continue
        for task in tasks:
            like = "scan" if task == "single" else task  # the same draw, so that both formulations keep the same videos
            draw = random.Random(f"{settings.seed}|{stage}|{like}")
            of: dict[str, list[Mapping[str, Any]]] = {"normal": [], "abnormal": []}
            for name in chosen[stage]:
                record = records[name]
                fits = [row for row in samples[name] if row["task"] == task and _fits(row, record, settings)]
                of[record.status] += fits
            # Scaled like the rest, so that one stage's clips do not outgrow its videos.
            cap = max(1, round(factor * most[stage, task] / 2)) if task == "look" else max(1, most[stage, task] // 2)
            each = min(cap, *map(len, of.values()))
            if task == "single" and not any(of.values()):
                continue
            if not each:
                lacking = " and ".join(f"no {status} {_NAMED[task]}" for status, rows in of.items() if not rows)
                raise ValueError(
                    f"{stage} would be empty: {lacking} among its {len(chosen[stage])} records of {len(records)}; "
                    f"add records"
                    f"{' of single-frame categories' if task == 'frame' else ''}, or ask less of the other stages"
                )
            for status in ("abnormal", "normal"):
                stages[stage] += sorted(
                    draw.sample(of[status], each), key=lambda row: (row["record"], str(row["window"] or row["frame"]))
                )
    return stages


_NAMED = {
    "frame": "frame",
    "scan": "video",
    "single": "single-turn answer",
    "look": "clip that is short enough and cuts no anomaly",
}


def _fits(row: Mapping[str, Any], record: Record, settings: Splits) -> bool:
    if row["task"] != "look":
        return True
    window = Window(*row["window"])
    return window_duration_s(window, record.fps) < settings.max_clip_s - 1e-9 and cuts_no_anomaly(window, record)


def summarise_samples(rows: Sequence[Mapping[str, Any]], records: Mapping[str, Record]) -> dict[str, Any]:
    """Numbers of samples by task and class, of videos, and of anomalies by type and saliency."""
    named = {row["record"] for row in rows}
    anomalies = [anomaly for name in named for anomaly in records[name].anomalies]
    tasks = Counter((row["task"], records[row["record"]].status) for row in rows)
    return {
        "samples": len(rows),
        "videos": len(named),
        "tasks": {f"{task} {status}": count for (task, status), count in sorted(tasks.items())},
        "types": dict(sorted(Counter(anomaly.type for anomaly in anomalies).items())),
        "saliency": dict(sorted(Counter(str(anomaly.saliency) for anomaly in anomalies).items())),
    }


# ---- the check ----------------------------------------------------------------------------------------------------


def check_splits(
    stages: Samples,
    records: Mapping[str, Record],
    hashes: np.ndarray,
    names: Sequence[str],
    settings: Splits,
    foreign: np.ndarray | None = None,
) -> list[str]:
    """Everything that is wrong with three stages, one sentence each. hashes: of the records
    ``names``, in that order.
    """
    wrong: list[str] = []
    place: dict[str, str] = {}
    files: dict[str, str] = {}
    for stage, rows in stages.items():
        for name in dict.fromkeys(row["record"] for row in rows):
            if name not in records:
                wrong.append(f"{stage}: record {name} does not exist")
                continue
            file = os.path.normpath(records[name].video)
            for table, key, what in ((place, name, f"record {name}"), (files, file, f"video {file}")):
                if table.setdefault(key, stage) != stage:
                    wrong.append(f"{stage} and {table[key]} share {what}")
        for task in TASKS_BY_STAGE[stage]:
            of = Counter(
                records[row["record"]].status for row in rows if row["task"] == task and row["record"] in records
            )
            if (task != "single" and not of["normal"] and (rows or stage != "stage1")) or of["normal"] != of[
                "abnormal"
            ]:
                wrong.append(
                    f"{stage}: {of['normal']} normal and {of['abnormal']} anomalous samples of task {task}, "
                    f"expected 1:1"
                )
        for row in rows:
            if row["task"] not in TASKS_BY_STAGE[stage]:
                wrong.append(f"{stage}: a sample of task {row['task']} of record {row['record']}")
            elif row["record"] in records and not _fits(row, records[row["record"]], settings):
                wrong.append(
                    f"{stage}: the clip {row['window']} of record {row['record']} is too long or cuts an anomaly"
                )
    for one, other, apart in near_duplicates(hashes, near=settings.near):
        if place.get(names[one]) != place.get(names[other]):
            pair = f"{names[one]} ({place.get(names[one])}) and {names[other]} ({place.get(names[other])})"
            wrong.append(f"near-duplicates in two stages: {pair} differ in {apart:.1%} of their hash")
    for one, other in related([records[name] for name in names]):
        if place.get(names[one]) != place.get(names[other]):
            pair = f"{names[one]} ({place.get(names[one])}) and {names[other]} ({place.get(names[other])})"
            wrong.append(f"records of one source in two stages: {pair}")
    if foreign is not None and len(foreign):
        for one, _, apart in near_duplicates(hashes, foreign, near=settings.near):
            wrong.append(
                f"record {names[one]} differs in {apart:.1%} of its hash from a video that is to be kept apart"
            )
    return wrong


def check_split_folder(
    out: str | Path,
    settings: Splits | None = None,
    *,
    apart: Sequence[str | Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Check the splits in a folder from its files and videos alone. Returns (summary by stage,
    findings).
    """
    settings, out = settings or Splits(), Path(out)
    records = {record.id: record for record in read_records(out / "records.jsonl")}
    stages = {name: [row for _, row in _rows(out / f"{name}.jsonl")] for name in TASKS_BY_STAGE}
    names = sorted({row["record"] for rows in stages.values() for row in rows if row["record"] in records})
    benchmark = [(Path(path).parent, record) for path in apart for record in read_records(path)]
    hashes = _hashes([(out, records[name]) for name in names] + benchmark, progress)
    wrong = check_splits(stages, records, hashes[: len(names)], names, settings, hashes[len(names) :])
    known = {stage: [row for row in rows if row["record"] in records] for stage, rows in stages.items()}
    return {stage: summarise_samples(rows, records) for stage, rows in known.items()}, wrong
