"""The campaign: ``python -m tests.campaign.run --minutes 30 --seed 1``.

It prints promise, cases and failures as a table, and leaves failed inputs in ``<out>/failures``, which
``--replay FILE`` puts again. Inputs and runs have a process each, at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import re
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

HANG_S = 10.0
_PREPARE_S = 180.0  # until a worker's first case
_MOST_BAD_WORKERS = 10  # after so many that hung or died, a promise is not asked further
_ADDRESS_SPACE_BYTES = 12 * 2**30
CASES_PER_MINUTE = 300

Row = dict[str, Any]


def child(work: Callable[[Callable[[Row], None]], None]) -> tuple[int, int]:
    """Run ``work(report)`` in a forked process; returns its process id and the end of a pipe that it reports to."""
    end, start = os.pipe()
    process = os.fork()
    if process:
        os.close(start)
        return process, end
    status = 1
    try:
        os.setpgid(0, 0)
        os.close(end)
        file = os.fdopen(start, "w")

        def report(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        work(report)
        status = 0
    except Exception:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def read_lines(end: int, first_s: float, then_s: float) -> Iterator[Row | None]:
    """The rows of a child; None ends them where none came for ``first_s``, later ``then_s`` seconds."""
    held, seconds = b"", first_s
    while True:
        if not select.select([end], [], [], seconds)[0]:
            yield None
            return
        data, seconds = os.read(end, 65536), then_s
        if not data:
            return
        *lines, held = (held + data).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _end(process: int, end: int) -> int:
    os.close(end)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# ---- inputs ---------------------------------------------------------------------------------------------------------


def put_inputs(seed: int, cases: int, seconds: float, only: str, report: Callable[[Row], None]) -> None:
    """Put cases to every promise about inputs, each in a process of its own that is watched."""
    from tests.campaign.promise import all_promises

    promises = [promise for promise in all_promises().values() if only in promise.name]
    until = time.monotonic() + seconds
    left = sum(promise.weight for promise in promises)
    total = left
    for number, promise in enumerate(promises):
        share_s = (until - time.monotonic()) * promise.weight / left
        left -= promise.weight
        _put_one(promise, seed + 1000 * number, round(cases * promise.weight / total), share_s, report)


def _put_one(promise: Any, seed: int, cases: int, seconds: float, report: Callable[[Row], None]) -> None:
    until, done, bad = time.monotonic() + seconds, 0, 0
    while done < cases and time.monotonic() < until and bad < _MOST_BAD_WORKERS:
        process, end = child(partial(_worker, promise, seed + bad, cases - done, until - time.monotonic()))
        begun, finished, hung = None, False, False
        for row in read_lines(end, _PREPARE_S, HANG_S):
            if row is None:
                hung = True
            elif "begin" in row:
                begun = row["begin"]
            elif "end" in row:
                done += 1
                _tell(report, promise, begun, row["end"], seconds=row["seconds"], bytes=row["bytes"])
                begun = None
                if row["end"] and row["end"].startswith("MEMORY"):
                    break
            else:
                finished = True
        status = _end(process, end)
        if finished:
            return
        bad += 1
        if begun is not None:
            done += 1
            why = f"HANG: more than {HANG_S:g} s" if hung else f"the process died: {status}"
            _tell(report, promise, begun, why)
        elif bad == _MOST_BAD_WORKERS:
            _tell(report, promise, None, "the case could not be prepared")


def _worker(promise: Any, seed: int, cases: int, seconds: float, report: Callable[[Row], None]) -> None:
    from tests.campaign.promise import put

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    put(promise, seed, cases, seconds, report)
    report({"done": True})


def _tell(report: Callable[[Row], None], promise: Any, value: str | None, why: str | None, **measured: float) -> None:
    row = {"kind": "inputs", "promise": promise.sentence, "why": why, **measured}
    report(row | ({"name": promise.name, "value": value} if why else {}))


# ---- runs -----------------------------------------------------------------------------------------------------------


def put_runs(seed: int, seconds: float, report: Callable[[Row], None]) -> None:
    """Kill runs, let them meet, and fill their disks, one after another, until the time is over."""
    from tests.campaign import kills
    from tests.campaign.writers import writers

    rng = random.Random(seed)
    sentences = {
        kills.killed: "A run killed at any moment ends, by the same command, in the same state",
        kills.two_at_once: "Two runs in one folder leave the state of one",
        kills.disk_full: "A full disk ends in one sentence, nothing half written, and the same command resumes",
        kills.files_limited: "So does a file that may not grow",
    }

    def tell(sentence: str, name: str, outcomes: Iterator[kills.Outcome]) -> None:
        for what, why in outcomes:
            report({"kind": "runs", "promise": f"{sentence}: {name}", "why": why and f"{what}: {why}"})

    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number, verb in enumerate(writers(Path(folder))):
            place = Path(folder) / f"verb{number}"
            place.mkdir()
            try:
                made.append((kills.reference(verb, place), place))
            except RuntimeError as error:
                report({"kind": "runs", "promise": f"An undisturbed run ends well: {verb.name}", "why": str(error)})
        full = [kills.disk_full, kills.files_limited] if kills.can_mount() else [kills.files_limited]
        if kills.disk_full not in full:
            report(
                {"kind": "note", "text": "no tmpfs can be mounted here: files that may not grow stand for full disks"}
            )
        plan = []
        for one, place in made:
            kinds = [kills.killed, full[0]] if one.verb.resumes else []
            kinds += [kills.two_at_once] if one.verb.name == "best-of-n" else []
            plan += [(kind, one, place) for kind in kinds]
        # Between two rounds of what is killed and resumes, one of the others meets a full disk.
        rest = [(kind, one, place) for one, place in made for kind in full if not one.verb.resumes]
        turn, until = 0, time.monotonic() + seconds  # what all runs share is made by now
        while time.monotonic() < until:
            kind, one, place = plan[turn // 2 % len(plan)] if turn % 2 else rest[turn // 2 % len(rest)]
            turn += 1
            tell(sentences[kind], one.verb.name, kind(one, place, rng))
            if turn % 3 == 0:
                tell(
                    "Rows that a writer reported are in the ledger",
                    "four writers, killed",
                    kills.ledger_writers(Path(folder), rng),
                )


# ---- the table ------------------------------------------------------------------------------------------------------


class Table:
    """Cases and failures per promise; failed inputs are written to a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.cases: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.longest_s: dict[tuple[str, str], float] = {}
        self.most_bytes: dict[tuple[str, str], float] = {}
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, row: Row) -> None:
        if row["kind"] == "note":
            self.notes.append(row["text"])
            return
        key = (row["kind"], row["promise"])
        self.cases[key] += 1
        for most, name in ((self.longest_s, "seconds"), (self.most_bytes, "bytes")):
            if name in row:
                most[key] = max(most.get(key, 0.0), row[name])
        if not row["why"]:
            return
        self.failures[key] += 1
        reason = re.sub(r"[\d.]+ s\b|/tmp\S+", "…", row["why"])[:300]
        if not row["why"].startswith("HANG"):
            reason = re.sub(r"(?<!:)\b\d[\d.e+-]*", "#", reason)
        reason = f"{row.get('name') or row['promise'].rsplit(': ', 1)[-1]}: {reason}"
        self.reasons[reason] += 1
        if reason not in self.examples:
            self.examples[reason] = row["why"]
            if row.get("value"):
                folder = self.out / "failures"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{len(self.examples):03d}.pickle"
                path.write_bytes(pickle.dumps((row["name"], pickle.loads(bytes.fromhex(row["value"])))))
                self.examples[reason] += f"  [{path}]"

    def text(self) -> str:
        lines = ["| promise | cases | failures | longest case | most memory |", "|---|---:|---:|---:|---:|"]
        for key, count in sorted(self.cases.items()):
            longest_s, most = self.longest_s.get(key), self.most_bytes.get(key)
            measured = f"{longest_s:.2g} s | {most / 2**30:.2f} GB" if longest_s and most else "|"
            lines.append(f"| {key[1]} | {count} | {self.failures[key]} | {measured} |")
        for kind in ("inputs", "runs"):
            count = sum(count for key, count in self.cases.items() if key[0] == kind)
            failed = sum(count for key, count in self.failures.items() if key[0] == kind)
            lines.append(f"| **all {kind}** | **{count}** | **{failed}** | | |")
        lines += ["", *self.notes]
        lines += [f"- {count} × {self.examples[reason]}" for reason, count in self.reasons.most_common()]
        return "\n".join(lines)


def replay(path: Path) -> int:
    """Put a stored input again and print what happens."""
    from tests.campaign.promise import all_promises, failure_of

    name, value = pickle.loads(path.read_bytes())
    promise = all_promises()[name]
    with tempfile.TemporaryDirectory() as folder:
        context = promise.prepare(Path(folder))
        why = failure_of(promise, context, value)
        if hasattr(context, "close"):
            context.close()
    print(f"{promise.sentence}\n{value!r:.2000}\n{why or 'holds'}")
    return 1 if why else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--cases", type=int, help=f"at most so many inputs (default: {CASES_PER_MINUTE} a minute, 3000 or more)"
    )
    parser.add_argument("--only", default="", help="promises about inputs whose name holds this; no runs then")
    parser.add_argument("--no-runs", action="store_true", help="inputs only")
    parser.add_argument("--no-inputs", action="store_true", help="runs only")
    parser.add_argument("--out", type=Path, default=Path("out/campaign"))
    parser.add_argument("--replay", type=Path, help="put one stored input again")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)
    began, seconds = time.monotonic(), 60 * options.minutes
    cases = options.cases or max(3000, round(CASES_PER_MINUTE * options.minutes))
    children = []
    if not options.no_inputs:
        children.append(child(lambda told: put_inputs(options.seed, cases, seconds, options.only, told)))
    if not (options.only or options.no_runs):
        children.append(child(lambda told: put_runs(options.seed, seconds, told)))
    table, open_ends, held = (
        Table(options.out),
        {end: process for process, end in children},
        dict.fromkeys((e for _, e in children), b""),
    )
    while open_ends:
        for end in select.select(list(open_ends), [], [])[0]:
            data = os.read(end, 65536)
            if not data:
                _, status = os.waitpid(open_ends.pop(end), 0)
                if status:
                    table.notes.append(
                        f"a part of the campaign ended with {os.waitstatus_to_exitcode(status)}; its output is above"
                    )
            *lines, held[end] = (held[end] + data).split(b"\n")
            for line in lines:
                table.add(json.loads(line))
    text = f"seed {options.seed}, {(time.monotonic() - began) / 60:.1f} minutes\n\n{table.text()}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text + "\n")
    print(text)
    return 1 if table.failures or any("ended with" in note for note in table.notes) else 0


if __name__ == "__main__":
    sys.exit(main())
