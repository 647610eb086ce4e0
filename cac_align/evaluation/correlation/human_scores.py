"""Published human scores of generated videos, one row per video.

TAG-Bench's JSON | VideoScience-Bench's annotations | JSON Lines → rows with video, prompt and scores by axis
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.core.video import is_video_file

SOURCES = ("tag", "videoscience", "jsonl")

VIDEOSCIENCE_AXES = ("PCS", "PCG", "CDN", "IMB", "STC")
"""VideoScience-Bench's five dimensions, each scored from 1 to 4."""

_TAG_NAME = re.compile(r"(?P<generator>.+)_(?P<action>[A-Za-z]+)_\d+_.+")


@dataclass(frozen=True)
class HumanScore:
    """What people said about one video. ``scores`` has None where nobody scored that axis."""

    video: str
    prompt: str
    scores: Mapping[str, float | None]


def read_tag(path: Path) -> tuple[list[HumanScore], list[str]]:
    """TAG-Bench's ``TAG_final_human_scores.json``: ``{file: {"ac": z, "tc": z}}``. Returns rows and notes.

    Its maker writes 0.0 where no rater was left, so a score of exactly 0 is missing. The prompts are not in the file:
    the action in the file's name stands for them. Raises ``ValueError`` for another layout.
    """
    content = _json(path)
    if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
        raise ValueError(f'{path}: expected {{"FILE.mp4": {{"ac": …, "tc": …}}}}, TAG_final_human_scores.json')
    rows, zeros = [], 0
    for name, row in content.items():
        found = _TAG_NAME.fullmatch(Path(name).stem)
        if set(row) != {"ac", "tc"} or found is None:
            raise ValueError(
                f"{path}: {name}: expected ac and tc, and a name GENERATOR_ACTION_NN_ID, found {sorted(row)}"
            )
        scores = {axis: _number(row[axis], f"{path}: {name}") for axis in ("ac", "tc")}
        zeros += sum(value == 0 for value in scores.values())
        prompt = f"a person doing {found['action'].lower()}"
        rows.append(HumanScore(name, prompt, {axis: value or None for axis, value in scores.items()}))
    notes = ["TAG-Bench's file has no prompts; judges were told 'a person doing ACTION' unless --prompts names them."]
    if zeros:
        notes.append(f"{zeros} scores are exactly 0, which its maker writes where nobody was left to score; left out.")
    return rows, notes


def read_videoscience(path: Path, prompts: Mapping[str, str], generators: Sequence[str]) -> list[HumanScore]:
    """VideoScience-Bench's annotations: the mean over raters of each of the five dimensions; nulls are left out.

    The nesting of the file could not be read, so each object that holds a dimension is taken for one rater's answer,
    and its video is told by a prompt's id and a generator's name in the object or on the way to it. prompts: text by
    id. generators: names of the folders of videos. Raises ``ValueError`` naming the place where that fails, for a score
    outside 1 to 4, and where no such object is found.
    """
    given: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for way, answer in _answers(_json(path), ()):
        told = [*way, *(str(value) for value in answer.values() if isinstance(value, (str, int)))]
        ids = {word for word in told if word in prompts}
        makers = {word for word in told if word in generators}
        where = f"{path}: {'/'.join(way) or 'top'}"
        if len(ids) != 1 or len(makers) != 1:
            raise ValueError(
                f"{where}: expected one prompt's id and one generator ({', '.join(sorted(generators))}), found "
                f"{sorted(ids)} and {sorted(makers)}; the object has the keys {sorted(answer)}"
            )
        video = given[ids.pop(), makers.pop()]
        for key, value in answer.items():
            axis = key.upper()
            if axis in VIDEOSCIENCE_AXES:
                for one in value if isinstance(value, list) else [value]:
                    if one is None:
                        continue
                    score = _number(one, f"{where}: {key}")
                    if not 1 <= score <= 4:
                        raise ValueError(f"{where}: {key} is {score:g}; its scale is 1 to 4")
                    video[axis].append(score)
    if not given:
        raise ValueError(f"{path}: no object with one of {', '.join(VIDEOSCIENCE_AXES)} in it")
    return [
        HumanScore(
            f"{maker}/{name}.mp4",
            prompts[name],
            {axis: sum(of[axis]) / len(of[axis]) if of.get(axis) else None for axis in VIDEOSCIENCE_AXES},
        )
        for (name, maker), of in sorted(given.items())
    ]


def read_jsonl(path: Path) -> list[HumanScore]:
    """JSON Lines ``{"video", "prompt", "scores": {axis: number, null, or one per rater}}``, for any other data.

    Raises ``ValueError`` naming the line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            raters = {axis: value if isinstance(value, list) else [value] for axis, value in row["scores"].items()}
            video, prompt = str(row["video"]), str(row["prompt"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: expected video, prompt and scores: {error}") from error
        kept = {axis: [_number(one, where) for one in values if one is not None] for axis, values in raters.items()}
        rows.append(HumanScore(video, prompt, {a: sum(v) / len(v) if v else None for a, v in kept.items()}))
    if not rows:
        raise ValueError(f"{path}: holds no scores")
    return rows


def find_videos(rows: Sequence[HumanScore], folder: Path) -> list[Path | None]:
    """The file of each row below ``folder``: at its path, or else the only one of its name; None where there is none.

    Raises ``ValueError`` where several files fit, and where none of all rows is there.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if is_video_file(file):
            by_name[_plain(file.name)].append(file)
    found: list[Path | None] = []
    for row in rows:
        if (folder / row.video).is_file():
            found.append(folder / row.video)
            continue
        fitting = by_name.get(_plain(Path(row.video).name), []) if "/" not in row.video else []
        if len(fitting) > 1:
            raise ValueError(f"{row.video}: several files fit, {fitting[0]} and {fitting[1]}")
        found.append(fitting[0] if fitting else None)
    if not any(found):
        raise ValueError(f"{folder}: none of the {len(rows)} scored videos is there, for example {rows[0].video}")
    return found


def _plain(name: str) -> str:
    """TAG-Bench's own normal form of a file's name."""
    return name.replace("_videos_", "_").replace("videos_", "").replace("_video_", "_")


def _answers(node: Any, way: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if isinstance(node, dict):
        if any(key.upper() in VIDEOSCIENCE_AXES for key in node):
            yield way, node
            return
        own = tuple(str(value) for value in node.values() if isinstance(value, (str, int)))
        for key, value in node.items():
            yield from _answers(value, (*way, *own, key))
    elif isinstance(node, list):
        for value in node:
            yield from _answers(value, way)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: expected a finite number, received {value!r}")
    return float(value)
