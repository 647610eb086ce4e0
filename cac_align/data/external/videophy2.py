"""VideoPhy-2 (arXiv 2503.06800, MIT) as records without times or boxes: people's judgements of
physics.

Normal means: physical commonsense of at least 4 of 5 (the benchmark's own pass mark) and no rule
seen violated. A video rated below 4 without a named rule is abnormal, with the rating as its
reason. List columns are strings with Python literals, not JSON.
"""

from __future__ import annotations

import ast
import csv
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from cac_align.core.judgement import Anomaly
from cac_align.data.external import check_fields, open_or_reason, record_of
from cac_align.data.records import LoadedRecords, Record, loaded_records

PASS = 4
REQUIRED = ("caption", "video_url", "sa", "pc")
RULE_COLUMNS = (
    "physics_rules_followed",
    "physics_rules_unfollowed",
    "physics_rules_cannot_be_determined",
    "human_violated_rules",
)
OPTIONAL = (
    *RULE_COLUMNS,
    "joint",
    "action",
    "category",
    "is_hard",
    "metadata_rules",
    "upsampled_caption",
    "model_name",
    "local_path",
)

_UNVERIFIED = (
    "Columns follow the data set's card; the rows themselves were not seen. `local_path` is added by common "
    "download scripts.",
    "The file name of a video is taken from its URL's last part; two URLs with one name are an error.",
    "Whether a rule that people wrote themselves (human_violated_rules) was also visible to other raters is unknown.",
)


def load(path: str | Path, *, videos: str | Path) -> LoadedRecords:
    """Read the CSV. videos: the folder of the files, called by ``local_path`` or the last part of
    ``video_url``.

    Raises ``ValueError`` for an unknown column, a rating outside 1-5, a list that is no Python
    literal, or a ``joint`` that contradicts its ratings (a sign of shifted columns).
    """
    records: list[Record] = []
    left_out: dict[str, str] = {}
    names: dict[str, str] = {}
    with open(path, newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            where = f"{path}:{number}"
            if None in row:
                raise ValueError(f"{where}: more cells than columns: {row[None]}")
            check_fields(row, required=REQUIRED, optional=OPTIONAL, where=where)
            name = row.get("local_path") or unquote(PurePosixPath(urlparse(row["video_url"]).path).name)
            if names.setdefault(name, row["video_url"]) != row["video_url"] or name in left_out or not name:
                raise ValueError(f"{where}: the video name {name!r} stands for two URLs; add a local_path column")
            sa, pc = (_rating(row, key, where) for key in ("sa", "pc"))
            if row.get("joint") and _flag(row["joint"], where) != (sa >= PASS and pc >= PASS):
                raise ValueError(
                    f"{where}: joint={row['joint']} contradicts sa={sa}, pc={pc}; are the columns shifted?"
                )
            rules = {key: _rules(row.get(key, ""), key, where) for key in RULE_COLUMNS}
            violated = [*rules["physics_rules_unfollowed"], *rules["human_violated_rules"]]
            if pc < PASS and not violated:
                violated = [f"physical commonsense rated {pc} of 5, no rule named"]
            video = open_or_reason(Path(videos) / name)
            if isinstance(video, str):
                left_out[name] = video
                continue
            records.append(
                record_of(
                    video,
                    id=name,
                    prompt=row["caption"],
                    anomalies=tuple(Anomaly("Physical Violations", None, rule) for rule in violated),
                    annotator="VideoPhy-2",
                    extra={"sa": sa, "pc": pc, "joint": sa >= PASS and pc >= PASS}
                    | {key: row[key] for key in ("model_name", "is_hard", "category") if row.get(key)},
                )
            )
    return loaded_records(records, left_out, str(path), _UNVERIFIED)


def _rating(row: dict[str, Any], key: str, where: str) -> int:
    try:
        value = float(row[key])
    except ValueError:
        value = 0
    if value not in (1, 2, 3, 4, 5):
        raise ValueError(f"{where}: {key} must be a whole rating from 1 to 5, received {row[key]!r}")
    return int(value)


def _flag(text: str, where: str) -> bool:
    table = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    if text.strip().lower() not in table:
        raise ValueError(f"{where}: joint must be 0 or 1, received {text!r}")
    return table[text.strip().lower()]


def _rules(text: str, key: str, where: str) -> list[str]:
    """A list column. Empty and "nan" (an empty pandas cell) mean no rule."""
    if text is None or text.strip().lower() in ("", "nan", "none"):
        return []
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{where}: {key} must be a Python list literal such as ['a rule'], received {text[:60]!r}"
        ) from error
    if not isinstance(value, (list, tuple)) or not all(isinstance(rule, str) for rule in value):
        raise ValueError(f"{where}: {key} must be a list of strings, received {text[:60]!r}")
    return [rule.strip() for rule in value if rule.strip()]
