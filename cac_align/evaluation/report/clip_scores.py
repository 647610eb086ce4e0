"""Scores of clips: from a reward, or from the ledgers and selections beside them; and which of them
are comparable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cac_align.evaluation.pairing import Fault, json_rows
from cac_align.evaluation.report.clip_record import ClipRecord, existing_files
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Reward, Score

LEDGERS = "*ledger*.jsonl"
"""Names of ledgers: a copied one may be called after its folder, such as before.ledger.jsonl."""


def enter_score(clip_record: ClipRecord, score: Score, name: str) -> None:
    """Enter a score under its reward's name, and a combination's components under theirs.

    A judgement is entered only with a score that rests on it: a rejected one (for example with too
    little probability on both words) is no verdict.
    """
    # A combination without another component may still hold CaC's verdict; its raw parts are the scored components.
    if score.evidence is not None and (score.scored or "cac" in score.parts):
        clip_record.judgement = score.evidence
        clip_record.judges["cac_rate"] = _component(score.provenance, "cac") or score.provenance
    if not score.scored:
        clip_record.error = score.error
    combined = any(part.startswith("normalised/") for part in score.parts)
    for part, value in score.parts.items():
        if math.isnan(value):
            continue
        if part.startswith("normalised/"):
            clip_record.normalised[part.split("/", 1)[1]] = value
        elif part.startswith("share/"):
            clip_record.shares[part.split("/", 1)[1]] = value
        elif combined and "/" not in part:
            clip_record.values[part] = value
            clip_record.judges[part] = _component(score.provenance, part)
    if score.scored:
        key = "reward" if combined else name
        clip_record.values[key], clip_record.judges[key] = score.value, score.provenance
        clip_record.error = None
    if combined or not clip_record.provenance or clip_record.provenance.get("reward") == score.provenance.get("reward"):
        clip_record.provenance = score.provenance


def _component(provenance: Mapping[str, str], name: str) -> dict[str, str]:
    """A component's own provenance inside a combination's; empty where there is none."""
    return {key.removeprefix(f"{name}/"): value for key, value in provenance.items() if key.startswith(f"{name}/")}


def same_judge(before: ClipRecord, after: ClipRecord, key: str) -> bool:
    """Whether a value comes from the same judge on both sides: their provenances are equal."""
    return dict(before.judges.get(key, {})) == dict(after.judges.get(key, {}))


def judge_differences(before: ClipRecord, after: ClipRecord) -> dict[str, list[str]]:
    """For each value that both sides have from different judges, by its key: the provenance entries
    that differ.
    """
    found = {}
    for key in before.judges.keys() | after.judges.keys():
        if all(_has(clip_record, key) for clip_record in (before, after)) and not same_judge(before, after, key):
            first, second = before.judges.get(key, {}), after.judges.get(key, {})
            found[key] = sorted(entry for entry in {**first, **second} if first.get(entry) != second.get(entry))
    return dict(sorted(found.items()))


def _has(clip_record: ClipRecord, key: str) -> bool:
    if key == "cac_rate":
        return clip_record.judged_abnormal is not None
    return key in clip_record.values or key.removeprefix("vbench/") in clip_record.vbench


def score_with_reward(clip_records: Sequence[ClipRecord], reward: Reward) -> None:
    """Score every clip that has a prompt, each video once, in one call.

    A reward that normalises within a group then sees before and after together.
    """
    asked: dict[tuple[Path, str], list[ClipRecord]] = {}
    for clip_record in clip_records:
        if clip_record.clip.prompt is None:
            clip_record.error = "nothing says which prompt it was made from"
        else:
            asked.setdefault((clip_record.clip.path, clip_record.clip.prompt), []).append(clip_record)
    if not asked:
        return
    scores = reward([prompt for _, prompt in asked], [group[0].clip.video for group in asked.values()])
    if len(scores) != len(asked):
        raise ValueError(
            f"reward {reward.name!r} returned {len(scores)} scores for {len(asked)} videos; expected one each"
        )
    for group, score in zip(asked.values(), scores, strict=True):
        for clip_record in group:
            enter_score(clip_record, score, reward.name)


def read_ledgers(clip_records: Sequence[ClipRecord], folders: Sequence[Path], faults: list[Fault]) -> None:
    """Enter the ledgers' last score of each video, found by content and prompt; combinations after
    their components.
    """
    wanted: dict[tuple[Any, Any], list[ClipRecord]] = {}
    for clip_record in clip_records:
        wanted.setdefault((clip_record.clip.video.content_hash, clip_record.clip.prompt), []).append(clip_record)
    for path in existing_files(folders, LEDGERS):
        where = f"{path.parent.name}/{path.name}"
        try:
            ledger = Ledger(path, write=False)
        except ValueError as error:
            faults.append(Fault("unreadable line", where, str(error)))
            continue
        scored = (row for row in ledger.rows() if "score" in row)
        for row in sorted(scored, key=lambda row: row.get("kind") == "combined"):
            for clip_record in wanted.get((row.get("video_hash"), row.get("prompt")), ()):
                try:
                    enter_score(clip_record, Score.from_json(row), str(row.get("reward")))
                except (ValueError, KeyError, TypeError) as error:
                    faults.append(Fault("unreadable line", where, f"a score of {row.get('video')}: {error}"))
        faults += [Fault("unreadable line", where, fault) for fault in ledger.faults]


def read_selections(clip_records: Sequence[ClipRecord], folders: Sequence[Path]) -> None:
    """Enter the combined values of ``selection.jsonl``, for folders that came without their ledger."""
    by_name: dict[tuple[str, str | None], list[ClipRecord]] = {}
    for clip_record in clip_records:
        by_name.setdefault((clip_record.clip.path.name, clip_record.clip.prompt), []).append(clip_record)
    for path in existing_files(folders, "selection.jsonl"):
        for _, row in json_rows(path, []):  # unreadable lines were named when the folder was read
            columns = [row.get(name) or () for name in ("candidates", "scores", "errors")]
            for candidate, score, error in zip(*columns, strict=False):
                for clip_record in by_name.get((Path(str(candidate)).name, row.get("prompt")), ()):
                    if clip_record.clip.path.resolve().is_relative_to(path.parent.resolve()):
                        if isinstance(score, (int, float)):
                            clip_record.values["reward"] = float(score)
                            clip_record.judges.pop("reward", None)
                        else:
                            clip_record.error = str(error)


def distinct_provenances(clip_records: Sequence[ClipRecord]) -> list[dict[str, str]]:
    """The different provenances behind the scores, in order of appearance."""
    return [
        dict(json.loads(text))
        for text in dict.fromkeys(json.dumps(dict(r.provenance), sort_keys=True) for r in clip_records if r.provenance)
    ]
