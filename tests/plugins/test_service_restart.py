"""The shipped judges behind a real `cac-align serve` that is killed while it is asked and comes back a minute later: no score is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch

from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip
from cac_align.plugins.common.host import HostOptions, host_reward

RECIPE = "recipes/reward/miniature.yaml"
DOWN_S = 60.0


def serve(port):
    command = [sys.executable, "-m", "cac_align.cli", "serve", "--reward", RECIPE, "--port", str(port)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def wait_until_up(url, ends):
    while time.monotonic() < ends:
        try:
            if httpx.get(f"{url}/health", trust_env=False, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    pytest.fail("the service did not come up")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_restart_of_a_minute_loses_no_score():
    clips = [make_clip(seed, PLAYGROUND, anomalous=bool(seed % 2)) for seed in range(8)]
    prompts, videos = [clip.prompt for clip in clips], [torch.from_numpy(clip.pixels) for clip in clips]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    service = serve(port)
    try:
        wait_until_up(url, time.monotonic() + 400)
        reward = host_reward(HostOptions(reward=url, on_missing="raise"), "restart")  # otherwise the defaults
        first = reward.values(prompts[:1], videos[:1])
        got = []
        asking = threading.Thread(target=lambda: got.extend(reward.values(prompts[1:], videos[1:])))
        service.send_signal(signal.SIGKILL)
        service.wait()
        killed = time.monotonic()
        asking.start()
        time.sleep(DOWN_S)
        service = serve(port)
        asking.join(600)
        assert len(got) == len(videos) - 1 and time.monotonic() - killed > DOWN_S
        # By the service that came back. It may batch otherwise, which moves the last of six digits.
        assert reward.values(prompts, videos) == pytest.approx([*first, *got], abs=5e-6)
        assert len(set(got)) == len(got)  # real ones: no two clips are alike to the judges
    finally:
        service.terminate()
        service.wait(60)
