"""The service judges a video once, however many requests wait for it: a client that gave up asks again and joins itself."""

import threading
import time

import httpx
import pytest

from cac_align.core.video import Video
from cac_align.rewards.reward import Score
from cac_align.serving.batcher import Batcher
from cac_align.serving.service import ServiceSettings
from cac_align.serving.video_parts import frames_part
from cac_align.serving.wire import message_to_json
from tests.support.hosting import Brightness, clip, occupied, serving


def frames_item(prompt, level=200, indices=tuple(range(17))):
    part = frames_part(Video.open(clip(level), fps=16), indices)
    return {"prompt": prompt, "video": message_to_json(part)}


def ask(url, item, timeout_s=20.0):
    return httpx.post(f"{url}/v1/score", json={"items": [item]}, timeout=timeout_s).json()["scores"][0]


def test_a_client_that_gives_up_and_asks_again_joins_its_own_request():
    reward = Brightness(delay_s=1.0)
    with (
        serving(reward, ServiceSettings(batch_size=1)) as (url, _),
        occupied(reward, lambda: ask(url, frames_item("first"))),
    ):
        item = frames_item("same")
        for _ in range(3):
            with pytest.raises(httpx.TimeoutException):
                ask(url, item, timeout_s=0.15)
        score = ask(url, item)["score"]
        assert score * 255 == pytest.approx(192, abs=1)  # the mean of frames 0, 4, 8, 12, 16
        other = ask(url, frames_item("same", level=100))["score"]
        assert other * 255 == pytest.approx(92, abs=1)
    assert reward.batches == [["first"], ["same"], ["same"]]  # each of the two videos once


def test_a_request_that_joins_another_gets_its_missing_frames_as_well():
    reward = Brightness(delay_s=0.3)
    with serving(reward) as (url, _):
        answers = []
        item = frames_item("a ball", indices=(0, 4, 8, 12))
        threads = [threading.Thread(target=lambda: answers.append(ask(url, item))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [(answer["score"], answer["missing_frames"]) for answer in answers] == [(None, [16])] * 3
    assert sum(len(batch) for batch in reward.batches) == 1


def test_a_score_that_breaks_the_contract_is_its_own_videos_error_over_http():
    broken = Score(0.5)
    object.__setattr__(broken, "parts", {"a": object()})

    class ThirdParty(Brightness):
        def one(self, prompt, video):
            return broken if prompt == "broken" else super().one(prompt, video)

    with serving(ThirdParty()) as (url, _):
        items = [frames_item("broken"), frames_item("good")]
        answer = httpx.post(f"{url}/v1/score", json={"items": items}, timeout=20)
    assert answer.status_code == 200
    bad, good = answer.json()["scores"]
    assert bad["score"] is None and "parts are no mapping" in bad["error"]
    assert good["score"] * 255 == pytest.approx(192, abs=1)


def test_only_a_video_that_nobody_waits_for_leaves_the_queue():
    reward = Brightness(delay_s=0.3)
    scoring = Batcher({"brightness": reward}, batch_size=1)
    videos = [Video.open(clip(level), fps=16) for level in (210, 110, 60)]
    (first,) = scoring.submit("brightness", ["a"], videos[:1])
    while not reward.batches:
        time.sleep(0.005)
    dropped, kept = scoring.submit("brightness", ["b", "c"], videos[1:])
    joined, again = scoring.submit(
        "brightness", ["c", "b"], [Video.open(clip(60), fps=16), Video.open(clip(110), fps=16)]
    )
    assert scoring.queued == 2
    for future in (dropped, again, kept):
        assert future.cancel()
    assert first.result(5)[0].value == pytest.approx(202 / 255)
    score, video = joined.result(5)
    assert score.value == pytest.approx(52 / 255) and video is videos[2]
    assert reward.batches == [["a"], ["c"]] and scoring.close(5)
