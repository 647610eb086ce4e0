"""A folder of videos → pairs, records and an audit; resumable, on several processes.

videos → slots (one place of one video each) → ``slot.fill_slot`` on workers → slots in order → the
first n pairs → records.jsonl, rejected.jsonl, skipped.jsonl, audit.json

Slots are counted in their own order whatever order they end in, so neither the number of workers nor
an interruption changes a byte of the records.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.data.injection.audit import audit_pairs
from cac_align.data.injection.models import Models
from cac_align.data.injection.registry import usable_injectors
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.slot import SlotTask, fill_slot
from cac_align.data.records import Record, write_records
from cac_align.runs.files import atomic_write

_FRUITLESS_ROUNDS = 3
"""So many rounds over all videos without a pair end a run."""


@dataclass(frozen=True)
class SourceFile:
    """A video to inject into: its path, the name that records give it, and its prompt."""

    path: Path
    name: str
    prompt: str = ""


@dataclass(frozen=True)
class InjectionResult:
    """What a run made. ``audit`` is what audit.json holds."""

    records: Path
    pairs: int
    audit: Mapping[str, Any]


def inject(
    files: Sequence[SourceFile],
    out: Path,
    settings: Injection,
    *,
    n: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    models: Models | None = None,
    progress: Callable[[int, Mapping[str, int]], Any] | None = None,
) -> InjectionResult:
    """Make ``n`` pairs (None: one per video) in the folder ``out``, and write records and audit.

    workers: processes (None: one per core, and a single one with models, since each loads its own).
    models: what the settings name (``wan``, ``sam2``). progress: called with the number of pairs and the number
    of slots by outcome. Raises ``ValueError`` for an empty list of files, settings that no injector
    fits, a checkpoint that the settings name and ``models`` lacks, and a folder that was made with
    other settings; ``OSError`` where the disk is full.
    """
    if not files:
        raise ValueError("no videos to inject into; expected a folder or files")
    n = len(files) if n is None else n
    if n < 1:
        raise ValueError(f"n must be a positive number of pairs, received {n}")
    models = models or Models()
    for key, model in (("wan", models.redrawer), ("sam2", models.segmenter)):
        if (name := getattr(settings, key)) and model is None:
            raise ValueError(f"injection.{key} names {name}, but no models were given; give inject(…, models=…)")
    usable, missing = usable_injectors(settings.tiers, settings.injectors, models, body_models=settings.body_models)
    if not usable:
        raise ValueError(f"no injector can run: {missing or 'the recipe names none of its tiers'}")
    for folder in ("videos", "slots"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _check_same(out / "injection.json", settings, seed, sorted(usable), models)
    if workers is None and models != Models():
        workers = 1
    reports: list[Mapping[str, Any]] = []
    counts: Counter[str] = Counter()
    with closing(_in_order(_Slots(files, out, settings, seed, models), _worker_count(workers, n))) as done:
        for report in done:
            reports.append(report)
            counts[report["outcome"]] += 1
            if progress is not None:
                progress(counts["pair"], counts)
            if counts["pair"] == n or _fruitless(reports):
                break
    return _written(out, reports, n, missing)


def _worker_count(workers: int | None, n: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores if workers is None else workers, n), 1)


def _check_same(path: Path, settings: Injection, seed: int, injectors: Sequence[str], models: Models) -> None:
    """Write what a folder is made with, or raise ``ValueError`` where it was made with something else.

    A key that a release added after that has its default. Where models run says nothing.
    """
    made: dict[str, Any] = {"seed": seed, "injectors": list(injectors), "settings": asdict(settings)}
    if provenance := models.provenance:
        made["models"] = provenance
    now = json.loads(json.dumps(made))
    if not path.is_file():
        atomic_write(path, json.dumps(now, indent=1))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    before["settings"] = {**asdict(Injection()), **before.get("settings", {})}
    for made_with in (before, now):
        made_with["settings"].pop("device", None)
    if differs := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        raise ValueError(f"{path.parent} was made with other {' and '.join(differs)}; choose another folder")


class _Slots:
    """Tasks in the order of their slots, without the files that turned out to be of no use."""

    def __init__(self, files: Sequence[SourceFile], out: Path, settings: Injection, seed: int, models: Models) -> None:
        self.useless: set[str] = set()
        self._order = sorted(files, key=lambda file: hashlib.sha256(f"{seed}\0{file.name}".encode()).digest())
        self._fixed = {"seed": seed, "out": str(out), "settings": settings, "models": models}

    def __iter__(self) -> Iterator[SlotTask]:
        turn = 0
        while len(self.useless) < len(self._order):
            for file in self._order:
                if file.name not in self.useless:
                    yield SlotTask(str(file.path), file.name, turn, prompt=file.prompt, **self._fixed)
            turn += 1


def _in_order(slots: _Slots, workers: int) -> Generator[Mapping[str, Any]]:
    """The reports of the slots, in order; filled by ``workers`` processes, a few slots ahead."""
    tasks = iter(slots)
    if workers == 1:
        for task in tasks:
            report = fill_slot(task)
            _note(report, slots)
            yield report
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_one_thread)
    ahead: list[Future[dict[str, Any]]] = []
    try:
        while True:
            while len(ahead) < 2 * workers:
                task = next(tasks, None)
                if task is None:
                    break
                ahead.append(pool.submit(fill_slot, task))
            if not ahead:
                return
            report = ahead.pop(0).result()
            if report["source"] in slots.useless:
                continue  # begun before its file was known to be of no use; it says the same again
            _note(report, slots)
            yield report
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker was killed, most likely because memory ran out; the same command resumes, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _note(report: Mapping[str, Any], slots: _Slots) -> None:
    if report["whole_file"]:
        slots.useless.add(report["source"])


def _one_thread() -> None:
    """Workers share the cores: none of them uses several threads. Ctrl-C ends the parent, which ends them, and
    so does a parent that was killed: it cannot tell them, and they would wait for work for ever.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from importlib.util import find_spec

    if find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _fruitless(reports: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last rounds over all the files gave no pair."""
    last = max((report["round"] for report in reports if report["outcome"] == "pair"), default=-1)
    return reports[-1]["round"] > last + _FRUITLESS_ROUNDS


# ---- what a run writes --------------------------------------------------------------------------------------------


def _written(out: Path, reports: Sequence[Mapping[str, Any]], n: int, missing: Mapping[str, str]) -> InjectionResult:
    pairs = [report for report in reports if report["outcome"] == "pair"]
    records = [Record.from_json(row) for report in pairs for row in report["records"]]
    write_records(out / "records.jsonl", records)
    lost = [report for report in reports if report["outcome"] != "pair"]
    keys = ("key", "source", "round", "outcome", "reason")
    _write_rows(out / "skipped.jsonl", [{key: report[key] for key in keys} for report in lost])
    attempts = [
        {"key": report["key"], "source": report["source"], **attempt}
        for report in reports
        for attempt in report["rejected"]
    ]
    _write_rows(out / "rejected.jsonl", attempts)
    audit = _audit(out, pairs, lost, attempts, n, missing)
    atomic_write(out / "audit.json", json.dumps(audit, indent=1, ensure_ascii=False))
    return InjectionResult(out / "records.jsonl", len(pairs), audit)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _audit(
    out: Path,
    pairs: Sequence[Mapping[str, Any]],
    lost: Sequence[Mapping[str, Any]],
    attempts: Sequence[Mapping[str, Any]],
    n: int,
    missing: Mapping[str, str],
) -> dict[str, Any]:
    features = []
    for report in pairs:
        with np.load(out / "slots" / f"{report['key']}.npz") as found:
            features.append({name: found[name] for name in found.files})
    normals = [row["extra"]["hard_normal"] for report in pairs for row in report["records"][2:]]
    kinds = Counter(f"{row['injector']}: {str(row['reason']).partition(':')[0]}" for row in attempts)
    return {
        "pairs": len(pairs),
        "pairs_asked_for": n,
        "sources": len({report["source"] for report in pairs}),
        "injectors": dict(Counter(report["injector"] for report in pairs).most_common()),
        "injectors_not_installed": dict(missing),
        "hard_normals": dict(Counter(normals).most_common()),
        "skipped": dict(Counter(_kind(report) for report in lost if report["outcome"] == "skipped").most_common()),
        "failed": dict(Counter(report["reason"] for report in lost if report["outcome"] == "failed").most_common()),
        "rejected_attempts": dict(kinds.most_common()),
        "shortcut_auc": audit_pairs(features, [report["source"] for report in pairs]),
    }


def _kind(report: Mapping[str, Any]) -> str:
    """A skip's reason without its details."""
    return str(report["reason"]).partition(":")[0]
