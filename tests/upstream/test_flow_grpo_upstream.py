"""flow_grpo itself: its unmodified Wan script through our launcher, scoring by our service, on a CPU."""

import hashlib
import json

import pytest

from cac_align.rewards.build import load_reward
from tests.support.hosting import serving
from tests.upstream.host_runs import HostRun, write_flow_grpo
from tests.upstream.hosts import ON_MISSING, PROMPTS, PYTHON, REWARD, SIZES, checkout, need, run, small_wan

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]


def test_the_unmodified_wan_script_trains_two_epochs(tmp_path):
    home = checkout("FLOW_GRPO_DIR", "yifan123/flow_grpo (with scripts/train_wan2_1.py)", "scripts/train_wan2_1.py")
    need("absl", "ml_collections", "wandb", "imageio")
    script = home / "scripts" / "train_wan2_1.py"
    before = hashlib.sha256(script.read_bytes()).hexdigest()
    ledger = tmp_path / "ledger.jsonl"
    with serving(load_reward(REWARD)) as (url, _):
        setting = HostRun(str(small_wan(tmp_path / "wan")), PROMPTS, url, eval_every=3, **SIZES)
        run(write_flow_grpo(tmp_path, setting, home, PYTHON), tmp_path, [home])
    assert hashlib.sha256(script.read_bytes()).hexdigest() == before
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    facts = [row["extra"]["host"] for row in rows if row["kind"] == "extra" and "unscored" not in row["extra"]]
    trained, evaluated = 2 * 2 * 4, len(PROMPTS)  # epochs × batches × batch size; every test prompt once, in epoch 3
    assert facts.count("flow_grpo/cac") == facts.count("flow_grpo/unifiedreward_video") == trained + evaluated
    judged = [row for row in rows if row["kind"] in ("score", "missing") and row["reward"] == "cac"]
    scored = sum(row["kind"] == "score" for row in judged)
    assert scored == len(judged) or (ON_MISSING == "neutral" and scored > len(judged) // 2)
    assert len(judged) == trained + evaluated and all(row["judgement"]["turns"] for row in judged)
