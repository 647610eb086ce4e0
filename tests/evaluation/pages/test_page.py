"""What all pages are drawn with: boxed frames are shown, windows sit where they belong, nothing
hostile gets through.
"""

import math

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.evaluation.pages.page import (
    confirmed_anomalies,
    environment,
    evenly_spaced,
    format_number,
    format_percent,
    frame_strip,
    picture_uri,
    timeline_spans,
    write_page,
)

VIDEO = Video.open(np.random.default_rng(0).integers(0, 255, (40, 24, 32, 3), dtype=np.uint8), fps=8.0)


def test_a_strip_shows_boxed_frames_then_the_window_then_the_rest_in_order():
    box = Box(0, 0, 500, 500)
    defect = Anomaly("Object Distortion", Window(1.0, 2.0), boxes={9: (box,), 13: (box, Box(1, 1, 9, 9))})
    strip = frame_strip(VIDEO, [defect], count=6)
    frames = [picture.frame for picture in strip]
    assert frames == sorted(frames) and len(frames) == 6 and {9, 13} <= set(frames)
    assert any(not picture.suspicious for picture in strip)
    assert {picture.frame: len(picture.boxes) for picture in strip if picture.boxes} == {9: 1, 13: 2}
    assert all(picture.suspicious == (1.0 <= picture.time_s <= 2.0) for picture in strip)


def test_a_box_on_a_frame_that_the_video_lacks_is_not_asked_for():
    defect = Anomaly("Object Distortion", Window(0.0, 1.0), boxes={400: (Box(0, 0, 5, 5),)})
    assert all(picture.frame < 40 for picture in frame_strip(VIDEO, [defect]))
    assert len(frame_strip(Video.open(np.zeros((1, 8, 8, 3), np.uint8), fps=8.0))) == 1


def test_a_span_lasts_to_the_end_of_its_last_frame():
    (span,) = timeline_spans(
        VIDEO, [Anomaly("Motion Anomalies", Window(1.0, 2.375)), Anomaly("Motion Anomalies", None)]
    )
    assert (span.left, span.width) == (pytest.approx(20.0), pytest.approx(30.0))  # of 5 s: from 1 to 2.375 + 1/8
    assert "1.00 to 2.38 s" in span.label


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_spread_keeps_both_ends(count):
    chosen = evenly_spaced(range(40), count)
    assert len(chosen) == min(count, 40) and len(set(chosen)) == len(chosen)
    if count > 1:
        assert (chosen[0], chosen[-1]) == (0, 39)


def test_a_missing_number_is_a_dash_and_only_confirmed_anomalies_are_shown():
    assert [format_number(value) for value in (None, math.nan, 0.12345, -1.0)] == ["–", "–", "0.123", "-1.000"]
    assert [format_percent(value) for value in (None, math.nan, 0.0, 0.666)] == ["–", "–", "0 %", "67 %"]
    defect = Anomaly("Motion Anomalies", None)
    assert confirmed_anomalies(Judgement("normal", (defect,))) == () == confirmed_anomalies(None)
    assert confirmed_anomalies(Judgement("abnormal", (defect,))) == (defect,)


def test_pictures_are_jpegs_of_the_width_asked_for():
    import base64
    import io

    import PIL.Image

    uri = picture_uri(VIDEO.frames([0]).pixels[0], 160)
    image = PIL.Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert image.format == "JPEG" and image.size == (160, 120)


def test_templates_escape_and_refuse_unknown_names(tmp_path):
    import jinja2

    made = environment().from_string("{{ text }}").render(text="<img src=x onerror=alert(1)>")
    assert made == "&lt;img src=x onerror=alert(1)&gt;"
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ missing }}").render()
    with pytest.raises(jinja2.UndefinedError):
        write_page(tmp_path / "page.html", "selection.html.jinja", title="t", self_contained=True)
    assert list(tmp_path.iterdir()) == []  # half a page is no page
