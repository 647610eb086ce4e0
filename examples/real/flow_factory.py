"""Flow-Factory: its GRPO trainer with our reward, from the service to the ledger, in one command.

It starts `cac-align serve`, writes the prompts and the config, lets `cac-align doctor` check both, and then launches
Flow-Factory. The config is flow_factory.yaml beside this file.

Needs    Flow-Factory (github.com/X-GenGroup/Flow-Factory; read at a0b2bc5) importable by this Python; for Wan-2.1-1.3B
         8 GPUs of 80 GB (not tried: no GPU was at hand) and the judges of recipes/reward/qwen3vl_8b_server.yaml
Run      python examples/real/flow_factory.py --prompts prompts.txt
         The training itself is `ff-train config.yaml` in the folder of --out.
Try it   PYTHONPATH=Flow-Factory/src python examples/real/flow_factory.py --miniature       # a CPU, a few minutes

The output of the last line: one step on one group of four videos. Flow-Factory is the real one, unmodified; Wan and the
judges are the shipped small ones. It took five minutes on a busy CPU, most of it the update of the weights.

    ok     host: flow_factory (a checkout)
    ok     reward: 1 of 1 rewards are ours
    ok     cac_unified path: cac_align.plugins.flow_factory.CaCUnifiedReward
    ok     cac_unified fps: 16 frames per second (Wan: 16; the hosts tag files 8)
    ok     cac_unified service: http://127.0.0.1:45557: ok, offers unified+cac, unified, cac
    (… ten more lines of the doctor, none of them a fault)
    [flow_factory.train]: Training completed successfully
    unified+cac: 4 videos scored, mean 0.581
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SMALL_PROMPTS = "a cyan box falls on sand\na green box falls on grass\n"


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The config with these values changed, section by section; those of ``rewards`` in each of its entries."""
    result = dict(config)
    for key, value in changes.items():
        old = config.get(key)
        if isinstance(old, list) and isinstance(value, dict):
            result[key] = [{**entry, **value} for entry in old]
        else:
            result[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def write_run(out: Path, prompts: str, url: str, *, miniature: bool) -> None:
    """Prompts and config.yaml in the folder where Flow-Factory will run."""
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (out / "data" / f"{split}.txt").write_text(prompts, encoding="utf-8")
    config = yaml.safe_load((HERE / "flow_factory.yaml").read_text(encoding="utf-8"))
    if miniature:
        from cac_align.core.weights import shipped

        config = merged(config, yaml.safe_load((HERE / "flow_factory_miniature.yaml").read_text(encoding="utf-8")))
        config["model"]["model_name_or_path"] = str(shipped("wan"))
    config = merged(config, {"rewards": {"reward": url}})
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


@contextmanager
def service(reward: str, log: Path) -> Iterator[str]:
    """`cac-align serve` on a free port; its URL."""
    command = [sys.executable, "-m", "cac_align.cli", "serve", "--reward", reward, "--port", "0"]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8"))) is None:
            if process.poll() is not None:
                raise SystemExit(log.read_text(encoding="utf-8"))
            time.sleep(0.2)
        yield found[0]
    finally:
        process.terminate()
        process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=Path, help="one prompt per line")
    parser.add_argument("--reward", default="qwen3vl_8b_server", help="what the service scores with")
    parser.add_argument("--out", type=Path, default=Path("out/flow_factory"))
    parser.add_argument("--miniature", action="store_true", help="the shipped small Wan and judges, on a CPU")
    parser.add_argument("--check", action="store_true", help="stop after the doctor")
    given = parser.parse_args()
    if not given.miniature and given.prompts is None:
        parser.error("--prompts FILE names the training prompts (or try --miniature)")
    prompts = SMALL_PROMPTS if given.prompts is None else given.prompts.read_text(encoding="utf-8")
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with service("reward/miniature" if given.miniature else given.reward, out / "serve.log") as url:
        write_run(out, prompts, url, miniature=given.miniature)
        doctor = ["-m", "cac_align.cli", "doctor", "--host", "flow-factory", "--config", "config.yaml"]
        checked = subprocess.run([sys.executable, *doctor], cwd=out).returncode
        if checked or given.check:
            return checked
        # On one process `ff-train` would only start this module.
        launch = [sys.executable, "-m", "flow_factory.train"] if given.miniature else ["ff-train"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"} if given.miniature else dict(os.environ)
        with (out / "train.log").open("w", encoding="utf-8") as log:
            command = [*launch, "config.yaml"]
            code = subprocess.run(command, cwd=out, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    said = (out / "train.log").read_text(encoding="utf-8")
    if code:
        print(said[-3000:], file=sys.stderr)
        return code
    print(*re.findall(r"\[flow_factory\.train\]: Training .*", said)[-1:], sep="\n")
    rows = [json.loads(line) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("unified+cac", "unified", "cac"):
        scores = [row["score"] for row in rows if row["kind"] == "score" and row["reward"] == name]
        if scores:
            print(f"{name}: {len(scores)} videos scored, mean {math.fsum(scores) / len(scores):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
