"""Clip records and comparisons of a report, made from facts that a test states."""

import numpy as np

from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.evaluation.pairing import FolderClip, Pair, Pairing
from cac_align.evaluation.report.clip_record import ClipRecord
from cac_align.evaluation.report.comparison import compare_pairs

VIDEO = Video.open(np.zeros((4, 8, 8, 3), np.uint8), fps=8.0)
DEFECT = (Anomaly("Object Distortion", Window(0.0, 0.1)),)


def clip_record(
    group, number, *, abnormal=None, raters=None, luminance_change=0.02, prompt=None, judges=None, **values
):
    prompt = prompt or f"prompt {number}"
    made = ClipRecord(
        FolderClip(None, f"{number}.mp4", group, VIDEO, prompt, 0),
        values=values,
        luminance_change=luminance_change,
        judges=judges or {},
    )
    if abnormal is not None:
        made.judgement = Judgement("abnormal" if abnormal else "normal", DEFECT if abnormal else ())
    for rater, said in (raters or {}).items():
        status, anomalies = ("abnormal", DEFECT) if said else ("normal", ())
        made.ratings.append(Record("id", "v", "p", 8.0, 4, 8, 8, status, anomalies, rater, "draft"))
    return made


def comparison(before, after, n=24):
    """before, after: functions of the pair's number that give the clip_record's facts."""
    clip_records, pairs = [], []
    for number in range(n):
        two = clip_record("before", number, **before(number)), clip_record("after", number, **after(number))
        clip_records += two
        pairs.append(Pair(f"{number}", two[0].clip, two[1].clip, "file name"))
    return compare_pairs(Pairing("before", "after", tuple(pairs), (), ()), clip_records)


def said(made, words):
    return [sentence for sentence in made.warnings if words in sentence]
