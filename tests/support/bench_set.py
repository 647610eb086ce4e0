"""Six short videos with records: every second one is dark, and anomalous."""

import av
import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Window
from cac_align.data.records import Record, write_records


def clip(path, level, frames=8, size=32):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


@pytest.fixture()
def set_of_six(tmp_path):
    (tmp_path / "videos").mkdir()
    records = []
    for number in range(6):
        bad = number % 2 == 1
        clip(tmp_path / "videos" / f"{number}.mp4", 40 if bad else 210)
        anomalies = (Anomaly("Object Distortion", Window(0, 0.5)),) if bad else ()
        status = "abnormal" if bad else "normal"
        records.append(
            Record(f"r{number}", f"videos/{number}.mp4", f"prompt {number}", 8, 8, 32, 32, status, anomalies)
        )
    write_records(tmp_path / "records.jsonl", records)
    return tmp_path, records
