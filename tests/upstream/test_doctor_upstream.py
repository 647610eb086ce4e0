"""What doctor says of a Flow-Factory config, against what Flow-Factory itself makes of it."""

import itertools
import json
import subprocess

import pytest
import yaml

from cac_align.plugins.doctor.hosts.flow_factory import _geometry
from tests.upstream.hosts import PYTHON, REPOSITORY, checkout, need

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(300)]

SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from flow_factory.hparams import Arguments
for line in sys.stdin:
    config = json.loads(line)
    os.environ["WORLD_SIZE"] = str(config["num_processes"])
    made = Arguments.from_dict(config)
    train = made.training_args
    samples = train.unique_sample_num_per_epoch * train.group_size // config["num_processes"]
    print(json.dumps([made.data_args.sampler_type, samples]))
"""


def test_the_geometry_of_an_epoch_is_flow_factorys():
    home = checkout("FLOW_FACTORY_DIR", "X-GenGroup/Flow-Factory", "src/flow_factory/train.py")
    need("datasets", "imageio", "ftfy")
    recipe = yaml.safe_load((REPOSITORY / "recipes" / "hosts" / "flow_factory_wan21_1_3b.yaml").read_text())
    configs = []
    for processes, groups, batch, steps, asynchronous, sampler in itertools.product(
        (1, 2, 8), (2, 3, 16), (1, 3), (1, 2), (False, True), ("auto", "distributed_k_repeat", "group_contiguous")
    ):
        config = json.loads(json.dumps(recipe)) | {"num_processes": processes}
        config["data"]["sampler_type"] = sampler
        config["train"] |= {"unique_sample_num_per_epoch": groups, "per_device_batch_size": batch}
        config["train"]["gradient_step_per_epoch"] = steps
        config["rewards"][0]["async_reward"] = asynchronous
        configs.append(config)
    lines = "\n".join(json.dumps(config) for config in configs)
    done = subprocess.run([PYTHON, "-c", SCRIPT, str(home / "src")], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(theirs) == len(configs)
    for config, (sampler, samples) in zip(configs, theirs, strict=True):
        ours = _geometry(config, any(entry.get("async_reward") for entry in config["rewards"]))
        assert (ours.sampler, ours.samples_per_rank) == (sampler, samples), config["train"]
