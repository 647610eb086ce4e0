"""VBVR-Bench (arXiv 2602.20159) by its own package, with what it counts as 0 told apart from what failed.

videos, ground truth → vbvr_bench's evaluator of each task → one row per ground truth → means by split

The package has two command lines that compute different numbers, so the scoring is named:

- "task_specific": the task's own rule alone, without the fallback on SSIM (its ``run_evaluation.py``).
- "weighted": first frame 15 %, final frame 35 %, smoothness 15 %, visual quality 10 %, the task's rule 25 % (its
  ``evaluate.py``).

It gives 0, or a part of it, for a video that it cannot decode or whose ground truth is missing, and leaves
missing videos out of the mean. Here those have no score and are counted.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.core.video import Video
from cac_align.evaluation.statistics import Estimate, mean_interval

SCORINGS = ("task_specific", "weighted")


@dataclass(frozen=True)
class VbvrRow:
    """One video of the ground truth. ``score`` is None where there is none, and then ``error`` says why."""

    split: str
    task: str
    index: str
    score: float | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class VbvrReport:
    """The rows, and their means by split with bootstrap intervals over videos."""

    scoring: str
    rows: tuple[VbvrRow, ...]

    @property
    def unscored(self) -> int:
        return sum(row.score is None for row in self.rows)

    def means(self) -> dict[str, Estimate]:
        """By split, and ``all``: the mean over the videos with a score."""
        splits = dict.fromkeys(row.split for row in self.rows)
        groups = {name: [row for row in self.rows if row.split == name] for name in splits} | {"all": list(self.rows)}
        return {name: mean_interval([r.score for r in rows if r.score is not None]) for name, rows in groups.items()}

    def to_json(self) -> dict[str, Any]:
        means = {name: estimate.to_json() for name, estimate in self.means().items()}
        rows = [row.to_json() for row in self.rows]
        return {"scoring": self.scoring, "unscored": self.unscored, "means": means, "videos": rows}


def score_vbvr(
    videos: Path, ground_truth: Path, scoring: str, *, progress: Callable[[int, int], None] | None = None
) -> VbvrReport:
    """Score ``videos/<split>/<task>/<index>.mp4`` against ``ground_truth/<split>/<task>/<index>/``.

    Every folder of the ground truth is one row. Raises ``ValueError`` for an unknown scoring, a ground truth without
    such folders, and where the package is not installed.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, received {scoring!r}")
    expected = sorted(path for path in ground_truth.glob("*/*/*") if path.is_dir())
    if not expected:
        raise ValueError(f"{ground_truth}: expected <split>/<task>/<index>/ folders with ground_truth.mp4 in them")
    get_evaluator = _package()
    rows = []
    for number, truth in enumerate(expected, 1):
        split, task, index = truth.parts[-3:]
        path = videos / split / task / f"{index}.mp4"
        found = _score(get_evaluator, path, truth, task, scoring)
        score, error = (None, found) if isinstance(found, str) else (found, None)
        rows.append(VbvrRow(split, task, index, score, error))
        if progress is not None:
            progress(number, len(expected))
    return VbvrReport(scoring, tuple(rows))


def _package() -> Callable[[str, str], Any]:
    try:
        return importlib.import_module("vbvr_bench.evaluators").get_evaluator
    except ImportError as error:
        raise ValueError(
            f"vbvr_bench cannot be imported ({error}); install VBVR-EvalKit (Video-Reason) into this environment"
        ) from error


def _score(get_evaluator: Callable[[str, str], Any], path: Path, truth: Path, task: str, scoring: str) -> float | str:
    """The package's number, or why there is none."""
    needed = {
        "gt_video_path": truth / "ground_truth.mp4",
        "gt_first_frame": truth / "first_frame.png",
        "gt_final_frame": truth / "final_frame.png",
    }
    missing = [file.name for file in needed.values() if not file.is_file()]
    if missing:
        return f"ground truth: {', '.join(missing)} missing"
    try:
        for file in (path, needed["gt_video_path"]):
            video = Video.open(file)
            for first in range(0, len(video), 32):  # the package would score what it could not decode as well
                video.frames(range(first, min(first + 32, len(video))))
    except (ValueError, OSError) as error:
        return f"video: {error}"
    info: dict[str, Any] = {name: str(file) for name, file in needed.items()}
    info |= {"video_path": str(path), "gt_path": str(truth), "task_name": task, "video_idx": truth.name}
    if (prompt := truth / "prompt.txt").is_file():
        info["prompt"] = prompt.read_text(encoding="utf-8").strip()
    only = {"task_specific_only": True} if scoring == "task_specific" else {}
    if only:
        info["no_ssim_fallback"] = True
    try:
        result = get_evaluator(task, "cpu").evaluate(info, **only)
        score, counted = result.get("score"), result.get("details", {}).get("video_frame_count")
    except Exception as error:  # 100 rules of another package
        return f"vbvr_bench: {type(error).__name__}: {error}"
    if result.get("error"):
        return f"vbvr_bench: {result['error']}"
    if counted == 0:
        return "vbvr_bench could not decode the video"
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        return f"vbvr_bench gave {score!r}"
    if only and set(result.get("dimensions", {})) != {"task_specific"}:
        return "vbvr_bench ignored task_specific_only; this is not the scoring that was asked for"
    return float(score)
