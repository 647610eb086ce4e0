"""The page of a repair run: each video before, its mask, and after, played together, with every attempt's verdict.

results, rows of ``attempts.jsonl`` → ``write_repair_page`` → one HTML page beside the videos
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import write_page
from cac_align.evaluation.pages.player import Player, file_player
from cac_align.generation.latent_masks import LatentGrid, pixel_mask
from cac_align.generation.repair.one_video import RepairResult

_DIM = 0.35
"""How bright a page shows what a repair keeps, as a share."""


@dataclass(frozen=True)
class RepairCard:
    """One video of the page. shown: (title, player) of before, mask and after, as far as there are any."""

    result: RepairResult
    shown: tuple[tuple[str, Player], ...]
    attempts: tuple[Mapping[str, Any], ...]


def write_repair_page(
    results: Sequence[RepairResult],
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    fps: float | None = None,
    provenances: Sequence[Mapping[str, str]] = (),
) -> Path:
    """Write the page and return its path. rows: of ``attempts.jsonl``. fps: of originals whose files state a
    wrong one. provenances: of the judge and the guards; the page says what they were made for.

    A video whose file is gone is shown without frames.
    """
    kept = [result for result in results if result.path != result.video]
    costs = [result.costs for result in results]
    return write_page(
        path,
        "repair.html.jinja",
        title="Repair",
        tiles=[
            (str(len(results)), "videos"),
            (str(sum(result.status == "mended" for result in results)), "mended"),
            (str(len(kept)), "now better"),
            (str(sum(cost.clips for cost in costs)), "clips made"),
            (str(sum(cost.frame_steps for cost in costs)), "frames × denoising steps"),
            (str(sum(cost.judge_calls for cost in costs)), "judge calls"),
        ],
        cards=[_card(result, rows, path.parent, fps) for result in results],
        kept=len(kept),
        self_contained=False,
        provenances=provenances,
    )


def _card(result: RepairResult, rows: Sequence[Mapping[str, Any]], folder: Path, fps: float | None) -> RepairCard:
    last = {row["key"]: row for row in rows if row["video"] == result.video and row["prompt"] == result.prompt}
    attempts = tuple(row for row in last.values() if row["attempt"] > 0)
    shown = [("before", _player(Path(result.video), folder, fps))]
    accepted = [row for row in attempts if row["accepted"]]
    of_mask = (accepted or [row for row in attempts if row["path"]])[-1:]
    if of_mask:
        shown.append(("mask", _mask_player(result, of_mask[0], folder, fps)))
        after = Path(result.path) if accepted else Path(of_mask[0]["path"])
        shown.append(("after" if accepted else "last attempt, not kept", _player(after, folder, None)))
    return RepairCard(result, tuple((title, player) for title, player in shown if player is not None), attempts)


def _player(path: Path, folder: Path, fps: float | None) -> Player | None:
    if not path.is_file():
        return None
    return file_player(Video.open(path, fps=fps), (), os.path.relpath(path.resolve(), folder.resolve()))


def _mask_player(result: RepairResult, row: Mapping[str, Any], folder: Path, fps: float | None) -> Player | None:
    """The original with everything that the repair keeps dimmed, written beside the mask."""
    mask, original = Path(row["mask"]), Path(result.video)
    if not (mask.is_file() and original.is_file()):
        return None
    shown = mask.with_suffix(".mp4")
    if not shown.exists():
        stored, video = np.load(mask), Video.open(original, fps=fps)
        grid = LatentGrid(len(video), video.height, video.width, *map(int, stored["strides"]))
        inside = pixel_mask(stored["weights"], grid)[..., None]
        pixels = video.frames(range(len(video))).pixels
        write_mp4(shown, np.where(inside, pixels, (_DIM * pixels).astype(np.uint8)), video.fps)
    return _player(shown, folder, None)
