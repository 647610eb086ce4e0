"""The service as a Reward: the same scores as in-process, only sampled frames sent, every failure a reason, nothing hangs."""

import base64
import io
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Reward, Score
from cac_align.rewards.unified import UnifiedReward
from cac_align.serving.client import RemoteReward
from cac_align.serving.service import ServiceSettings
from cac_align.serving.video_parts import frames_part, video_from_frames
from cac_align.serving.wire import FramesPart, Limits
from cac_align.vlm.protocol import Message
from cac_align.vlm.scripted import ScriptedVlm
from cac_align.vlm.server.chat import chat_fields
from tests.support.hosting import Brightness, clip, scripted, serving


def videos(*levels, num_frames=81):
    return [Video.open(clip(level, num_frames), fps=16, name=f"level {level}") for level in levels]


def brief(url, **more):
    return RemoteReward(url, **{"timeout_s": 3.0, "retries": 1, **more})


def test_a_forked_process_never_reads_an_answer_to_its_parent():
    bright, dark = videos(240, 10, num_frames=5)
    with serving(Brightness(delay_s=0.05)) as (url, _):
        remote = RemoteReward(url)

        def scores(who, video):
            return {round(remote([f"{who} {number}"], [video])[0].value, 1) for number in range(20)}

        assert scores("before", dark) == {0.0}  # a connection is open now
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if scores("child", bright) == {0.9} else 3)
            finally:
                os._exit(4)
        seen = scores("parent", dark)
        assert os.waitpid(child, 0)[1] == 0 and seen == {0.0}


def test_it_is_a_reward_and_scores_like_the_reward_behind_it():
    reward, both = scripted(), videos(240, 90)
    with serving(reward) as (url, _):
        remote = RemoteReward(url)
        assert isinstance(remote, Reward) and remote.name == "unified+cac"
        far = remote(["a", "b"], both)
        assert dict(remote.provenance) == {**reward.provenance, "wire": "jpeg quality 90"}
    near = reward(["a", "b"], both)
    # bright: (0.75 + 0.9) / 2; dark: (0.75 + 0.1) / 2
    assert (
        [score.value for score in far]
        == [score.value for score in near]
        == [pytest.approx(0.825), pytest.approx(0.425)]
    )
    assert far[1].evidence == near[1].evidence and far[1].evidence.turns[1].frames == (4, 6, 8)
    for one, other in zip(far, near, strict=True):
        assert one.parts == pytest.approx(other.parts, nan_ok=True)


@pytest.mark.parametrize("fps", [16.0, 24.0, 30.0, 12.5])
def test_the_plan_covers_turn_two_at_any_rate_of_the_source(fps):
    reward = scripted()
    with serving(reward) as (url, _):
        video = Video.open(clip(90, 61), fps=fps)
        (score,) = RemoteReward(url, "cac")(["dark"], [video])
    assert score.scored and score.evidence.status == "abnormal"
    assert score.evidence.turns[1].frames == reward.components["cac"](["dark"], [video])[0].evidence.turns[1].frames


class EveryFrame(CaC):
    """Looks like CaC, whose frames are known, but asks for every frame: the plan is wrong."""

    def __call__(self, prompts, videos):
        return [self.one(video) for video in videos]

    def one(self, video):
        try:
            return Score(float(video.frames(range(len(video))).pixels.mean() / 255))
        except ValueError as error:
            return Score.missing(str(error))


def test_a_wrong_plan_costs_a_second_request_and_changes_no_score():
    reward = EveryFrame(ScriptedVlm([]))
    with serving(reward) as (url, _):
        remote = RemoteReward(url)
        far = remote(["a", "b"], videos(200, 100)) + remote(["c"], videos(150))
        posts = (
            httpx.get(f"{url}/metrics")
            .text.split('cac_align_requests_total{path="/v1/score",status="200"} ')[1]
            .split()[0]
        )
    # flat grey survives JPEG, so the mean over all 81 frames, level - 40, is exact
    assert [round(score.value * 255, 3) for score in far] == [160, 60, 110]
    assert (
        4 <= float(posts) <= 5
    )  # after the first "missing_frames" everything is sent at once; the two of the first call may overlap


def test_a_reward_of_another_kind_gets_all_frames():
    class Last(Brightness):
        def one(self, prompt, video):
            return Score(float(video.frames([len(video) - 2]).pixels.mean() / 255))

    with serving(Last()) as (url, _):
        assert round(RemoteReward(url)(["a"], videos(200))[0].value * 255) == 121


def test_components_are_asked_by_name():
    with serving(scripted()) as (url, _):
        assert RemoteReward(url, "cac")(["p"], videos(240))[0].value == pytest.approx(0.9)
        assert RemoteReward(url, "unified")(["p"], videos(240))[0].value == pytest.approx(0.75)
        with pytest.raises(ValueError, match="serves unified\\+cac, unified, cac; received reward 'vbench'"):
            RemoteReward(url, "vbench")(["p"], videos(240))


def test_files_travel_as_files_or_paths(tmp_path):
    path = tmp_path / "clip.mp4"
    write_mp4(path, clip(200, 17, 64, 64), fps=16)
    video = Video.open(path)
    with serving(Brightness(), ServiceSettings(roots=(tmp_path,))) as (url, _):
        values = [RemoteReward(url, send=send)(["p"], [video])[0].value for send in ("frames", "file", "path")]
        assert values[1] == values[2] == pytest.approx(values[0], abs=0.01)
        slow = Video.open(path, fps=4)  # another clock: all 17 frames are 4-fps frames
        assert RemoteReward(url, send="path")(["p"], [slow])[0].parts["frames"] == 17
    with serving(Brightness()) as (url, _):
        assert "roots" in RemoteReward(url, send="path")(["p"], [video])[0].error


def test_animated_webp_travels_as_a_file_and_a_folder_of_images_as_frames(tmp_path):
    images = [Image.fromarray(frame) for frame in np.random.default_rng(3).integers(0, 256, (9, 48, 64, 3), np.uint8)]
    images[0].save(tmp_path / "clip.webp", save_all=True, append_images=images[1:], duration=50, lossless=True)
    (tmp_path / "clip").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "clip" / f"{number}.png")
    webp, folder = Video.open(tmp_path / "clip.webp"), Video.open(tmp_path / "clip", fps=20)
    expected = Brightness()(["p"], [webp])[0].value
    with serving(Brightness(), ServiceSettings(roots=(tmp_path,))) as (url, _):
        for send in ("frames", "file", "path"):
            scores = RemoteReward(url, send=send)(["p", "p"], [webp, folder])
            assert [score.value for score in scores] == pytest.approx([expected] * 2, abs=0.002)


def test_a_failure_touches_its_own_video_only(tmp_path):
    gone = tmp_path / "gone.mp4"
    write_mp4(gone, clip(200, 17, 64, 64), fps=16)
    vanished = Video.open(gone)
    gone.unlink()
    with serving(Brightness()) as (url, _):
        scores = RemoteReward(url)(["a", "unscorable", "explode", "b"], [*videos(200, 200, 200), vanished])
    assert [score.scored for score in scores] == [True, False, False, False]
    assert scores[1].error == "told not to" and "broke" in scores[2].error and "not sent" in scores[3].error


def test_overload_is_waited_out():
    reward = Brightness(delay_s=0.05)
    with serving(reward, ServiceSettings(batch_size=2, limits=Limits(max_queued=3))) as (url, _):
        scores = RemoteReward(url, in_flight=12, timeout_s=30, retries=20)(
            ["p"] * 12, videos(*range(100, 220, 10), num_frames=9)
        )
    assert [round(score.value * 255) for score in scores] == [
        level - 4 for level in range(100, 220, 10)
    ]  # frames 0, 4, 8


def test_wrong_use_is_a_typed_error():
    with serving(Brightness(), ServiceSettings(token="s3cret")) as (url, _):
        with pytest.raises(ValueError, match="pass token="):
            brief(url, token="wrong", reward="brightness")(["p"], videos(200))
        assert brief(url, token="s3cret")(["p"], videos(200))[0].scored
    with pytest.raises(ValueError, match="one prompt per video"):
        brief(url)(["p", "q"], videos(200))
    for wrong in ({"url": "host:1"}, {"timeout_s": 0}, {"send": "pickle"}, {"quality": 0}, {"in_flight": 0}):
        with pytest.raises(ValueError, match="received"):
            RemoteReward(**{"url": "http://h", **wrong})
    assert brief("http://127.0.0.1:9")([], []) == []


def test_it_pickles_and_threads_share_it():
    with serving(Brightness()) as (url, _):
        remote = pickle.loads(pickle.dumps(RemoteReward(url, timeout_s=9.0)))
        assert remote.timeout_s == 9.0
        with ThreadPoolExecutor(8) as pool:
            values = list(pool.map(lambda level: remote(["p"], videos(level))[0].value, range(100, 180, 10)))
    assert values == sorted(values) and len(set(values)) == 8


def test_it_works_behind_a_ledger(tmp_path):
    reward = Brightness()
    with serving(reward) as (url, _):
        kept = cached(RemoteReward(url), Ledger(tmp_path / "ledger.jsonl"))
        first = kept(["p"], videos(200))
        assert kept(["p"], videos(200)) == first and len(reward.batches) == 1


# ---- the other side misbehaves -----------------------------------------------------------------------------------------

HEALTH = b'{"status": "ok", "rewards": {"brightness": ["ready"]}, "default": "brightness", "provenances": {"brightness": {}}}'


@contextmanager
def impostor(answer):
    """An HTTP server whose POSTs are answered by ``answer(handler, how many POSTs came before)``; /health is a good one."""
    calls = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def send(self, code, body, **headers):
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.send(200, HEALTH)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            calls.append(time.monotonic())
            answer(self, len(calls) - 1)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", calls
    finally:
        server.shutdown()
        server.server_close()


GOOD = (
    b'{"scores": [{"score": 0.5, "parts": {}, "judgement": null, "error": null, "provenance": {}}], "provenance": {}}'
)


@pytest.mark.parametrize("status", [204, 304])
def test_the_body_of_a_reply_without_one_is_not_read_as_the_next_answer(status):
    with impostor(lambda handler, before: handler.send(200 if before else status, GOOD)) as (url, _):
        reward = brief(url, retries=0)
        scores = [reward(["p"], videos(200))[0] for _ in range(3)]
    assert [score.scored for score in scores] == [False, True, True] and f"HTTP {status}" in scores[0].error


def test_a_service_that_is_down_gives_a_reason():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (score,) = brief(f"http://127.0.0.1:{port}")(["p"], videos(200))
    assert not score.scored and "gave up after 2 tries: ConnectError" in score.error


def test_a_service_that_accepts_and_stays_silent_costs_no_more_than_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        (score,) = brief(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5, retries=9)(["p"], videos(200))
        assert not score.scored and "timed out after 0.5 s" in score.error
        assert time.monotonic() - started < 5


def test_a_service_that_drips_its_answer_is_cut_off():
    def drip(handler, _):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            pass
        handler.close_connection = True

    with impostor(drip) as (url, _):
        started = time.monotonic()
        (score,) = brief(url, timeout_s=0.6, retries=3)(["p"], videos(200))
        assert not score.scored and "timed out after 0.6 s" in score.error
        assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b"[]",
        b'{"scores": [], "provenance": {}}',
        GOOD.replace(b"0.5", b"NaN"),
        GOOD.replace(b"0.5", b'"high"'),
        GOOD.replace(b"0.5", b"null"),
        GOOD.replace(b'"error": null', b'"error": "but"'),
        GOOD.replace(b'"judgement": null', b'"judgement": {"status": 3}'),
        b"\xff\xfe",
    ],
)
def test_garbage_is_never_a_score(body):
    with impostor(lambda handler, _: handler.send(200, body)) as (url, calls):
        (score,) = brief(url)(["p"], videos(200))
    assert np.isnan(score.value) and "answered what is no score" in score.error and len(calls) == 1


def test_trouble_that_passes_is_retried_and_asked_to_wait():
    def shaky(handler, before):
        if before == 0:
            handler.send(429, b"busy", Retry_After="1")
        elif before == 1:
            handler.connection.shutdown(socket.SHUT_RDWR)  # dies in the middle of a request
            handler.close_connection = True
        else:
            handler.send(200, GOOD)

    with impostor(shaky) as (url, calls):
        (score,) = brief(url, timeout_s=20, retries=3)(["p"], videos(200))
    assert score.value == 0.5 and len(calls) == 3
    assert calls[1] - calls[0] >= 1.0  # it was told to wait a second


def test_what_does_not_pass_is_not_retried():
    with impostor(lambda handler, _: handler.send(413, b"too large")) as (url, calls):
        (score,) = brief(url, retries=5)(["p"], videos(200))
    assert "HTTP 413: too large" in score.error and len(calls) == 1


def test_another_reward_behind_the_same_address_is_noticed():
    other = GOOD.removesuffix(b"{}}") + b'{"model": "new"}}'
    with impostor(lambda handler, _: handler.send(200, other)) as (url, _):
        (score,) = brief(url)(["p"], videos(200))
    assert "another reward than when this run began" in score.error


# ---- sent frames are decoded only when somebody looks ---------------------------------------------------------------


def noisy(num_frames=5, height=64, width=64, kind="JPEG", mode="RGB", **options):
    """A FramesPart of noise, every frame encoded by Pillow; and the encoded images."""
    images = []
    for pixels in np.random.default_rng(7).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8):
        out = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(out, kind, **options)
        images.append(out.getvalue())
    times_s = tuple(n / 16 for n in range(num_frames))
    return FramesPart(fps=16, times_s=times_s, indices=tuple(range(num_frames)), images=tuple(images)), images


def test_sent_frames_are_decoded_on_first_use_and_once():
    part, images = noisy()
    frames = pickle.loads(pickle.dumps(video_from_frames(part, Limits()).frames((0, 2, 4))))
    assert frames.shape == (3, 64, 64, 3) and len(frames) == 3 and "times_s" in repr(frames)
    assert frames.encoded == (images[0], images[2], images[4]) and "pixels" not in vars(frames)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(images[n]))) for n in (0, 2, 4)])
    assert np.array_equal(frames.pixels, expected) and frames.pixels is frames.pixels
    # other pixels: what had arrived must not be sent in their place
    other = replace(frames, pixels=255 - expected)
    assert other.encoded is None and np.array_equal(other.pixels, 255 - expected) and other.indices == (0, 2, 4)
    with pytest.raises(AttributeError, match="'Frames' object has no attribute 'pixel'"):
        _ = frames.pixel


def test_jpegs_reach_a_remote_judge_as_they_came():
    part, images = noisy()
    frames = video_from_frames(part, Limits()).frames((0, 1))
    sent = chat_fields((Message("user", "look", frames, as_images=True),), as_video=False, quality=20)["messages"][0][
        "content"
    ]
    urls = [item["image_url"]["url"].removeprefix("data:image/jpeg;base64,") for item in sent[:2]]
    assert [base64.b64decode(url) for url in urls] == images[:2] and "pixels" not in vars(frames)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees": some readers do, some do not
    return exif


@pytest.mark.parametrize("how", [{"kind": "PNG"}, {"mode": "L"}, {"exif": turned()}], ids=["png", "grey", "turned"])
def test_what_two_readers_may_see_differently_is_decoded_here(how):
    part, images = noisy(**how)
    frames = video_from_frames(part, Limits()).frames((1,))
    assert frames.encoded is None
    assert np.array_equal(frames.pixels[0], np.asarray(Image.open(io.BytesIO(images[1])).convert("RGB")))


def test_a_frame_of_another_size_is_named_on_arrival():
    part, images = noisy()
    _, small = noisy(height=32)
    with pytest.raises(ValueError, match="frame 3 is 32×64 px"):
        video_from_frames(replace(part, images=(*images[:3], small[3], images[4])), Limits())


def cut_short(part):
    """The same with frame 4 cut in the middle: its header is intact."""
    images = [*part.images[:4], part.images[4][: len(part.images[4]) // 2], *part.images[5:]]
    return replace(part, images=tuple(images))


class Exchanged(Brightness):
    """A reward whose server names another checkpoint from one reading of the provenance to the next, as ``served`` lists them."""

    def __init__(self, *served):
        super().__init__()
        self.served = list(served)

    @property
    def provenance(self):
        return {"reward": "brightness", "vlm/served": self.served.pop(0) if len(self.served) > 1 else self.served[0]}


def test_a_service_that_is_up_before_its_judge_is_known_once_the_judge_is():
    reward = Exchanged("unreachable")
    with serving(reward) as (url, _):
        remote = RemoteReward(url)
        assert remote.health().provenances["brightness"]["vlm/served"] == "unreachable"
        with pytest.raises(ValueError, match="cannot be asked which checkpoint it runs"):
            _ = remote.provenance
        reward.served = ["one"]
        assert remote.health().provenances["brightness"]["vlm/served"] == remote.provenance["vlm/served"] == "one"
        (score,) = remote(["a"], videos(200))
        assert score.scored and score.provenance["vlm/served"] == "one"
        reward.served = ["two"]
        (score,) = remote(["b"], videos(200))
        assert not score.scored and "another reward than when this run began" in score.error


def test_a_judge_that_was_exchanged_while_it_scored_gives_no_score():
    def read(*served):
        reward = Exchanged("one")
        with serving(reward) as (url, _):
            remote = RemoteReward(url)
            assert remote.provenance["vlm/served"] == "one"
            reward.served = list(served)  # read before judging, for the score itself, and after judging
            return remote(["a"], videos(200))[0]

    assert read("one", "one", "one").scored
    assert (
        read("unreachable", "one", "one").scored and read("one", "one", "two").scored
    )  # the score's own says who it was
    assert "another reward than when this run began" in read("one", "two", "two").error
    assert "the judge was exchanged while it scored" in read("one", "three", "two").error


def test_the_provenance_says_at_which_quality_pixels_travel_however_files_do():
    with serving(Brightness()) as (url, _):
        wires = {
            RemoteReward(url, send=send, quality=q).provenance["wire"]
            for send in ("frames", "file", "path")
            for q in (50, 90)
        }
    assert len(wires) == 6 and "file, pixels as jpeg quality 50" in wires


def test_a_damaged_body_is_its_own_videos_missing_score():
    intact, _ = noisy(17)
    damaged = video_from_frames(cut_short(intact), Limits())
    clips = [video_from_frames(intact, Limits()), damaged, Video.open(clip(200), fps=16)]
    assert damaged.sample(4).encoded is None

    def script(conversation):
        assert conversation[-1].frames.pixels.size
        return '{"COT": "x", "status": "normal", "anomalies": []}'

    calls = []
    vlm = ScriptedVlm(lambda conversation: calls.append(1) or script(conversation))
    scores = CaC(vlm)(["a", "b", "c"], clips)
    assert [score.scored for score in scores] == [True, False, True] and len(
        calls
    ) == 3  # one batch, nothing asked again
    assert "video: frame 4 is not a readable JPEG or PNG" in scores[1].error
    axes = "Alignment Score (1-5): 3\nPhysics Score (1-5): 3\nStyle Score (1-5): 3"
    unified = UnifiedReward(ScriptedVlm(lambda conversation: axes if script(conversation) else ""))
    scores = unified(["a", "b", "c"], clips)
    assert [score.scored for score in scores] == [True, False, True] and "frame 4" in scores[1].error


def test_two_videos_in_flight_do_not_share_what_was_sent():
    one, other = Video.open(clip(200), fps=16), Video.open(clip(90), fps=16)
    first, second = (video_from_frames(frames_part(video, (0, 4)), Limits()).frames((0, 4)) for video in (one, other))
    assert first.pixels[0, 0, 0, 0] == 200 and second.pixels[0, 0, 0, 0] == 90


# ---- what a score has to agree with ---------------------------------------------------------------------------------


class Beyond(Brightness):
    """States bounds and does not keep them."""

    def one(self, prompt, video):
        return Score(7.5, {}, None, None, self.provenance)


def test_a_score_outside_the_bounds_that_health_publishes_is_missing():
    with serving(Beyond()) as (url, _):
        remote = RemoteReward(url)
        assert remote.health().bounds == {"brightness": (0.0, 1.0)}
        (score,) = remote(["p"], videos(200))
    assert not score.scored and "7.5 lies outside the reward's bounds (0.0, 1.0)" in score.error


class Inflated:
    """A combination whose value is not that of its own parts."""

    name, bounds = "unified+cac", (0.0, 1.0)

    def __init__(self):
        self.whole = scripted()

    @property
    def provenance(self):
        return self.whole.provenance

    def __call__(self, prompts, videos):
        return [replace(score, value=score.value + 0.1) for score in self.whole(prompts, videos)]


def test_a_whole_that_is_not_the_mean_of_its_parts_is_missing():
    with serving(Inflated()) as (url, _):
        (score,) = RemoteReward(url)(["p"], videos(240, num_frames=17))
    assert not score.scored and "0.925 is not the weighted mean 0.825" in score.error
    with serving(scripted()) as (url, _):
        assert RemoteReward(url)(["p"], videos(240, num_frames=17))[0].value == pytest.approx(0.825)


# ---- a host's environment -------------------------------------------------------------------------------------------

HOST_ENVIRONMENT = """
import sys
BLOCKED = {"pydantic", "jaxtyping", "torch", "transformers", "omegaconf", "fastapi", "scipy", "decord", "av"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(name + " is not in this environment")
sys.meta_path.insert(0, Block())
import numpy as np
import cac_align.plugins.verl_omni, cac_align.plugins.flow_grpo, cac_align.plugins.videoalign, cac_align.plugins.trl
from cac_align.plugins.common.host import HostOptions, host_reward
clip = np.full((17, 32, 48, 3), 240, np.uint8)
options = HostOptions(reward=sys.argv[1], ledger=sys.argv[2])
reward = host_reward(options, "test")
print(*reward.values(["p", "p"], [clip, clip[:, ::2]]), sep="\\n")
"""


@pytest.mark.parametrize("python", [sys.executable, os.environ.get("CLIENT_PYTHON", "")])
def test_the_client_needs_numpy_pillow_and_httpx_only(tmp_path, python):
    """CLIENT_PYTHON: an interpreter, e.g. of Python 3.10, that has these three and nothing else."""
    if not python:
        pytest.skip("CLIENT_PYTHON names no interpreter")
    ledger = tmp_path / "ledger.jsonl"
    with serving(scripted()) as (url, _):
        done = subprocess.run(
            [python, "-c", HOST_ENVIRONMENT, url, str(ledger)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == pytest.approx([0.825, 0.825])
    assert Ledger(ledger).num_scores == 2
