"""The serving recipes: their server commands are commands, and their client fits the servers that they start."""

import json
import re
import shlex

import pytest

from cac_align.config import read_recipe
from cac_align.rewards.build import RewardRecipe, load_reward
from cac_align.rewards.unified import NUM_FRAMES
from tests.support.tracked import tracked

SERVING = tracked("recipes/serving", "*.yaml")

# Flags of the two servers, from `vllm serve --help=all` (0.32) and SGLang's ServerArgs (0.5.23).
FLAGS = {
    "vllm": {
        "--served-model-name",
        "--port",
        "--enable-prefix-caching",
        "--max-num-seqs",
        "--max-model-len",
        "--limit-mm-per-prompt",
        "--media-io-kwargs",
        "--data-parallel-size",
        "--trust-request-mm-kwargs",
    },
    "sglang": {
        "--model-path",
        "--served-model-name",
        "--port",
        "--grammar-backend",
        "--max-running-requests",
        "--context-length",
        "--dp-size",
    },
}
AT_ONCE = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests"}


def server_commands(path):
    """The server commands in a recipe's header, each as {flag: value}; None for a flag without a value."""
    text = re.sub(r"\\\n#\s*", "", path.read_text(encoding="utf-8"))
    for line in re.findall(r"^#\s+((?:vllm serve|python -m sglang\.launch_server) .*)$", text, re.M):
        words = shlex.split(line)
        flags = [place for place, word in enumerate(words) if word.startswith("--")]
        yield {
            words[place]: next((word for word in words[place + 1 : place + 2] if not word.startswith("--")), None)
            for place in flags
        }


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.stem)
def test_every_flag_exists_and_what_is_json_is_json(path):
    commands = list(server_commands(path))
    assert len(commands) == 2 and {flag for command in commands for flag in command} <= FLAGS[path.stem]
    for command in commands:
        assert all(value is None or not value.startswith("{") or json.loads(value) for value in command.values())


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.stem)
def test_client_and_servers_agree(path):
    recipe = read_recipe(RewardRecipe, path)
    servers = {command["--served-model-name"]: command for command in server_commands(path)}
    assert set(servers) == {part.served_model for part in recipe.components.values()}
    reward = load_reward(recipe)
    for name, part in recipe.components.items():
        server = servers[part.served_model]
        assert part.model == f"http://127.0.0.1:{server['--port']}/v1"
        assert int(server[AT_ONCE[path.stem]]) == part.concurrency == reward.components[name].vlm.concurrency
    cac = reward.components["cac"]
    assert cac.vlm.dialect == path.stem and cac.settings.constrained
    if path.stem == "vllm":  # UnifiedReward's frames are images of one prompt; CaC's a video
        assert json.loads(servers["unified"]["--limit-mm-per-prompt"]) == {"image": NUM_FRAMES}
        assert json.loads(servers["cac"]["--limit-mm-per-prompt"])["video"] >= 1
