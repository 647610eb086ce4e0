"""The rating page: blind, exact to the frame, closed to other pages; and a person in Chromium rates
ten clips by keyboard alone.
"""

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.core.video import Video
from cac_align.data.records import read_records
from cac_align.evaluation.human import export as module
from cac_align.evaluation.human.app import create_rating_app, export_path, serve_rating_page
from cac_align.evaluation.human.tasks import gather_tasks, shuffle_tasks
from tests.support.chromium import browser_page, require_chromium

FPS = 8.0
HOSTILE = '<img src=x onerror=alert(1)> "quoted" & </script>'


def clip(path, count, level=0):
    """A video whose every frame has its own brightness, so that a picture tells which frame it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((count, 32, 48, 3), np.uint8)
    pixels += (np.arange(count) * 12 + level).astype(np.uint8)[:, None, None, None]
    write_mp4(path, pixels, FPS)


@pytest.fixture
def pairs(tmp_path):
    """Two folders with three pairs; the second folder's clips are two frames longer."""
    for group, extra in (("qx-first", 0), ("qx-second", 2)):
        for number in range(3):
            clip(tmp_path / group / f"qxclip-{number}.mp4", 5 + number + extra)
        rows = [
            {"video": f"qxclip-{number}.mp4", "prompt": f"{HOSTILE} {number}", "seed": 98765} for number in range(3)
        ]
        (tmp_path / group / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [tmp_path / "qx-first", tmp_path / "qx-second"]


@pytest.fixture
def client(pairs, tmp_path):
    with TestClient(
        create_rating_app(pairs, database=tmp_path / "r.sqlite", rater="ann"), base_url="http://127.0.0.1"
    ) as made:
        yield made


def task(client, rater="ann", **query):
    return client.get("/api/task", params={"rater": rater, **query}).json()


def test_nothing_the_page_gets_tells_where_a_clip_comes_from(client):
    answers = [client.get("/rate"), client.get("/annotate.js")]
    answers += [client.get("/api/task", params={"rater": "ann", "number": number}) for number in (1, 2, 3)]
    tokens = [each["token"] for answer in answers[2:] for each in answer.json()["clips"]]
    answers += [client.get(f"/frame/{token}/0") for token in tokens]
    assert len(set(tokens)) == 6
    for answer in answers:
        assert answer.status_code == 200
        everything = str(answer.headers).encode() + answer.content + str(answer.url).encode()
        assert not re.search(rb"qx-first|qx-second|qxclip|\.mp4|98765", everything), answer.url


def test_raters_meet_the_tasks_in_their_own_order_and_sides_are_random(client):
    tasks = client.app.state.tasks
    assert [t.token for t in shuffle_tasks(tasks, "ann", "0")] == [
        t.token for t in shuffle_tasks(tasks[::-1], "ann", "0")
    ]
    orders = {tuple(t.name for t in shuffle_tasks(tasks, f"rater {n}", "0")) for n in range(30)}
    lefts = {next(iter(t.members[0].groups)) for n in range(30) for t in shuffle_tasks(tasks, f"rater {n}", "0")}
    assert len(orders) > 3 and lefts == {"qx-first", "qx-second"}


def test_frames_come_exactly_by_source_index(client):
    shown = task(client, number=1)
    member = {m.token: m.clip for t in client.app.state.tasks for m in t.members}[shown["clips"][0]["token"]]
    expected = member.video.frames(range(len(member.video))).pixels
    import io

    import PIL.Image

    for index in range(len(member.video)):
        answer = client.get(f"/frame/{shown['clips'][0]['token']}/{index}")
        assert answer.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(answer.content))), expected[index])
    assert client.get(f"/frame/{shown['clips'][0]['token']}/{len(member.video)}").status_code == 404
    assert client.get("/frame/unknown/0").status_code == 404


def post(client, shown, kind, detail=None, *, last_known=0, headers=None, number=0, rater="ann"):
    body = {
        "rater": rater,
        "task": shown["task"],
        "clip": shown["clips"][number]["token"],
        "kind": kind,
        "detail": detail or {},
    }
    return client.post(
        "/api/action",
        json={**body, "last_known": last_known, "client": f"{shown['task']}-{rater}-{kind}-{last_known}-{number}"},
        headers=headers,
    )


def test_both_sides_of_a_pair_are_needed_and_exported_with_group_and_pair(client, tmp_path):
    shown = task(client, number=1)
    state = post(client, shown, "normal").json()["state"]
    refused = post(client, shown, "done", last_known=state["last"])
    assert refused.status_code == 422 and "video B: not judged yet" in refused.json()["detail"]
    state = post(client, shown, "normal", last_known=state["last"], number=1).json()["state"]
    assert post(client, shown, "done", last_known=state["last"]).json()["state"]["done"]
    records = list(read_records(tmp_path / "r.jsonl"))
    assert {record.extra["group"] for record in records} == {"qx-first", "qx-second"}
    assert len({record.extra["pair"] for record in records}) == 1
    assert all((tmp_path / record.video).is_file() and record.status == "normal" for record in records)
    assert task(client, after=1)["finished"] == 1


def test_an_old_page_is_told_the_present_state(client):
    shown = task(client, number=1)
    post(client, shown, "normal")
    late = post(client, shown, "start", {"anomaly": 0, "frame": 0}, number=1)
    assert late.status_code == 409 and late.json()["state"]["last"] == 1


def test_pages_of_others_are_kept_out(client):
    shown = task(client, number=1)
    assert post(client, shown, "normal", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/rate", headers={"host": "rebound.example"}).status_code == 400
    plain = client.post("/api/action", content=json.dumps({}), headers={"content-type": "text/plain"})
    assert plain.status_code == 422 and task(client, number=1)["state"]["last"] == 0
    assert "script-src 'self'" in client.get("/rate").headers["content-security-policy"]


def test_a_hostile_rater_and_a_hostile_prompt_are_text(client):
    page = client.get("/rate", params={"name": HOSTILE}).text
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert client.get("/rate", params={"name": "\x00"}).status_code == 422


def test_other_addresses_than_loopback_are_refused(pairs):
    with pytest.raises(ValueError, match=r"host must be one of 127\.0\.0\.1, localhost, received '0\.0\.0\.0'"):
        serve_rating_page(pairs, host="0.0.0.0")


def test_what_cannot_be_rated_is_named(tmp_path):
    clip(tmp_path / "v" / "good.mp4", 4)
    (tmp_path / "v" / "bad.mp4").write_bytes(b"no video")
    tasks, faults = gather_tasks(tmp_path / "v")
    assert len(tasks) == 1 and [(fault.kind, fault.name) for fault in faults] == [("unreadable video", "v/bad.mp4")]
    app = create_rating_app(tmp_path / "v", database=tmp_path / "r.sqlite", rater="ann")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/rate").text
        assert "1 file could not be opened" in page and "bad.mp4" not in page
    clip(tmp_path / "v" / "good.mp4", 4, level=99)
    with pytest.raises(ValueError, match="another video than the one rated"):
        create_rating_app(tmp_path / "v", database=tmp_path / "r.sqlite")


def rated(client, number, *, rater="ann"):
    """Judge all clips of a task normal, and confirm."""
    shown = task(client, rater, number=number)
    last_known = shown["state"]["last"]
    for place in range(len(shown["clips"])):
        last_known = post(client, shown, "normal", last_known=last_known, number=place, rater=rater).json()["state"][
            "last"
        ]
    return post(client, shown, "done", last_known=last_known, rater=rater).json()["state"]["last"]


def served(folders, database):
    return TestClient(create_rating_app(folders, database=database), base_url="http://127.0.0.1")


def test_ratings_of_other_folders_stay_in_the_export(pairs, tmp_path):
    database = tmp_path / "r.sqlite"
    with served(pairs, database) as client:
        for number in (1, 2, 3):
            rated(client, number)
    first = {record.id: record for record in read_records(tmp_path / "r.jsonl")}
    assert len(first) == 6
    clip(tmp_path / "qx-third" / "qxclip-0.mp4", 9)
    clip(tmp_path / "qx-third" / "qxclip-1.mp4", 9)
    third = tmp_path / "qx-third"
    with served(third, database):  # wholly different
        pass
    assert {record.id: record for record in read_records(tmp_path / "r.jsonl")} == first
    with served([*pairs, third], database) as client:  # one more: a task is a clip now, and no longer a pair
        assert len(client.app.state.tasks) == 8
        numbers = {t.name: n for n, t in enumerate(shuffle_tasks(client.app.state.tasks, "ann", "0"), 1)}
        rated(client, numbers["clip/qx-third/qxclip-0.mp4"])
        rated(client, numbers["clip/qx-first/qxclip-1.mp4"])  # judged once more, by itself
    records = {record.id: record for record in read_records(tmp_path / "r.jsonl")}
    assert len(records) == 7 and records.keys() > first.keys()
    assert records["qx-first/qxclip-1.mp4#ann"].extra["task"] == "clip/qx-first/qxclip-1.mp4"
    with served([pairs[0], third], database) as client:  # pairs of the same name, with another partner
        assert task(client)["finished"] == 0 and [
            t.name for t in client.app.state.tasks if t.name.startswith("pair/")
        ] == [f"pair/qxclip-{n}.mp4 (qx-first/qxclip-{n}.mp4, qx-third/qxclip-{n}.mp4)" for n in (0, 1)]
    assert {record.id: record for record in read_records(tmp_path / "r.jsonl")} == records
    with served(pairs, database) as client:
        assert task(client)["finished"] == 3
    assert {record.id: record for record in read_records(tmp_path / "r.jsonl")} == records


def test_an_earlier_release_s_database_is_refused_before_its_ratings_are_lost(pairs, tmp_path):
    database = tmp_path / "r.sqlite"
    with served(pairs, database) as client:
        rated(client, 1)
        rated(client, 2, rater="bob")
        post(client, task(client, number=3), "normal")  # half-written: no rating
    with sqlite3.connect(database) as db:
        db.execute("DROP TABLE served")  # as an earlier release left it
    before = (tmp_path / "r.jsonl").read_bytes()
    clip(tmp_path / "qx-third" / "a.mp4", 9)
    with pytest.raises(
        ValueError, match=r"2 confirmed ratings of 2 raters belong to other folders .*first: pair/.*Open it once"
    ):
        create_rating_app(tmp_path / "qx-third", database=database)
    assert (tmp_path / "r.jsonl").read_bytes() == before and len(before.splitlines()) == 4
    for folders in (pairs, tmp_path / "qx-third"):  # the way out
        with served(folders, database):
            assert (tmp_path / "r.jsonl").read_bytes() == before


def test_what_is_confirmed_while_the_export_is_written_is_one_export_more(pairs, tmp_path, monkeypatch):
    written, go, begun = [], threading.Event(), threading.Event()

    def slow(store, tasks, database, write=module.write_export):
        written.append(len(store.raters()))
        if len(written) == 2:  # the first after the one at the start
            begun.set()
            assert go.wait(60)
        return write(store, tasks, database)

    monkeypatch.setattr(module, "write_export", slow)
    raters = [f"rater {number}" for number in range(5)]
    with served(pairs, tmp_path / "r.sqlite") as client:
        threads = [threading.Thread(target=rated, args=(client, 1), kwargs={"rater": rater}) for rater in raters]
        threads[0].start()
        assert begun.wait(60)
        for thread in threads[1:]:
            thread.start()
        deadline = time.monotonic() + 60
        while (
            client.get("/api/task", params={"rater": raters[-1]}).json()["finished"] == 0
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        for thread in threads[1:]:
            thread.join(5)  # nobody waits for the export
        assert not any(thread.is_alive() for thread in threads[1:])
        go.set()
        threads[0].join(60)
        assert written == [0, 1, 5]
        assert len(list(read_records(tmp_path / "r.jsonl"))) == 2 * 5


def test_an_export_that_failed_is_made_up_for_at_the_end(pairs, tmp_path, monkeypatch):
    write = module.write_export
    with served(pairs, tmp_path / "r.sqlite") as client:
        monkeypatch.setattr(module, "write_export", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):  # the test client shows what the server logs
            rated(client, 1)
        monkeypatch.setattr(module, "write_export", write)
    assert len(list(read_records(tmp_path / "r.jsonl"))) == 2


# ---- Chromium -----------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(folder, port):
    """The real verb in a process of its own, ready to answer."""
    code = f"from cac_align.evaluation.human.app import serve_rating_page; serve_rating_page({str(folder)!r}, rater='ann', port={port})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("rate "):
            break
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise AssertionError("the server did not answer")


def plan(position):
    """The keys for the clip met at this position, and what must be exported for it (frames, type,
    box).
    """
    if position % 4 == 3:
        return ["x", "n"], None
    start, kind = position % 3 + 1, position % 5 + 1
    keys = ["ArrowRight"] * start + ["i", "ArrowRight", "ArrowRight", "o", str(kind)]
    keys += (
        ["b"] + ["ArrowRight"] * position + ["ArrowDown"] * 2 + ["Shift+ArrowLeft"] * 3 + ["Shift+ArrowDown", "Enter"]
    )
    if position == 1:  # a slip, taken back twice
        keys += ["5", "x", "u", "u"]
    box = [300 + 10 * position, 320, 700 + 10 * position - 30, 730]
    anomaly = (start, start + 2, ANOMALY_TYPES[kind - 1], {start + 2: [box]}, f"reason b{position} x n")
    return [*keys, "r", *anomaly[-1].replace(" ", "_"), "Enter"], anomaly


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 300 keys, each saved before the next; minutes on a machine that others use too
def test_a_person_rates_ten_clips_by_keyboard_while_the_server_is_killed_half_way(tmp_path):
    require_chromium()
    folder = tmp_path / "clips"
    for number in range(10):  # a clip's length tells the test which one the page shows; a person cannot know
        clip(folder / f"{number}.mp4", 7 + number)
    port = free_port()
    process, expected = serve(folder, port), {}
    try:
        with browser_page() as page:
            page.goto(f"http://127.0.0.1:{port}/")
            for position in range(10):
                page.wait_for_function(
                    "n => document.getElementById('place').textContent === `Video ${n}`", arg=position + 1
                )
                page.wait_for_function("() => document.querySelector('canvas')?.dataset.frame === '0'")
                length = int(re.search(r"of 0–(\d+)", page.text_content(".stage h3")).group(1)) + 1
                keys, anomaly = plan(position)
                expected[length] = anomaly
                for key in keys:
                    page.keyboard.press("Space" if key == "_" else key)
                if position == 5:
                    page.wait_for_function("() => document.getElementById('saved').textContent === 'saved'")
                    process.kill()
                    process.wait()
                    page.keyboard.press("w")
                    page.keyboard.type("left hand")
                    page.keyboard.press("Enter")
                    page.wait_for_function("() => document.getElementById('saved').textContent === 'not saved'")
                    process = serve(folder, port)
                    page.wait_for_function("() => document.getElementById('saved').textContent === 'saved'")
                if anomaly is not None:
                    page.keyboard.press("n")
            page.wait_for_function("() => !document.getElementById('finish').hidden")
            assert page.text_content("#finished") == "10 of 10 finished"
            # The server was away for a while, which the browser's console notes; nothing else may be there.
            assert [
                text for text in page.complaints if "ERR_CONNECTION_REFUSED" not in text and "ERR_EMPTY" not in text
            ] == []
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert "10 records" in said and "0 half-written" in said
    finally:
        process.kill()
        process.wait()
    records = list(read_records(export_path(folder / "ratings.sqlite")))
    assert len(records) == 10
    for record in records:
        anomaly = expected[record.num_frames]
        if anomaly is None:
            assert record.status == "normal"
            continue
        (found,) = record.anomalies
        start, end, kind, boxes, reason = anomaly
        times = Video.open(folder / record.video).times_s
        assert (found.window.start_s, found.window.end_s, found.type) == (times[start], times[end], kind)
        assert {frame: [box.to_json() for box in each] for frame, each in found.boxes.items()} == boxes
        assert found.reason == reason
    assert sum(anomaly.region == "left hand" for record in records for anomaly in record.anomalies) == 1


@pytest.mark.slow
def test_pairs_play_in_step_and_hostile_prompts_are_inert(pairs, tmp_path):
    require_chromium()
    server = uvicorn.Server(
        uvicorn.Config(
            create_rating_app(pairs, database=tmp_path / "r.sqlite"), port=(port := free_port()), log_level="error"
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with browser_page() as page:
            while not server.started:
                time.sleep(0.05)
            page.goto(f"http://127.0.0.1:{port}/")
            page.keyboard.type("Ann <b>")  # the server asks who rates
            page.keyboard.press("Enter")
            page.wait_for_selector("canvas[data-frame='0'] >> nth=1")
            assert HOSTILE in page.text_content("#prompt") and page.locator("#prompt img").count() == 0
            for _ in range(3):
                page.keyboard.press("ArrowRight")
            page.wait_for_function("() => [...document.querySelectorAll('canvas')].every(c => c.dataset.frame === '3')")
            pixel = "n => document.querySelectorAll('canvas')[n].getContext('2d').getImageData(9, 9, 1, 1).data[0]"
            assert [abs(page.evaluate(pixel, n) - 36) <= 2 for n in (0, 1)] == [True, True]  # frame 3 has brightness 36
            page.keyboard.press("Space")  # plays both to the end of the one in focus
            page.wait_for_function("() => Number(document.querySelector('.stage.focus canvas').dataset.frame) >= 4")
            page.mouse.move(*center(page, 0.25))
            page.mouse.down()
            page.mouse.move(*center(page, 0.75), steps=4)
            page.mouse.up()
            page.wait_for_selector(".box.chosen")
            assert "1 box on frame" in page.text_content("#ratings")
            assert page.complaints == []
    finally:
        server.should_exit = True
        thread.join()


def center(page, share):
    area = page.locator(".screen").first.bounding_box()
    return area["x"] + share * area["width"], area["y"] + share * area["height"]
