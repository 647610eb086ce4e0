"""Run inside UniRL's own environment: its client, its service wrapper and its wire schema, against our service and our backend."""

import json
import math
import sys

import torch

url, service_home, ledger = sys.argv[1:]
sys.path.insert(0, service_home)

from reward_service.schemas import ScoreRequest, ScoreResponse  # noqa: E402
from unirl.reward.remote import RemoteRewardBackend, RemoteRewardSpec  # noqa: E402
from unirl.types.primitives import Texts, Video, Videos  # noqa: E402
from unirl.types.reward import RewardRequest  # noqa: E402

from cac_align.plugins.unirl import CaCBackend, CaCSpec  # noqa: E402


def request(*levels):
    frames = [Video(frames=torch.full((17, 3, 64, 64), level)) for level in levels]
    texts = Texts(texts=[f"prompt {level}" for level in levels])
    return RewardRequest(primitives={"text": texts}, generated={"video": Videos.from_list(frames)})


out = {}
spec = RemoteRewardSpec(
    base_url=url, required_rewards=["cac", "unified"], reward_weights={"cac": 1.0, "unified": 1.0}, video_fps=16
)
spec.input_kind = "video"
client = RemoteRewardBackend(config=spec, base_device="cpu")
out["available"] = client.is_available()
payload = client._build_video_score_payload(request(0.95, 0.2))
ScoreRequest.model_validate(payload)
ScoreResponse.model_validate(client._post_score(payload))
answer = client.compute_rewards(request(0.95, 0.2))
out["rewards"], out["successes"] = answer.rewards, answer.successes
out["components"] = answer.component_rewards

wrong = RemoteRewardBackend(config=RemoteRewardSpec(base_url=url, required_rewards=["hpsv2"]), base_device="cpu")
try:
    wrong.is_available()
except ValueError as error:
    out["unknown"] = str(error)

local = CaCBackend(config=CaCSpec(reward="tests.support.hosting:scripted", ledger=ledger), base_device="cpu")
answer = local.compute_rewards(request(0.95, 0.2))
out["local"], out["local_components"] = answer.rewards, sorted(answer.component_rewards)
bad = local.compute_rewards(request(0.95, 9.0))
out["bad"] = [math.isnan(bad.rewards[1]), bad.successes, bad.errors[1]]
print("RESULT " + json.dumps(out))
