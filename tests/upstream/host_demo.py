"""A whole run of a host on a CPU with the miniature, as a user would do it: serve, config, doctor, run, ledger, report.

    FLOW_FACTORY_DIR=… UPSTREAM_PYTHON=… python -m tests.upstream.host_demo flow-factory --out out/host_demo

Every command is printed before it runs, with what it says. `make host-demo` does this for each host whose checkout is named.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from cac_align.core.weights import shipped
from cac_align.miniature.demo import playground_prompts
from tests.upstream.host_runs import HostRun, write_flow_factory, write_flow_grpo

REPOSITORY = Path(__file__).parents[2]
CAC_ALIGN = str(Path(sys.executable).parent / "cac-align")
HOSTS = {
    "flow-factory": ("FLOW_FACTORY_DIR", "src", "config.yaml"),
    "flow_grpo": ("FLOW_GRPO_DIR", "", "config.py"),
}
"""Host: the variable that names its checkout, the folder in it that is imported from, and its config file here."""

NOISE = re.compile(r"Warning|warn|deprecat|^\s*$|it/s\]|s/it\]|^W\d{4}|NOTE: Redirects|%\|", re.IGNORECASE)
"""Lines of a host that are not shown: progress bars, and what its libraries say of themselves."""


def show(command: list[str], home: Path) -> None:
    """Print a command, with the checkout's place as its variable and this repository's left out."""
    text = shlex.join(command).replace(CAC_ALIGN, "cac-align").replace(str(home), "$HOST")
    for python in (os.environ.get("UPSTREAM_PYTHON", sys.executable), sys.executable):
        text = text.replace(python, "python")
    text = text.replace(f"{REPOSITORY}/", "")
    print(f"\n$ {text}", flush=True)


def run(command: list[str], home: Path, folder: Path, environment: dict[str, str], log: str, keep: str = ".*") -> None:
    """Run a command in ``folder`` to its end, and print its last lines that match ``keep``; ``log`` has all."""
    show(command, home)
    started = time.monotonic()
    with open(folder / log, "w") as output:
        code = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    lines = [line.rstrip() for line in (folder / log).read_text().replace("\r", "\n").splitlines()]
    for line in [line for line in lines if re.search(keep, line) and not NOISE.search(line)][-60:]:
        print(line.replace(str(home), "$HOST").replace(str(folder), ".")[:200])
    print(f"(exit {code} after {time.monotonic() - started:.0f} s)", flush=True)
    if code:
        raise SystemExit("\n".join(lines[-60:]))


@contextmanager
def served(home: Path, folder: Path, environment: dict[str, str]):
    """`cac-align serve` with the miniature on a free port; its URL."""
    command = [CAC_ALIGN, "serve", "--reward", str(REPOSITORY / "recipes/reward/miniature.yaml"), "--port", "0"]
    show(command, home)
    with open(folder / "serve.log", "w") as output:
        service = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        while (found := re.search(r"http://127\.0\.0\.1:\d+", (folder / "serve.log").read_text())) is None:
            if service.poll() is not None:
                raise SystemExit((folder / "serve.log").read_text())
            time.sleep(0.2)
        print(found[0], flush=True)
        yield found[0]
    finally:
        service.terminate()
        service.wait(30)


def tell_ledger(path: Path) -> None:
    """Print what the ledger holds: how many videos of each reward were scored, and one row."""
    print(f"\nwhat {path.name} holds:")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for reward in sorted({row["reward"] for row in rows if row["kind"] in ("score", "missing")}):
        scores = [row["score"] for row in rows if row["kind"] == "score" and row["reward"] == reward]
        missing = sum(row["kind"] == "missing" and row["reward"] == reward for row in rows)
        print(
            f"{reward}: {len(scores)} scored, mean {sum(scores) / max(len(scores), 1):.3f}, {missing} without a score"
        )
    sent = [row["extra"] for row in rows if row["kind"] == "extra" and row["extra"].get("unscored")]
    print(f"{len(sent)} times the host got another number: {[round(row['sent'], 3) for row in sent[:4]]}")
    found = next(row for row in rows if row["kind"] == "score" and row["reward"] == "cac")
    judged = found["judgement"]
    anomalies = [{key: one[key] for key in ("type", "window")} for one in judged["anomalies"]]
    print(
        json.dumps(
            {"prompt": found["prompt"], "score": found["score"], "status": judged["status"], "anomalies": anomalies}
        )
    )


def tell_log(path: Path) -> None:
    """Print the rewards and the size of the update that the host itself logged, where it logged into a file."""
    for row in [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []:
        found = {
            name: round(value, 4)
            for name, value in row.items()
            if re.search("reward_(cac|unified)_mean$|ratio_mean|grad_norm", name)
        }
        if found:
            print(f"the host's log, step {row['step']}: {found}")


def demo(host: str, out: Path, epochs: int, processes: int) -> bool:
    """The whole way for one host, everything it writes in ``out``/``host``; whether its checkout is named."""
    variable, source, config = HOSTS[host]
    if not (place := os.environ.get(variable)):
        print(f"{host}: {variable} is not set; point it to a checkout", file=sys.stderr)
        return False
    home, folder = Path(place).resolve(), (out / host).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = os.environ.get("UPSTREAM_PYTHON", sys.executable)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "WANDB_MODE": "disabled"}
    environment |= {"HF_HUB_OFFLINE": "1", "LOG_FILE": str(folder / "log.jsonl"), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [home / source, REPOSITORY, REPOSITORY / "tests"]))
    with served(home, folder, environment) as url:
        prompts = tuple(playground_prompts(4))
        # On a CPU convolutions in bf16 take several times as long.
        setting = HostRun(str(shipped("wan")), prompts, url, epochs=epochs, processes=processes, mixed_precision="no")
        if host == "flow-factory":
            command = write_flow_factory(folder, setting, python)
        else:
            command = write_flow_grpo(folder, setting, home, python)
        doctor = [python, "-m", "cac_align.cli", "doctor", "--host", host, "--config", config]
        run(doctor, home, folder, environment, "doctor.txt")
        run(
            command,
            home,
            folder,
            environment,
            "host.txt",
            keep=r"no score|unscored|Num Epochs|samples per epoch|Training",
        )
    tell_ledger(folder / "ledger.jsonl")
    tell_log(folder / "log.jsonl")
    report = [CAC_ALIGN, "report", "--ledger", "ledger.jsonl", "--out", "report.html"]
    run(report, home, folder, environment, "report.txt")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host", nargs="*", default=list(HOSTS), help="flow-factory, flow_grpo (default: both)")
    parser.add_argument("--out", type=Path, default=Path("out/host_demo"))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    done = [demo(host, given.out, given.epochs, given.processes) for host in given.host]
    if not any(done):
        raise SystemExit("no host was run: name a checkout of one (docs/trainers)")


if __name__ == "__main__":
    main()
