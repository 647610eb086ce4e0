"""Messages: a packed request is the request, and a wrong one is refused."""

import httpx
import pytest

from cac_align.core.video import Video
from cac_align.serving.incoming import read_score_request
from cac_align.serving.video_parts import frames_part
from cac_align.serving.wire import PACKED, FilePart, ScoreItem, ScoreRequest, encode_message, pack, unpack
from tests.support.hosting import Brightness, clip, serving


def test_packed_bodies_round_trip_and_refuse_wrong_counts():
    video = Video.open(clip(), fps=16)
    request = ScoreRequest(
        items=(
            ScoreItem(prompt="p", video=frames_part(video, (0, 4))),
            ScoreItem(prompt="q", video=FilePart(data=b"xyz")),
        )
    )
    body = pack(request)
    assert unpack(body, read_score_request) == request
    for wrong in (b"", body[:2], body[:40], body[:-1], body + b"x", encode_message(request)):
        with pytest.raises(ValueError):
            unpack(wrong, read_score_request)
    with serving(Brightness()) as (url, _):
        refused = httpx.post(f"{url}/v1/score", content=body[:-1], headers={"Content-Type": PACKED})
        assert refused.status_code == 422 and "expected a byte count" in refused.json()["detail"][0]
