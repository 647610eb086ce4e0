"""Collect what is known of the clips of a pairing, from a reward or from the files that earlier
commands left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cac_align.evaluation.pairing import Fault, FolderClip, Pairing
from cac_align.evaluation.report.clip_ratings import add_ratings
from cac_align.evaluation.report.clip_record import ClipRecord
from cac_align.evaluation.report.clip_scores import LEDGERS, read_ledgers, read_selections, score_with_reward
from cac_align.evaluation.report.clip_vbench import add_vbench
from cac_align.evaluation.vbench.run import VBenchRow
from cac_align.rewards.reward import Reward

NO_SCORES = "no scores"
"""The kind of the fault that says where scores were looked for, where there is none at all."""


def collect_clip_records(
    pairing: Pairing,
    folders: Sequence[Path],
    *,
    reward: Reward | None = None,
    ratings: Sequence[Path] = (),
    vbench: Sequence[VBenchRow] | None = None,
    faults: list[Fault],
) -> list[ClipRecord]:
    """One ``ClipRecord`` per clip, before and after of each pair in turn, without the luminance
    change.

    folders: where stored scores, ratings and VBench rows are looked for: in them, one folder up, in
        their common parent, and beside the clips.
    reward: scores every clip that has a prompt. None: the scores of the ledgers and selections
        found.
    ratings: record files, besides the folders' own ``ratings*.jsonl``; they are read last.
    vbench: rows. None: the ``vbench.jsonl`` files found.
    faults: receives what could not be used.

    Raises ``ValueError`` for a named ratings file without a rating.
    """
    clip_records = [ClipRecord(clip) for clip in clips_in_order(pairing)]
    folders = _places(clip_records, folders)
    if reward is None:
        read_selections(clip_records, folders)
        read_ledgers(clip_records, folders, faults)
        if not any(clip_record.scored or clip_record.error for clip_record in clip_records):
            looked = ", ".join(map(str, folders))
            why = (
                f"no {LEDGERS} or selection.jsonl with a score of these videos; looked in {looked}. Copy the ledger "
                "of the run beside the folder, or score the videos with --reward"
            )
            faults.append(Fault(NO_SCORES, pairing.before + ", " + pairing.after, why))
    else:
        score_with_reward(clip_records, reward)
    for clip_record in clip_records:
        if not clip_record.scored and clip_record.error:
            faults.append(Fault("no score", f"{clip_record.clip.group}/{clip_record.clip.name}", clip_record.error))
    add_ratings(clip_records, pairing, folders, ratings, faults)
    add_vbench(clip_records, folders, vbench, faults)
    return clip_records


def clips_in_order(pairing: Pairing) -> list[FolderClip]:
    """The clips of all pairs, before and after in turn. A clip that is on both sides occurs twice."""
    return [clip for pair in pairing.pairs for clip in (pair.before, pair.after)]


def _places(clip_records: Sequence[ClipRecord], folders: Sequence[Path]) -> list[Path]:
    """The folders to look in, each once: the given ones, their parents, their common parent (where
    the rating page stores), and the clips' own.
    """
    around = [place for folder in folders for place in (folder.resolve(), folder.resolve().parent)]
    around += [Path(os.path.commonpath(around[::2]))] if around else []
    return list(dict.fromkeys([*around, *(clip_record.clip.path.parent.resolve() for clip_record in clip_records)]))
