"""World-R1's own ``multi_score`` beside our rewards: the total that its script trains on has both, over its own pickled HTTP."""

import json
import subprocess

import pytest

from tests.upstream.hosts import PYTHON, REPOSITORY, checkout, need

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(300)]

SCRIPT = """
import http.server, json, os, pickle, threading

class General(http.server.BaseHTTPRequestHandler):  # what its serve_general_reward.py answers
    def do_POST(self):
        asked = pickle.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = pickle.dumps({"outputs": [0.25] * len(asked["images"])})
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), General)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["GENERAL_REWARD_SERVER_URL"] = f"http://127.0.0.1:{server.server_port}"
import torch
import flow_grpo.rewards as rewards
score = getattr(rewards, "multi_score")("cpu", {"cac": 2.0, "reward_general": 4.0})
pixels = torch.stack([torch.full((9, 3, 16, 16), level) for level in (0.9, 0.3)])
details, more = score(pixels, ("p", "p"), [{}, {}], only_strict=True)
print("DETAILS", json.dumps(details), rewards.REWARD_TOTAL)
"""


def test_our_reward_is_in_world_r1s_total(tmp_path):
    home = checkout("WORLD_R1_DIR", "microsoft/World-R1", "flow_grpo/rewards.py")
    need("requests", "torch")
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [PYTHON, "-m", "cac_align.plugins.flow_grpo", "--reward", "tests.support.hosting:scripted"]
    done = subprocess.run(
        [*command, str(tmp_path / "train.py")],
        env={"PYTHONPATH": f"{home}:{REPOSITORY}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("DETAILS"))
    details, total = line.removeprefix("DETAILS ").rsplit(" ", 1)
    details = json.loads(details)
    assert details["cac"] == pytest.approx([0.9, 0.1]) and details["reward_general"] == pytest.approx([0.25, 0.25])
    assert total == "reward_total" and details[total] == pytest.approx([2 * 0.9 + 1.0, 2 * 0.1 + 1.0])
    assert "avg" not in details
