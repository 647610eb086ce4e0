"""The real Flow-Factory and flow_grpo on two ranks, three epochs, with every twentieth clip unscorable for CaC: the run goes on, each such
clip gets the mean of its group over both ranks, and the count is the service's own."""

import json
import re
import threading

import pytest

from cac_align.rewards.combine import combine
from cac_align.rewards.reward import Score
from tests.support.hosting import serving, telling
from tests.upstream.host_runs import HostRun, write_flow_factory, write_flow_grpo
from tests.upstream.hosts import PROMPTS, PYTHON, SIZES, checkout, need, run, small_wan

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]

GROUP, EPOCHS, PROMPTS_PER_EPOCH = 8, 3, 2


class EveryTwentieth:
    """A reward that has no score for the tenth, thirtieth, … clip that it sees, however often it is asked again."""

    def __init__(self, reward):
        self.reward, self.name, self.bounds = reward, reward.name, reward.bounds
        self.provenance, self.lock, self.seen = dict(reward.provenance), threading.Lock(), {}

    def __call__(self, prompts, videos):
        with self.lock:
            positions = [self.seen.setdefault(video.content_hash, len(self.seen)) for video in videos]
        scores = self.reward(prompts, videos)
        return [
            Score.missing("unscorable by design", provenance=self.provenance) if position % 20 == 9 else score
            for position, score in zip(positions, scores, strict=True)
        ]


def flow_factory(folder, setting):
    home = checkout("FLOW_FACTORY_DIR", "X-GenGroup/Flow-Factory", "src/flow_factory/train.py")
    need("datasets", "imageio", "ftfy")
    command = write_flow_factory(folder, setting, PYTHON)
    return run(command, folder, [home / "src"], LOG_FILE=str(folder / "log.jsonl"))


def flow_grpo(folder, setting):
    home = checkout("FLOW_GRPO_DIR", "yifan123/flow_grpo (with scripts/train_wan2_1.py)", "scripts/train_wan2_1.py")
    need("absl", "ml_collections", "wandb", "imageio")
    return run(write_flow_grpo(folder, setting, home, PYTHON), folder, [home])


@pytest.mark.parametrize("host", [flow_factory, flow_grpo])
def test_five_percent_without_a_score(tmp_path, host):
    parts = telling().components
    spotty = EveryTwentieth(parts["cac"])
    sizes = SIZES | {"on_missing": "neutral", "group_size": GROUP, "epochs": EPOCHS, "processes": 2, "eval_every": 2}
    with serving(combine({"unified": parts["unified"], "cac": spotty})) as (url, _):
        setting = HostRun(str(small_wan(tmp_path / "wan")), tuple(PROMPTS), url, **sizes)
        output = host(tmp_path, setting)

    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    extras = [row for row in rows if row["kind"] == "extra" and row["extra"]["host"].endswith("/cac")]
    evaluated = {row["key"] for row in extras if row["extra"].get("evaluation")}
    judged = {row["key"]: row for row in rows if row["kind"] in ("score", "missing") and row["reward"] == "cac"}
    trained = [row for key, row in judged.items() if key not in evaluated]  # in the order of time: epoch after epoch
    per_epoch = GROUP * PROMPTS_PER_EPOCH
    assert len(trained) == EPOCHS * per_epoch
    unscored = {row["key"] for row in judged.values() if row["kind"] == "missing"}
    assert len(unscored) == sum(position % 20 == 9 for position in spotty.seen.values()) >= 2

    sent = {row["key"]: row["extra"]["sent"] for row in extras if row["extra"].get("unscored")}
    assert sent.keys() == unscored
    compared = 0
    for start in range(0, len(trained), per_epoch):
        epoch = trained[start : start + per_epoch]
        for row in epoch:
            group = [one for one in epoch if one["prompt"] == row["prompt"]]
            # flow_grpo may draw a prompt for both batches of an epoch; which of its clips were one call is not in the ledger.
            if row["kind"] == "missing" and len(group) == GROUP:
                scored = [one["score"] for one in group if one["kind"] == "score"]
                assert sent[row["key"]] == pytest.approx(sum(scored) / len(scored), abs=1e-6)
                compared += 1
    assert compared >= 1
    counts = [(int(a), int(b)) for a, b in re.findall(r"this run: (\d+) of (\d+) unscored", output)]
    in_training = unscored - evaluated
    assert len(counts) == len(in_training)  # one line each
    assert max(counts)[0] == len(in_training) and max(counts)[1] <= len(trained)  # both ranks count together
