"""Score videos with the real VBench, which runs in an environment of its own: one value in [0, 1]
per video and dimension.

``runner.py`` runs in that environment as a subprocess and appends rows to a JSON Lines file, so
that a second run computes only what is missing.

imaging_quality comes as 0..100 per video and is divided by 100; dynamic_degree is a bool and
becomes 0 or 1. Means are over prompts, a prompt's videos averaged first, since seeds of one
prompt are not independent; a video without a known prompt stands for itself. VBench's own
averages are over videos (subject and background: over frame pairs), which is the same where
every prompt has as many, equally long clips. A video that VBench cannot score is unscored, with
its reason, and counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.core.video import VIDEO_SUFFIXES
from cac_align.evaluation.pairing import prompts_and_seeds
from cac_align.evaluation.statistics import Estimate, prompt_interval, prompt_means
from cac_align.evaluation.vbench.environment import DEFAULT_DIMENSIONS, DIMENSIONS, NEED_THE_BENCHMARK, find_python
from cac_align.evaluation.vbench.runner import PROMPTED, row_key

CACHE_VARIABLE = "VBENCH_CACHE_DIR"
RUNNER = Path(__file__).with_name("runner.py")


@dataclass(frozen=True)
class VBenchRow:
    """One video on one dimension. Higher values are better.

    value: in [0, 1]; None when there is none, and then ``error`` says why. raw: VBench's own
    per-video result (imaging_quality 0..100, dynamic_degree a bool).
    """

    video: str
    dimension: str
    value: float | None
    raw: float | bool | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class VBenchReport:
    """All rows, in the order of the videos, and each dimension's mean with its bootstrap interval
    over prompts.
    """

    rows: tuple[VBenchRow, ...]
    means: Mapping[str, Estimate]
    version: str

    @property
    def unscored(self) -> tuple[VBenchRow, ...]:
        return tuple(row for row in self.rows if row.value is None)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "dimensions": {name: mean.to_json() for name, mean in self.means.items()},
            "unscored": len(self.unscored),
            "videos": [row.to_json() for row in self.rows],
        }

    def to_markdown(self) -> str:
        """One line per dimension, then the unscored videos and why."""
        lines = ["| dimension | mean | videos | unscored |", "| --- | ---: | ---: | ---: |"]
        for name, mean in self.means.items():
            missing = sum(row.dimension == name for row in self.unscored)
            scored = sum(row.dimension == name for row in self.rows) - missing
            videos = f"{scored}" if scored == mean.n else f"{scored} ({mean.n} prompts)"
            lines.append(f"| {name} | {mean} | {videos} | {missing} |")
        lines += [""] if self.unscored else []
        for row in self.unscored:
            lines.append(f"- {Path(row.video).name}, {row.dimension}: {row.error}".replace("\n", " "))
        return "\n".join(lines) + "\n"


def scaled(dimension: str, raw: float | bool) -> float:
    """VBench's per-video result on [0, 1]. Raises ``ValueError`` for a number outside the
    dimension's range.
    """
    value = float(raw) / 100 if dimension == "imaging_quality" else float(raw)
    # A cosine or a colour distance may leave [0, 1] by rounding; anything beyond that is not the number we think it is.
    if not -1e-6 <= value <= 1 + 1e-6:
        raise ValueError(
            f"{dimension} returned {raw}, outside its range {'0..100' if dimension == 'imaging_quality' else '0..1'}"
        )
    return min(max(value, 0.0), 1.0)


def vbench(
    videos: str | Path | Sequence[str | Path],
    *,
    dimensions: Sequence[str] = DEFAULT_DIMENSIONS,
    rows: str | Path | None = None,
    python: str | Path | None = None,
    prompts: Mapping[str, str] | None = None,
    device: str = "cpu",
    cache: str | Path | None = None,
    imaging_mode: str = "longer",
    progress: Callable[[int, int, str], None] | None = None,
) -> VBenchReport:
    """Score videos (a folder, or a list of files) with VBench in custom-input mode.

    rows: the file of per-video results (default: vbench.jsonl in the folder). A second run computes
        only what is missing or failed.
    python: VBench's interpreter; see ``environment.find_python``.
    prompts: by path or file name, for the dimensions that need them (default: what the folder's
        listings say, never the file's name).
    device: "cpu" or "cuda".
    cache: VBench's weight folder (default: $VBENCH_CACHE_DIR or ~/.cache/vbench).
    imaging_mode: preprocessing of imaging_quality; "longer" is VBench's default.
    progress: called with (rows done, rows to do, video path).

    Raises ``ValueError`` for no video, an unknown dimension, a video without the prompt that a
    dimension needs, and for a missing environment or weight file (with the command that creates
    it).
    """
    files, home = _files(videos)
    check_dimensions(dimensions)
    interpreter = find_python(python)
    rows = Path(rows) if rows is not None else home / "vbench.jsonl"
    cache = Path(cache or os.environ.get(CACHE_VARIABLE) or "~/.cache/vbench").expanduser().absolute()
    _cut_unfinished_line(rows)
    prompted = [name for name in dimensions if name in PROMPTED]
    prompt_of = _prompts_of(files, home, prompts)
    listed = [{"path": str(file), "sha256": _sha256(file), "prompt": prompt_of[file]} for file in files]
    lacking = [item["path"] for item in listed if not item["prompt"].strip()]
    if prompted and lacking:
        raise ValueError(
            f"{', '.join(prompted)} compare a video with its prompt, and {len(lacking)} of {len(listed)} have none, "
            f"first {lacking[0]}; "
            'write {"video": name, "prompt": text} lines into prompts.jsonl beside them, or pass --prompts'
        )
    request = {"dimensions": list(dimensions), "videos": listed, "rows": str(rows.absolute()), "device": device}
    request |= {"cache": str(cache), "imaging_mode": imaging_mode}
    version = _run(interpreter, request, rows.with_suffix(".log"), progress)
    return read_report(rows, [{**item, "imaging_mode": imaging_mode} for item in listed], dimensions, version)


def _prompts_of(files: Sequence[Path], home: Path, given: Mapping[str, str] | None) -> dict[Path, str]:
    """Every file's prompt as given, or as the folder's listings say; "" where nothing says."""
    if given is not None:
        return {file: given.get(str(file), given.get(file.name, "")) for file in files}
    found = prompts_and_seeds(home, files, [])
    return {file: found.get(file, (None, None))[0] or "" for file in files}


def check_dimensions(dimensions: Sequence[str]) -> None:
    """Raise ``ValueError`` for a dimension that VBench lacks, or has for its own prompts only."""
    own = [name for name in dimensions if name in NEED_THE_BENCHMARK]
    if own:
        raise ValueError(
            f"{', '.join(own)} need VBench's own prompts and videos; custom videos can have {', '.join(DIMENSIONS)}"
        )
    unknown = [name for name in dimensions if name not in DIMENSIONS]
    if unknown or not dimensions:
        raise ValueError(f"unknown VBench dimensions {unknown}; expected some of {', '.join(DIMENSIONS)}")


def read_report(
    rows: Path, listed: Sequence[Mapping[str, str]], dimensions: Sequence[str], version: str = ""
) -> VBenchReport:
    """The report on ``listed`` videos (path, sha256; prompt and imaging_mode where known) from a
    rows file.

    Of equal rows the last one counts. A row for other content under the same path, from another
    version of VBench, or for another prompt or imaging_mode where the value depends on it, is
    another video's. Raises ``ValueError`` for a line that is no row.
    """
    stored: dict[tuple[str, ...], dict[str, Any]] = {}
    with open(rows, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                stored[row_key(row, row["dimension"])] = row
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{rows}:{number}: not a VBench row: {error}; delete the line to compute it again"
                ) from error
    found: list[VBenchRow] = []
    means = {}
    for dimension in dimensions:
        values, prompts = [], []
        for item in listed:
            row = stored.get(row_key({**item, "version": version}, dimension))
            value, error = (None, "VBench was not run on this file") if row is None else row_value(row)
            found.append(VBenchRow(item["path"], dimension, value, None if row is None else row["raw"], error))
            if value is not None:
                values.append(value)
                prompts.append(item.get("prompt") or None)
        means[dimension] = prompt_interval(prompt_means(values, prompts))
    return VBenchReport(tuple(found), means, version)


def row_value(row: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """(value in [0, 1], None) of a stored row, or (None, why it has none).

    Raises ``KeyError`` or ``TypeError`` for what is no row.
    """
    if row["error"] is not None:
        return None, row["error"]
    if row["dimension"] == "human_action" and "version" not in row:
        return None, "an earlier release let VBench take the action from the file's name; compute it again"
    try:
        return scaled(row["dimension"], row["raw"]), None
    except ValueError as fault:
        return None, str(fault)


def videos_in(folder: str | Path) -> list[Path]:
    """Absolute paths of a folder's videos in the order of their names.

    Raises ``ValueError`` when it is no folder or holds no video.
    """
    home = Path(folder).absolute()
    if not home.is_dir():
        raise ValueError(f"expected a folder of videos, received {folder}")
    found = sorted(path for path in home.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise ValueError(f"{home} holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return found


def _files(videos: str | Path | Sequence[str | Path]) -> tuple[list[Path], Path]:
    """Absolute video paths in order, and the folder that results belong to."""
    if isinstance(videos, (str, Path)):
        return videos_in(videos), Path(videos).absolute()
    found = [Path(path).absolute() for path in videos]
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        raise ValueError(f"expected video files, {len(missing)} of {len(found)} do not exist, first {missing[:1]}")
    return found, found[0].parent


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cut_unfinished_line(rows: Path) -> None:
    """Cut off a last line that a killed run left unfinished; its row is computed again."""
    if not rows.is_file():
        rows.parent.mkdir(parents=True, exist_ok=True)
        return
    content = rows.read_bytes()
    if content and not content.endswith(b"\n"):
        rows.write_bytes(content[: content.rfind(b"\n") + 1])


def _run(python: Path, request: Mapping[str, Any], log: Path, progress: Callable[[int, int, str], None] | None) -> str:
    """Run the runner and return VBench's version. VBench's own output goes to ``log``.

    Raises ``ValueError`` that says what to do.
    """
    version, trouble = "", None
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file, open(log, "ab") as noise:
        json.dump(request, file)
        file.flush()
        command = [str(python), str(RUNNER), file.name]
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, env=environment, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                version = message.get("version", version)
                if "missing" in message or "environment_error" in message:
                    trouble = message
                elif "done" in message and progress is not None:
                    progress(message["done"], message["of"], message["path"])
        status = process.returncode
    if status == 3 and trouble:
        names = "\n".join(f"  {item['dimension']}: {item['file']}" for item in trouble["missing"])
        commands = "\n".join(f"    {item['command']}" for item in trouble["missing"])
        raise ValueError(f"VBench's weight files are missing:\n{names}\nFetch them with\n{commands}")
    if status == 4 and trouble:
        again = " ".join(shlex.quote(part) for part in ("cac-align", "vbench-env", str(python.parent.parent)))
        raise ValueError(
            f"the VBench environment of {python} cannot run this: {trouble['environment_error']}\nMake it anew "
            f"with\n    {again}"
        )
    if status != 0:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
        raise ValueError(f"VBench's process ended with status {status}; the end of {log}:\n" + "\n".join(tail))
    return version
