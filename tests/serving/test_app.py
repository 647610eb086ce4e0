"""The HTTP service, over real sockets with the real client library: formats, limits, back-pressure, failures, stopping."""

import base64
import io
import json
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.plugins.doctor.checks import check_options
from cac_align.rewards.cac import CaC
from cac_align.rewards.combine import combine
from cac_align.rewards.unified import UnifiedReward
from cac_align.serving.app import create_app, token_matches
from cac_align.serving.server import listening_socket, serve
from cac_align.serving.service import ServiceSettings
from cac_align.serving.video_parts import file_part, frames_part
from cac_align.serving.wire import PACKED, Limits, ScoreItem, ScoreRequest, message_to_json, pack
from cac_align.vlm.scripted import ScriptedVlm
from cac_align.vlm.server.server import ServerVlm
from tests.support.hosting import Brightness, clip, group_normalised, occupied, scripted, serving


def b64(data):
    return base64.b64encode(data).decode()


def frames_item(prompt="a ball", level=200, num_frames=17, indices=None):
    video = Video.open(clip(level, num_frames), fps=16)
    part = frames_part(video, tuple(range(num_frames)) if indices is None else indices)
    return {"prompt": prompt, "video": message_to_json(part)}


def png_frames(level=200, num_frames=5):
    frames = []
    for pixels in clip(level, num_frames):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        frames.append(b64(out.getvalue()))
    return frames


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    path = tmp_path_factory.mktemp("shared") / "clip.mp4"
    write_mp4(path, clip(200, 17, 64, 64), fps=16)
    return path


@pytest.fixture(scope="module")
def url(mp4):
    with serving(Brightness(), ServiceSettings(roots=(mp4.parent,))) as (url, _):
        yield url


def ask(url, *items, **more):
    return httpx.post(f"{url}/v1/score", json={"items": list(items), **more}, timeout=20)


def test_frames_are_scored_and_only_the_sent_ones_are_needed(url):
    whole = ask(url, frames_item()).json()["scores"][0]
    # 17 frames at 16 fps hold frames 0, 4, 8, 12, 16 at 4 fps, of brightness 200, 196, …, 184: mean 192 (JPEG keeps flat grey exactly)
    assert whole["score"] == pytest.approx(192 / 255, abs=1e-6)
    assert whole["parts"] == {"frames": 5.0} and whole["error"] is None
    sparse = ask(url, frames_item(indices=(0, 4, 8, 12, 16))).json()["scores"][0]
    assert sparse["score"] == whole["score"] and sparse["missing_frames"] == []


def test_a_frame_that_was_not_sent_is_named_and_never_replaced(url):
    result = ask(url, frames_item(indices=(0, 4, 12, 16))).json()["scores"][0]
    assert result["score"] is None and "[8] were not sent" in result["error"] and result["missing_frames"] == [8]


def test_mp4_bytes_and_shared_path_agree(url, mp4):
    by_file = {"prompt": "p", "video": {"kind": "file", "data": b64(mp4.read_bytes()), "fps": 16}}
    by_path = {"prompt": "p", "video": {"kind": "path", "path": str(mp4), "fps": 16}}
    one, two = ask(url, by_file, by_path).json()["scores"]
    assert one["score"] == two["score"] == pytest.approx(192 / 255, abs=0.02)


def test_paths_outside_the_roots_are_refused_with_one_text(url, mp4, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(mp4.read_bytes())
    link = mp4.parent / "link.mp4"
    link.symlink_to(secret)
    paths = [
        str(secret),
        str(link),
        f"{mp4.parent}/../{tmp_path.name}/secret.mp4",
        "/no/such/file.mp4",
        str(mp4.parent),
        "clip.mp4",
    ]
    answers = ask(url, *({"prompt": "p", "video": {"kind": "path", "path": path}} for path in paths)).json()["scores"]
    errors = {answer["error"].replace(path, "PATH") for answer, path in zip(answers, paths, strict=True)}
    assert [answer["score"] for answer in answers] == [None] * 6
    assert len(errors) == 1 and "not a file inside this service's roots" in errors.pop()


def test_one_bad_video_fails_alone(url, mp4):
    bad = [
        {"prompt": "p", "video": {"kind": "file", "data": "!!!"}},
        {"prompt": "p", "video": {"kind": "file", "data": b64(b"not a video")}},
        {"prompt": "p", "video": {"kind": "file", "data": b64(mp4.read_bytes()[:300])}},
        {"prompt": "unscorable", "video": frames_item()["video"]},
        {"prompt": "explode", "video": frames_item()["video"]},
    ]
    unreadable_frame = frames_item()
    unreadable_frame["video"]["images"] = unreadable_frame["video"]["images"][:-1] + [b64(b"\xff\xd8\xff")]
    other_clock = frames_item()
    other_clock["video"]["times_s"] = other_clock["video"]["times_s"][::-1]
    answers = ask(url, *bad, unreadable_frame, other_clock, frames_item("good")).json()["scores"]
    assert [answer["score"] is None for answer in answers] == [True] * 7 + [False]
    reasons = [
        "not base64",
        "",
        "",
        "told not to",
        "RuntimeError: the reward itself broke",
        "not a readable JPEG",
        "increase",
    ]
    for answer, reason in zip(answers, reasons, strict=False):
        assert answer["error"] and reason in answer["error"]


def test_wrong_messages_are_typed_errors(url):
    assert ask(url, reward="beauty").status_code == 400
    assert "offers brightness" in ask(url, reward="beauty").json()["detail"]
    wrong = httpx.post(f"{url}/v1/score", content=b"{", timeout=20)
    assert wrong.status_code == 422
    frames = {"kind": "frames", "fps": "nan", "times_s": [0], "indices": [0], "images": [""]}
    wrong = ask(url, {"prompt": "p", "video": frames})
    assert wrong.status_code == 422 and any("fps" in line for line in wrong.json()["detail"])
    assert ask(url, {"prompt": "p", "video": {"kind": "path", "path": "x", "surprise": 1}}).status_code == 422
    assert ask(url).json()["scores"] == []


def test_limits_bound_bodies_items_frames_and_pixels():
    limits = Limits(max_body_bytes=200_000, max_items=2, max_frames=16, max_pixels=36 * 36)
    with serving(Brightness(), ServiceSettings(limits=limits)) as (url, _):
        small = {"prompt": "p", "video": frames_item(num_frames=9)["video"]}
        small_video = Video.open(clip(num_frames=9, height=32, width=32), fps=16)
        fits = {"prompt": "p", "video": message_to_json(frames_part(small_video, tuple(range(9))))}
        many, wide, good = (
            ask(url, frames_item(num_frames=17), small).json()["scores"] + ask(url, fits).json()["scores"]
        )
        assert "17 frames, this service accepts 16" in many["error"]
        assert "32×48 px" in wide["error"] and good["score"] is not None
        assert ask(url, fits, fits, fits).status_code == 413
        assert httpx.post(f"{url}/v1/score", content=b" " * 200_001, timeout=20).status_code == 413
        chunks = (b" " * 50_000 for _ in range(5))  # no Content-Length: counted while it arrives
        assert httpx.post(f"{url}/v1/score", content=chunks, timeout=20).status_code == 413


@pytest.mark.parametrize(
    "limits, over, named",
    [
        ({"max_duration_s": 0.9}, {}, "at most 0.9 s"),
        ({"max_fps": 15.0}, {}, "at most 15 "),
        ({"max_decoded_pixels": 3 * 48 * 64}, {"level": 100}, f"more than {3 * 48 * 64}"),
        ({"max_frames": 16}, {}, "17 frames"),
    ],
)
@pytest.mark.parametrize("kind", ["frames", "file"])
def test_a_video_beyond_a_limit_of_its_service_is_refused_by_the_limits_name(limits, over, named, kind, tmp_path):
    """17 frames of 48 × 64 px at 16 fps last 1 s, and five of them are decoded together at 4 fps."""
    write_mp4(tmp_path / "a.mp4", clip(200, 17, 48, 64), fps=16)
    video = Video.open(tmp_path / "a.mp4")
    part = frames_part(video, tuple(range(17))) if kind == "frames" else file_part(video)
    item = {"prompt": "p", "video": message_to_json(part)}
    with serving(Brightness(), ServiceSettings(limits=Limits(**limits))) as (url, _):
        told = httpx.get(f"{url}/health", timeout=20).json()["limits"]
        (refused,) = ask(url, item).json()["scores"]
    assert told.items() >= limits.items()
    assert refused["score"] is None and named in refused["error"]
    with serving(Brightness(), ServiceSettings()) as (url, _):
        assert ask(url, item).json()["scores"][0]["score"] is not None


def test_a_broken_jpeg_in_a_packed_request_is_one_line_of_the_log_and_costs_its_own_video(url, caplog):
    video = Video.open(clip(200), fps=16)
    part = frames_part(video, tuple(range(17)))
    head, scan = part.images[4][:-40], bytes(40)
    broken = replace(part, images=(*part.images[:4], head + scan, *part.images[5:]))
    with pytest.raises(OSError):
        Image.open(io.BytesIO(head + scan)).load()  # its header can be read, its body cannot
    body = pack(ScoreRequest((ScoreItem("p", broken), ScoreItem("q", part))))
    with caplog.at_level(logging.INFO):
        answer = httpx.post(f"{url}/v1/score", content=body, headers={"Content-Type": PACKED}, timeout=20)
    bad, good = answer.json()["scores"]
    assert bad["score"] is None and "frame 4 is not a readable JPEG" in bad["error"]
    assert good["score"] == pytest.approx(192 / 255, abs=1e-6)
    told = [record for record in caplog.records if "frame 4" in record.getMessage()]
    assert told and not any(record.exc_info for record in caplog.records)
    assert all("\n" not in record.getMessage() for record in told)


def test_half_of_a_surrogate_pair_over_http_is_its_own_items_error_and_no_500(url):
    items = [frames_item("a ball \ud800 rolls"), frames_item("good")]
    body = json.dumps({"items": items}).encode()  # as the escape \\ud800, which is JSON
    answer = httpx.post(f"{url}/v1/score", content=body, timeout=20)
    assert answer.status_code in (200, 422)
    raw = body.replace(b"\\ud800", b"\xed\xa0\x80")  # as bytes that are no UTF-8
    assert raw != body and httpx.post(f"{url}/v1/score", content=raw, timeout=20).status_code == 422
    assert ask(url, frames_item("good")).json()["scores"][0]["score"] == pytest.approx(192 / 255, abs=1e-6)


def test_half_of_a_surrogate_pair_in_a_judges_text_reaches_the_client_as_a_replacement():
    text = '{"COT": "it \\ud800 melts \ud800", "status": "normal", "anomalies": []}'
    judge = CaC(ScriptedVlm(lambda _: text))
    with serving(judge, ServiceSettings()) as (url, _):
        answer = ask(url, frames_item(), frames_item("another"))
    assert answer.status_code == 200
    scores = answer.json()["scores"]
    assert [score["score"] for score in scores] == [pytest.approx(0.9)] * 2
    assert "\ufffd" in json.dumps(scores, ensure_ascii=False) and "\ud800" not in answer.text


def test_a_full_queue_answers_429_with_retry_after_and_loses_nothing():
    reward = Brightness(delay_s=0.15)
    with serving(reward, ServiceSettings(batch_size=1, limits=Limits(max_queued=2))) as (url, _):
        answers = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(ask(url, frames_item(f"ball {n}")))) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(answer.status_code for answer in answers)
        assert set(codes) == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert sum(len(batch) for batch in reward.batches) == codes.count(200)


def test_waiting_videos_are_scored_together_and_in_order():
    reward = Brightness(delay_s=0.1)
    with (
        serving(reward, ServiceSettings(batch_size=8)) as (url, _),
        occupied(reward, lambda: ask(url, frames_item("first"))),
    ):
        results = {}
        threads = [
            threading.Thread(
                target=lambda level=level: results.update({level: ask(url, frames_item(level=level)).json()})
            )
            for level in (50, 100, 150, 200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # mean of frames 0, 4, 8, 12, 16 is level - 8
        assert {level: round(answer["scores"][0]["score"] * 255) for level, answer in results.items()} == {
            level: level - 8 for level in (50, 100, 150, 200)
        }
        assert len(reward.batches) < 5


def test_a_stuck_reward_times_out_and_health_says_so():
    reward = Brightness(delay_s=1.0)
    with serving(reward, ServiceSettings(timeout_s=0.2)) as (url, _):
        answer = ask(url, frames_item()).json()["scores"][0]
        assert answer["score"] is None and "timed out: the service gave it 0.2 s" in answer["error"]
        stuck = httpx.get(f"{url}/health")
        assert stuck.status_code == 503 and stuck.json()["status"] == "stuck"


def test_stopping_finishes_what_was_accepted():
    reward = Brightness(delay_s=0.4)
    reward.lock.acquire()  # nothing is judged before all three are in
    answers = []
    with serving(reward, ServiceSettings(batch_size=1)) as (url, server):
        threads = [
            threading.Thread(target=lambda n=n: answers.append(ask(url, frames_item(f"ball {n}")))) for n in range(3)
        ]
        for thread in threads:
            thread.start()
        while "cac_align_queued_videos 2.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        reward.lock.release()
        server.should_exit = True
        for thread in threads:
            thread.join()
    assert [answer.json()["scores"][0]["score"] is not None for answer in answers] == [True] * 3


def test_a_terminated_process_answers_first_and_then_ends_well(tmp_path):
    program = "from tests.support.hosting import Brightness; from cac_align.serving.server import serve; serve(Brightness(delay_s=1.0), port=0)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, text=True)
    try:
        url = next(line for line in process.stderr if "brightness on http" in line).split(" on ")[1].strip()
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(url, frames_item())))
        thread.start()
        while httpx.get(f"{url}/metrics").text.count("cac_align_busy_seconds 0.0"):
            time.sleep(0.02)
        process.terminate()
        thread.join()
        assert answers[0].json()["scores"][0]["score"] is not None
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_health_names_rewards_components_provenances_and_plans():
    with serving(scripted()) as (url, _):
        health = httpx.get(f"{url}/health").json()
    assert health["status"] == "ok" and health["default"] == "unified+cac"
    assert health["rewards"] == {"unified+cac": ["ready"], "unified": ["ready"], "cac": ["ready"]}
    assert health["frame_plans"]["cac"] == {"scan_fps": [4.0], "look_fps": [8.0], "counts": []}
    assert health["frame_plans"]["unified+cac"]["counts"] == [16]
    assert health["provenances"]["cac"]["normalise"].startswith("range")


def test_health_is_not_ready_while_a_judges_server_is_down():
    """Two judges behind addresses where nobody listens: 503 at once, and every reward says which one is missing."""
    down = [f"http://127.0.0.1:{free_port()}/v1" for _ in range(2)]
    cac = CaC(ServerVlm(down[0], "cac", retries=0))
    unified = UnifiedReward(ServerVlm(down[1], "unified", retries=0))
    with serving(combine({"unified": unified, "cac": cac})) as (url, _):
        answer = httpx.get(f"{url}/health", timeout=30)
    health = answer.json()
    assert answer.status_code == 503 and health["status"] == "unready" and health["ready"] is False
    assert health["rewards"]["cac"] == ["unready"]
    assert down[0] in health["unready"]["cac"] and down[1] in health["unready"]["unified"]
    assert all(one in health["unready"]["unified+cac"] for one in down)


def test_doctor_fails_on_a_service_whose_judge_is_down():
    reward = CaC(ServerVlm(f"http://127.0.0.1:{free_port()}/v1", "cac", retries=0))
    with serving(reward) as (url, _):
        checks = list(check_options("r", {"reward": url, "fps": 16}, whole_groups=False))
    assert [check.ok for check in checks if check.name == "r service"] == [False]


def free_port():
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_metrics_count_requests_and_videos(url):
    before = httpx.get(f"{url}/metrics").text
    ask(url, frames_item(), frames_item("unscorable"))
    text = httpx.get(f"{url}/metrics").text

    def value(text, name):
        lines = [line.split()[-1] for line in text.splitlines() if line.startswith(name)]
        return float(lines[0]) if lines else 0.0

    for outcome in ("scored", "unscored"):
        name = f'cac_align_videos_total{{outcome="{outcome}",reward="brightness"}}'
        assert value(text, name) == value(before, name) + 1
    httpx.get(f"{url}/any/../thing")
    assert 'path="other",status="404"' in httpx.get(f"{url}/metrics").text


# ---- other wire formats ----------------------------------------------------------------------------------------------


def test_unirl_format(mp4):
    with serving(scripted(), ServiceSettings(roots=(mp4.parent,))) as (url, _):
        by_bytes = {
            "history": [{"text": "p", "video_b64": b64(mp4.read_bytes())}],
            "required_rewards": ["cac", "unified+cac"],
        }
        by_path = {
            "history": [{"text": "p", "video_path": str(mp4)}],
            "required_rewards": ["unified"],
            "metadata": None,
        }
        none = {"history": [{"text": "p", "image_b64": "AAAA"}], "required_rewards": ["cac"]}
        answer = httpx.post(f"{url}/score", json={"requests": [by_bytes, by_path, none]}, timeout=20).json()
        # bright clip: P(normal) = 0.9; UnifiedReward (4 - 1) / 4 = 0.75; their mean 0.825
        assert next(iter(answer["results"][0]["cac"].items())) == ("score", pytest.approx(0.9))
        assert answer["results"][0]["unified+cac"]["score"] == pytest.approx(0.825)
        assert answer["results"][1] == {"unified": pytest.approx(answer["results"][1]["unified"])}
        assert answer["results"][1]["unified"]["score"] == pytest.approx(0.75)
        assert all(
            math.isfinite(v) for result in answer["results"] for parts in result.values() for v in parts.values()
        )
        assert answer["results"][2] == {} and set(answer["errors"][2]) == {"cac"}
        unknown = {"history": [{"text": "p"}], "required_rewards": ["hpsv2"]}
        refused = httpx.post(f"{url}/score", json={"requests": [unknown]}, timeout=20)
        assert refused.status_code == 400 and "available: unified+cac, unified, cac" in refused.json()["detail"]
        assert httpx.post(f"{url}/score", json={"requests": []}, timeout=20).json() == {"results": [], "errors": []}


def test_flow_factory_format(url):
    body = {"prompt": ["a", "b"], "image": None, "video": [png_frames(200), png_frames(100)], "condition_images": None}
    answer = httpx.post(f"{url}/compute", json=body, timeout=20).json()
    # 5 frames at 16 fps: frames 0 and 4 at 4 fps
    assert answer["rewards"] == [pytest.approx(198 / 255), pytest.approx(98 / 255)]
    assert httpx.post(f"{url}/reward/brightness/compute", json=body, timeout=20).json() == answer
    failed = httpx.post(f"{url}/compute", json={**body, "prompt": ["a", "unscorable"]}, timeout=20)
    assert failed.status_code == 200 and failed.json() == {"rewards": None, "error": "policy raise: told not to"}
    assert "no video sent" in httpx.post(f"{url}/compute", json={"prompt": ["a"]}, timeout=20).json()["error"]
    assert httpx.post(f"{url}/compute", json={**body, "prompt": ["a"]}, timeout=20).status_code == 422
    empty = httpx.post(f"{url}/compute", json={"prompt": ["a"], "video": [[]]}, timeout=20).json()
    assert "at least one frame" in empty["error"]


# ---- who may call ----------------------------------------------------------------------------------------------------


def test_a_token_is_demanded_as_bearer_or_basic():
    with serving(Brightness(), ServiceSettings(token="s3cret")) as (url, _):
        for path in ("/metrics",):
            assert httpx.get(url + path).status_code == 401
            assert httpx.get(url + path, headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert httpx.post(f"{url}/v1/score", json={"items": []}).status_code == 401
        inside = url.replace("http://", "http://anyone:s3cret@")
        assert httpx.post(f"{inside}/score", json={"requests": []}).status_code == 200
        assert httpx.get(f"{url}/health").json()["rewards"] == {}
        assert httpx.get(f"{inside}/health").json()["rewards"] == {"brightness": ["ready"]}


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic !!!", "Basic " + b64(b"s3cret"), "s3cret"]
)
def test_other_headers_do_not_fit(header):
    assert not token_matches(header, "s3cret")


def test_an_open_address_without_token_is_refused(tmp_path):
    with pytest.raises(ValueError, match="set a token"):
        serve(Brightness(), host="0.0.0.0", port=0)
    with pytest.raises(ValueError, match="not a folder"):
        serve(Brightness(), port=0, settings=ServiceSettings(roots=(tmp_path / "nowhere",)))
    with (
        listening_socket("127.0.0.1", 0, ServiceSettings()) as taken,
        pytest.raises(ValueError, match="choose another port"),
    ):
        serve(Brightness(), port=taken.getsockname()[1])


def test_a_reward_that_needs_whole_groups_is_refused():
    with pytest.raises(ValueError, match="only a fragment"):
        create_app(group_normalised())


def test_the_ledger_keeps_every_judgement_and_serves_it_again(tmp_path):
    reward = scripted()
    dark = frames_item(level=60)
    with serving(reward, ledger=tmp_path / "ledger.jsonl") as (url, _):
        first, again = ask(url, dark).json(), ask(url, dark).json()
    assert first == again and first["scores"][0]["judgement"]["status"] == "abnormal"
    assert len(reward.components["cac"].vlm.asked) == 2  # turn 1 and turn 2, once
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["score", "score", "combined"]


def test_a_client_that_goes_away_in_mid_body_leaves_one_line_and_no_traceback(caplog):
    with serving(Brightness()) as (url, _), caplog.at_level(logging.INFO):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            time.sleep(0.3)  # the service has begun to read the body
        ends = time.monotonic() + 10
        while not any("went away" in record.getMessage() for record in caplog.records) and time.monotonic() < ends:
            time.sleep(0.02)
        assert httpx.get(f"{url}/health").status_code == 200
    assert sum("went away" in record.getMessage() for record in caplog.records) == 1
    assert not any(record.exc_info for record in caplog.records)
