"""What the tests of adapters and service share: small real rewards, moving clips, and the service on a free port."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import uvicorn

from cac_align.rewards.cac import CaC
from cac_align.rewards.combine import combine
from cac_align.rewards.pairwise.comparison import Comparison
from cac_align.rewards.pairwise.tournament import Tournament
from cac_align.rewards.reward import Score, check_pairs
from cac_align.rewards.unified import UnifiedReward, write_axes
from cac_align.serving.app import create_app
from cac_align.serving.server import listening_socket, uvicorn_config
from cac_align.serving.service import ServiceSettings
from cac_align.vlm.scripted import ScriptedVlm


class Brightness:
    """Mean brightness of the 4-fps frames, in [0, 1]; a prompt that begins with "unscorable" gets no score, "explode" raises."""

    name = "brightness"
    bounds = (0.0, 1.0)

    def __init__(self, delay_s=0.0):
        self.delay_s, self.batches, self.lock = delay_s, [], threading.Lock()

    @property
    def provenance(self):
        return {"reward": "brightness", "version": "1"}

    def __call__(self, prompts, videos):
        check_pairs(prompts, videos)
        with self.lock:
            self.batches.append(list(prompts))
        time.sleep(self.delay_s)
        return [self.one(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]

    def one(self, prompt, video):
        if prompt.startswith("explode"):
            raise RuntimeError("the reward itself broke")
        if prompt.startswith("unscorable"):
            return Score.missing("told not to", provenance=self.provenance)
        try:
            frames = video.sample(4.0)
        except ValueError as error:
            return Score.missing(f"video: {error}", provenance=self.provenance)
        value = float(frames.pixels.mean() / 255)
        return Score(value, {"frames": float(len(frames))}, None, None, self.provenance)


def brightness():
    return Brightness()


def _cac_answer(conversation):
    """Turn 1: abnormal in the window of frames 1-2 when the clip is dark; turn 2 confirms with a box."""
    frames = conversation[-1].frames
    if len(conversation) > 1 and any(message.role == "assistant" for message in conversation):
        raise AssertionError("the fresh context was asked for")
    dark = frames.pixels.mean() < 128
    if not dark:
        return json.dumps({"COT": "looked", "status": "normal", "anomalies": []})
    item = {"Attributed Label": "Object Distortion", "Reason for Anomaly": "melts", "Problem Region": "centre"}
    if frames.fps == 8:
        item["BBOX"] = {"Frame 1": [100, 100, 300, 300]}
    else:
        item["Attributed Time Region"] = "Frame 1-2"
    return json.dumps({"COT": "looked", "status": "abnormal", "anomalies": [item]})


def _unified_answer(conversation):
    return write_axes({"alignment": 3.0, "physics": 4.0, "style": 5.0})


def scripted():
    """UnifiedReward + CaC over scripted judges: (4 - 1) / 4 = 0.75 and P(normal) = 0.9 bright, 0.1 dark, averaged."""
    return combine({"unified": UnifiedReward(ScriptedVlm(_unified_answer)), "cac": CaC(ScriptedVlm(_cac_answer))})


def telling():
    """The same two judges, but their answers follow the pixels closely: near-binary CaC, graded UnifiedReward."""

    def cac(conversation):
        pixels = conversation[-1].frames.pixels
        bright = np.full_like(
            pixels, 255 if conversation[-1].frames.fps != 8 and round(float(pixels.mean()) * 10) % 2 else 0
        )
        return _cac_answer((replace(conversation[-1], frames=replace(conversation[-1].frames, pixels=bright)),))

    def unified(conversation):
        level = (
            1
            + 4
            * float(np.mean([message.frames.pixels.mean() for message in conversation if message.frames is not None]))
            / 255
        )
        return write_axes({"alignment": round(level, 3), "physics": 3.0, "style": 3.0})

    return combine({"unified": UnifiedReward(ScriptedVlm(unified)), "cac": CaC(ScriptedVlm(cac))})


def group_normalised():
    return combine({"a": Brightness(), "b": Brightness()}, normalise="group")


class BrighterWins:
    """A judge of pairs: the brighter video wins for certain, equal ones tie. It is silent about pairs with a black video, and about
    every pair of a prompt that begins with "silent".
    """

    name, provenance = "brighter wins", {"reward": "brighter wins"}

    def __init__(self):
        self.asked = []

    def compare(self, prompts, firsts, seconds):
        answers = []
        for prompt, *pair in zip(prompts, firsts, seconds, strict=True):
            first, second = (float(video.sample(4.0).pixels.mean()) for video in pair)
            self.asked.append((prompt, first, second))
            silent = prompt.startswith("silent") or min(first, second) == 0
            p = 0.5 if round(first, 3) == round(second, 3) else float(first > second)
            answers.append(Comparison.missing("the judge was silent") if silent else Comparison(p))
        return answers


def pairs():
    return Tournament(BrighterWins())


def clip(level=200, num_frames=17, height=32, width=48):
    """uint8 (T, H, W, 3): a flat clip whose brightness falls by one per frame."""
    levels = level - np.arange(num_frames)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).astype(np.uint8)


@contextmanager
def serving(reward, settings=ServiceSettings(), ledger=None):
    """The real service on a free loopback port; yields (url, uvicorn server). Stops gracefully at the end."""
    with listening_socket("127.0.0.1", 0, settings) as listening:
        server = uvicorn.Server(uvicorn_config(create_app(reward, settings, ledger), settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextmanager
def occupied(reward, ask):
    """While the service scores a first request: ``ask()`` in a thread, which is joined at the end."""
    blocker = threading.Thread(target=ask)
    blocker.start()
    while not reward.batches:
        time.sleep(0.005)
    yield
    blocker.join()
