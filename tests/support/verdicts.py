"""Records and judgements of the bench, of a few words each."""

import math

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.data.records import Record


def anomalous(name, kind="Object Distortion", window=Window(0.0, 0.5), box=Box(0, 0, 100, 100)):
    return Record(name, f"{name}.mp4", "p", 16, 81, 64, 64, "abnormal", (Anomaly(kind, window, boxes={0: (box,)}),))


def normal(name):
    return Record(name, f"{name}.mp4", "p", 16, 81, 64, 64, "normal")


def says(status, log_odds=2.0, *anomalies):
    log_p = -math.log1p(math.exp(-log_odds))
    other = log_p - log_odds
    pair = (log_p, other) if status == "normal" else (other, log_p)
    return Judgement(status, tuple(anomalies), (), *pair)
