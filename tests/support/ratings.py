"""Ratings of one person each, as records."""

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.records import Record

HUMAN, MOTION = "Human Distortion", "Motion Anomalies"


def rating(
    video,
    rater,
    bad,
    group="before",
    pair="same",
    kind=HUMAN,
    window=Window(0, 1),
    box=Box(0, 0, 500, 500),
    prompt="",
    **more,
):
    anomalies = (Anomaly(kind, window, boxes={0: (box,)}),) if bad else ()
    pair = video.split("/")[-1] if pair == "same" else pair
    status = "abnormal" if bad else "normal"
    settings = {"annotator": rater, "review": "draft", "extra": {"group": group, "pair": pair}} | more
    return Record(
        f"{group}/{video}#{rater}",
        f"{group}/{video}",
        prompt or f"prompt of {pair}",
        8,
        80,
        64,
        48,
        status,
        anomalies,
        **settings,
    )
