"""Runs that are killed, meet each other, or meet a full disk: the same command ends in the same state.

A run is a forked child of a process that has loaded everything, so that a kill costs the run and not the imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score

LIMIT_S = 120.0
_FULL = "(the disk is full|a file may not grow to the size that it needs)"
_SENTENCE = (
    r"cac-align [a-z0-9 -]+: ({disk}\S*|the output): " + _FULL + r" \(\d+ bytes .*; .* resume with: cac-align .*"
)
Outcome = tuple[str, str | None]  # (what was done, why it failed; None where it held)


class Generator:
    """Grey videos; the level follows from prompt and seed."""

    def __call__(self, prompt: str, seed: int) -> Video:
        level = int(hashlib.sha256(f"{prompt} {seed}".encode()).hexdigest(), 16) % 200
        return Video.open(np.full((4, 16, 16, 3), level, np.uint8), fps=16, name=f"{prompt} {seed}")


class Level:
    """The level of a grey video."""

    name, bounds = "level", (0.0, 2.55)

    @property
    def provenance(self) -> dict[str, str]:
        return {"reward": "level"}

    def __call__(self, prompts: Any, videos: Any) -> list[Score]:
        return [Score(round(float(video.frames([0]).pixels.mean())) / 100) for video in videos]


@dataclass(frozen=True)
class Verb:
    """A verb that resumes: its command line for an out folder, and the state in which it must end."""

    name: str
    command: Callable[[Path, Path], list[str]]
    state: Callable[[Path], Any]
    # Whether it goes on where it was killed.
    resumes: bool = False
    # The file in the out folder that takes what it prints.
    prints_to: str = ""
    # Whether it serves until Ctrl-C, which it then gets as soon as it does.
    serves: bool = False


def start(
    arguments: list[str],
    log: Path | int,
    *,
    printed: Path | None = None,
    serves: bool = False,
    file_bytes: int | None = None,
) -> int:
    """``cac-align`` with these arguments in a forked child; returns its process id.

    log: a file, or the descriptor of a pipe. printed: takes its standard output in place of ``log``. file_bytes: no file grows beyond it.
    """
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        for number, path in ((1, printed or log), (2, log)):
            opened = path if isinstance(path, int) else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(opened, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        from tqdm import tqdm

        from cac_align.cli.main import main

        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with the siblings, and a killed one keeps it
        if serves:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell has none
            threading.Thread(target=_interrupt_when_serving, daemon=True).start()
        if file_bytes is not None:
            limit_file_size(file_bytes)
        status = main(arguments)
    except BaseException:
        traceback.print_exc()
        status = 98
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _interrupt_when_serving() -> None:
    while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)


def wait(child: int, seconds: float) -> int | None:
    """The exit status (negative: the signal), or None where it still runs after ``seconds``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def limit_file_size(most: int) -> None:
    """Let no file of this process grow beyond ``most`` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def run(verb: Verb, out: Path, folder: Path, log: Path, *, file_bytes: int | None = None) -> int:
    """Run a verb to the end; a run that does not end is killed, and its status is -9."""
    printed = out / verb.prints_to if verb.prints_to else None
    if printed is not None:
        out.mkdir(parents=True, exist_ok=True)
        printed.unlink(missing_ok=True)
    arguments = verb.command(out, folder)
    with open(log, "ab") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as pipe:
        assert pipe.stdin is not None  # what a limited process writes to a pipe is not limited
        child = start(arguments, pipe.stdin.fileno(), printed=printed, serves=verb.serves, file_bytes=file_bytes)
        status = wait(child, LIMIT_S)
        if status is None:
            kill(child)
            status = -9
    return status


# ---- the verbs ------------------------------------------------------------------------------------------------------


def _tensors(path: Path) -> dict[str, str]:
    from safetensors.numpy import load_file

    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in load_file(path).items()}


def _losses(out: Path) -> list[Any]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def _scores(out: Path) -> dict[str, Any]:
    ledger = Ledger(out / "ledger.jsonl", write=False)
    kept = {row["key"]: row["score"] for row in ledger.rows() if row["kind"] == "score"}
    return kept | {"faults": ledger.faults}


def _best_of_n_state(out: Path) -> Any:
    rows = [json.loads(line) for line in (out / "selection.jsonl").read_text().splitlines()]
    videos = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "videos").iterdir()}
    return [(row["prompt"], row["chosen"], row["scores"]) for row in rows], videos, _scores(out)


def _align_state(out: Path) -> Any:
    return _tensors(out / "lora" / "pytorch_lora_weights.safetensors"), _losses(out), _scores(out)


def _train_state(out: Path) -> Any:
    return _tensors(out / "final" / "model.safetensors"), _losses(out)


def _synthesis_state(out: Path) -> Any:
    attempts = [json.loads(line) for line in (out / "attempts.jsonl").read_text().splitlines()]
    texts = sorted((row["record"], row["task"], row["text"]) for row in attempts)
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    # A record names its video relative to the folder, and not every run lies equally deep.
    return (out / "chains.jsonl").read_text(), [{**row, "video": Path(row["video"]).name} for row in records], texts


def _injection_state(out: Path) -> Any:
    rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    clips = {row["video"]: hashlib.sha256((out / row["video"]).read_bytes()).hexdigest() for row in rows}
    return rows, clips, (out / "rejected.jsonl").read_text()


def _repair_state(out: Path) -> Any:
    rows = [json.loads(line) for line in (out / "repairs.jsonl").read_text().splitlines()]
    videos = {str(path.relative_to(out)): path for path in out.glob("**/*.mp4")}
    mended = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in videos.items()}
    attempts = [json.loads(line) for line in (out / "attempts.jsonl").read_text().splitlines()]
    kept = [(row["video"], row["attempt"], row.get("score"), row.get("accepted")) for row in attempts]
    return [(Path(row["video"]).name, row["status"], row["before"]) for row in rows], mended, sorted(map(str, kept))


@dataclass
class TopLeft:
    """A reward that dislikes the upper left of every video, by a score that is a function of its content."""

    name: str = "top left"
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def provenance(self) -> dict[str, str]:
        return {"reward": self.name}

    def __call__(self, prompts: Any, videos: Any) -> list[Score]:
        from cac_align.core.judgement import Anomaly, Box, Judgement, Window

        boxes = {index: (Box(0, 0, 500, 500),) for index in (2, 3)}
        found = Judgement("abnormal", (Anomaly("Object Distortion", Window(0.1, 0.3), boxes=boxes),))
        return [Score(int(video.content_hash[:8], 16) / 2**33, evidence=found) for video in videos]


def verbs(folder: Path) -> list[Verb]:
    """The verbs on inputs of their own in ``folder``; loads everything that the children need."""
    from omegaconf import OmegaConf

    import cac_align.align.trainer
    import cac_align.cli.data
    import cac_align.generation.best_of_n
    import cac_align.miniature.teacher.ground_truth
    import cac_align.rewards.build
    import cac_align.rewards.cac
    import cac_align.training.sft  # noqa: F401
    from cac_align.miniature.world.settings import World
    from cac_align.miniature.world.world import write_world
    from tests.support import tiny_flow, tiny_stage

    model = tiny_flow.write_wan(folder / "wan")
    recipes = {
        "align": tiny_flow.recipe(model, folder / "none", ema_decay=0.5),
        "align (DiffusionNFT)": tiny_flow.recipe(model, folder / "none", objective="nft", nft_decay=0.5),
    }
    for name, recipe in recipes.items():
        OmegaConf.save(OmegaConf.structured(recipe), folder / f"{name}.yaml")
    tiny_stage.model_folder(folder / "model")
    tiny_stage.data_folder(folder / "data")
    (folder / "stage2.yaml").write_text("stage: 2\n")
    world = write_world(6, 1_430_004, folder / "world", World(num_frames=(17,), length_weights=()))
    sources = folder / "sources"
    sources.mkdir()
    for number in range(3):
        write_mp4(sources / f"{number}.mp4", _crossing(number), 16.0)
    inject = ["data", "inject", str(sources), "--n", "4", "--workers", "2", "--set", "tiers=[core]"]
    clips = folder / "clips"
    clips.mkdir()
    for number in range(2):
        write_mp4(clips / f"{number}.mp4", _crossing(number, (9, 64, 64)), 8.0)
    (folder / "repair.yaml").write_text(
        f"generator: {{model: {model}, num_inference_steps: 4}}\nrepair: {{attempts: 3}}\n"
        f"reward: {{components: {{a: {{kind: '{__name__}:TopLeft'}}}}}}\n"
        f"guard: {{components: {{b: {{kind: '{__name__}:Level'}}}}}}\n"
    )
    repair = ["repair", str(clips), "--prompt", "a ball", "--recipe", str(folder / "repair.yaml")]
    return [
        best_of_n(folder),
        *(
            Verb(
                name,
                lambda out, tmp, name=name: ["align", str(folder / f"{name}.yaml"), "--set", f"out={out}"],
                _align_state,
                resumes=True,
            )
            for name in recipes
        ),
        Verb("data inject", lambda out, tmp: [*inject, "--out", str(out)], _injection_state, resumes=True),
        Verb("repair", lambda out, tmp: [*repair, "--out", str(out)], _repair_state, resumes=True),
        Verb("train stage2", lambda out, tmp: train_command(folder, 2, out), _train_state, resumes=True),
        Verb(
            "data synthesise",
            lambda out, tmp: [
                "data",
                "synthesise",
                str(world),
                "--teacher",
                "miniature",
                "--out",
                str(out),
                "--set",
                "workers=2",
            ],
            _synthesis_state,
            resumes=True,
        ),
    ]


def _crossing(seed: int, shape: tuple[int, int, int] = (33, 96, 128)) -> Any:
    """A square that crosses a textured ground: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    frames, height, width = shape
    pixels = np.repeat(rng.integers(90, 120, (1, height, width, 3), np.uint8), frames, 0)
    side = height // 5
    for t in range(frames):
        left = 4 + round(t * (width - side - 8) / frames)
        pixels[t, height // 3 : height // 3 + side, left : left + side] = rng.integers(180, 230)
    return pixels


def best_of_n(folder: Path) -> Verb:
    """The verb on grey videos, with files of its own in ``folder``."""
    import cac_align.generation.best_of_n
    import cac_align.rewards.build  # noqa: F401

    (folder / "prompts.txt").write_text("".join(f"prompt {number}\n" for number in range(12)))
    (folder / "best.yaml").write_text(f"generator: {{model: '{__name__}:Generator'}}\n")
    given = [
        "--prompts",
        str(folder / "prompts.txt"),
        "--recipe",
        str(folder / "best.yaml"),
        "--reward",
        f"{__name__}:Level",
    ]
    return Verb(
        "best-of-n",
        lambda out, tmp: ["best-of-n", *given, "--n", "4", "--out", str(out)],
        _best_of_n_state,
        resumes=True,
    )


def train_command(folder: Path, stage: int, out: Path) -> list[str]:
    """The command line of a training stage on ``tiny_stage``'s model and data in ``folder``."""
    values = [
        f"out={out}",
        f"model.path={folder / 'model'}",
        f"data.folder={folder / 'data'}",
        f"data.samples=stage{stage}.jsonl",
    ]
    values += ["micro_batch=2", "data.wording=brief", "data.held_out=0.3", "run.cpu=true"]
    values += ["run.save_every=1", "run.warmup_steps=1", "run.lr=1e-3"]
    if stage == 3:
        values += ["batch=2", "rollout_videos=2", "eval_videos=2", "rollout.group_size=4", "rollout.max_new_tokens=4"]
        values += ["run.steps=2", "run.eval_every=2"]
    else:
        values += ["batch=4", "lora_rank=0", "run.steps=8", "run.eval_every=4"]
    recipe = str(folder / f"stage{stage}.yaml")
    return ["train", f"stage{stage}", recipe, *(word for value in values for word in ("--set", value))]


@dataclass
class Reference:
    """What an undisturbed run leaves, and how long it takes."""

    verb: Verb
    state: Any
    seconds: float
    # Bytes of whole pages of 4096 that its files take, and the size of the largest.
    size: int
    largest: int


def reference(verb: Verb, folder: Path) -> Reference:
    """Run a verb undisturbed. Raises ``RuntimeError`` with its output where it does not end well."""
    out, log = folder / "reference", folder / "reference.log"
    began = time.monotonic()
    status = run(verb, out, folder, log)
    if status not in (0, 1):
        raise RuntimeError(f"{verb.name} ended with {status}: {log.read_text()[-1500:]}")
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return Reference(
        verb, verb.state(out), time.monotonic() - began, sum(-(-size // 4096) * 4096 for size in sizes), max(sizes)
    )


def _last(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-3:])[-400:]


def _differs(made: Reference, out: Path) -> str | None:
    try:
        state = made.verb.state(out)
    except Exception as error:
        return f"the final state cannot be read: {type(error).__name__}: {error}"
    return None if state == made.state else "the final state is another one"


# ---- what is done to them -------------------------------------------------------------------------------------------


def killed(made: Reference, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Kill a run up to four times, then let it end; every kill is an outcome."""
    out, log = folder / "out", folder / "log"
    for path in (out, log):
        shutil.rmtree(path, ignore_errors=True)
    log.unlink(missing_ok=True)
    moments = []
    for _ in range(rng.randint(1, 4)):
        child = start(made.verb.command(out, folder), log)
        moment = rng.uniform(0, 1.1 * made.seconds)
        if wait(child, moment) is not None:
            break
        kill(child)
        moments.append(moment)
    status = run(made.verb, out, folder, log)
    why = f"ended with {status}: {_last(log)}" if status not in (0, 1) else _differs(made, out)
    at = ", ".join(f"{moment:.2f}" for moment in moments)
    yield from (
        (f"{made.verb.name}: SIGKILL at {at} s", why if number == 0 else None) for number in range(len(moments))
    )


def two_at_once(made: Reference, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Two processes with one command and folder; one may be killed. Then the command runs again."""
    out, log = folder / "out", folder / "log"
    shutil.rmtree(out, ignore_errors=True)
    log.unlink(missing_ok=True)
    first = start(made.verb.command(out, folder), log)
    time.sleep(rng.uniform(0, 0.5 * made.seconds))
    second = start(made.verb.command(out, folder), log)
    why = None
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, 0.5 * made.seconds))
        kill(first)
    else:
        why = None if wait(first, LIMIT_S) in (0, 1, 2) else f"the first one: {_last(log)}"
    if wait(second, LIMIT_S) not in (0, 1, 2):
        why = why or f"the second one: {_last(log)}"
    status = run(made.verb, out, folder, log)
    why = why or (f"ended with {status}: {_last(log)}" if status not in (0, 1) else _differs(made, out))
    why = why or ("a traceback was printed" if "Traceback" in log.read_text(errors="replace") else None)
    yield f"{made.verb.name}: two at once", why


def can_mount() -> bool:
    """Whether this process may mount a tmpfs."""
    return sys.platform == "linux" and os.geteuid() == 0 and _probe_mount()


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _probe_mount() -> bool:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        if not _mount(Path(folder), 4096):
            return False
        _libc().umount2(folder.encode(), 2)
        return True


def _mount(folder: Path, size: int, *, remount: bool = False) -> bool:
    return _libc().mount(b"none", str(folder).encode(), b"tmpfs", 32 * remount, f"size={size}".encode()) == 0


def disk_full(made: Reference, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """A disk that is too small: one sentence, nothing half written; with more space the same command ends well."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    free = 4096 * int(rng.uniform(0, 0.9) * made.size / 4096)
    if not _mount(disk, free + 4096):
        raise RuntimeError("no tmpfs could be mounted")
    try:
        (disk / "filler").write_bytes(bytes(4096))
        enlarge = partial(_mount, disk, 2**30, remount=True)
        yield from _until_full(made, disk, folder, f"{free} bytes are free", enlarge)
    finally:
        _libc().umount2(str(disk).encode(), 2)


def files_limited(made: Reference, folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """As ``disk_full`` where nothing can be mounted: no file may grow beyond a size."""
    out = folder / "limited"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    most = rng.choice([0, made.largest // 2, made.largest - 1])
    yield from _until_full(made, out, folder, f"files of {most} bytes at most", lambda: None, file_bytes=most)


def _until_full(
    made: Reference, disk: Path, folder: Path, what: str, enlarge: Callable[[], Any], *, file_bytes: int | None = None
) -> Iterator[Outcome]:
    out, log = disk / "out", folder / "log"
    log.unlink(missing_ok=True)
    status, why = run(made.verb, out, folder, log, file_bytes=file_bytes), None
    text = log.read_text(errors="replace")
    left = [path.name for path in disk.rglob(".*") if path.name.endswith(".part")]
    if status in (0, 1):
        return  # there was room enough after all
    if "Traceback" in text or "Exception ignored" in text or status not in (2, 3):
        why = f"a traceback, exit status {status}: {_last(log)}"
    elif not re.fullmatch(_SENTENCE.format(disk=re.escape(str(disk))), text.splitlines()[-1]):
        why = f"the sentence does not name path, space and command: {_last(log)}"
    elif left:
        why = f"left behind: {left}"
    enlarge()
    status = run(made.verb, out, folder, log)
    if status not in (0, 1):
        why = f"does not resume with more space: {_last(log)}" + (f"; before: {why}" if why else "")
    elif (other := _differs(made, out)) is not None:
        why = f"{other} after more space" + (f"; before: {why}" if why else "")
    yield f"{made.verb.name}: {what}", why


# ---- ledger writers -------------------------------------------------------------------------------------------------


def ledger_writers(folder: Path, rng: random.Random) -> Iterator[Outcome]:
    """Four processes append to one ledger and two are killed: every row that a writer reported is found."""
    path = folder / f"ledger-{rng.random()}.jsonl"
    reports = [folder / f"{path.stem}-{number}.txt" for number in range(4)]
    children = []
    for number, report in enumerate(reports):
        child = os.fork()
        if not child:
            try:
                _write_rows(path, report, number)
            finally:
                os._exit(0)
        children.append(child)
    time.sleep(rng.uniform(0.1, 0.8))
    for child in children:
        kill(child)
        time.sleep(rng.uniform(0, 0.1))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {row["prompt"]: row["score"] for row in Ledger(path).rows()}
    lost = num = 0
    for report in reports:
        whole = report.read_text().split("\n")[:-1] if report.exists() else []
        num += len(whole)
        lost += sum(found.get(line) != len(line) / 100 for line in whole)
    yield f"{num} rows by 4 writers", f"{lost} of {num} reported rows are lost" if lost else None


def _write_rows(path: Path, report: Path, number: int) -> None:
    from cac_align.rewards.cached import cached

    class Length(Level):
        def __call__(self, prompts: Any, videos: Any) -> list[Score]:
            return [Score(len(prompt) / 100) for prompt in prompts]

    reward = cached(Length(), Ledger(path))
    video = Generator()("p", number)
    with open(report, "w") as file:
        for row in range(100_000):
            prompts = [f"{number} {row} {k} " + "x" * (row * 37 % 5000) for k in range(1 + row % 3)]
            reward(prompts, [video] * len(prompts))
            file.write("".join(prompt + "\n" for prompt in prompts))
            file.flush()
