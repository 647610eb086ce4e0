"""The serving recipes name rewards that can be built, and a client that fills the server it describes."""

import re
from pathlib import Path

import pytest

from cac_align.config import read_recipe
from cac_align.rewards.build import RewardRecipe, load_reward

SERVING = sorted((Path(__file__).parents[1] / "recipes" / "serving").glob("*.yaml"))


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.stem)
def test_client_and_server_agree(path):
    recipe, head = read_recipe(RewardRecipe, path), path.read_text(encoding="utf-8")
    reward = load_reward(recipe)
    served = re.findall(r"--served-model-name (\w+) --port (\d+)", head)
    assert sorted(served) == sorted(
        (part.served_model, part.model.split(":")[2].split("/")[0]) for part in recipe.components.values()
    )
    in_flight = {int(n) for n in re.findall(r"--max-(?:num-seqs|running-requests) (\d+)", head)}
    cac = reward.components["cac"]
    assert in_flight == {cac.vlm.concurrency} == {reward.components["unified"].vlm.concurrency}
    assert cac.vlm.dialect == path.stem and cac.settings.constrained and "not measured" in head
