"""Does a small judge that learnt defects by injection alone find those of a generator? The tables of docs/injection.md.

    python -m research.experiments.injection_transfer OUT [--steps 100] [--seed 0] [--arms injected exact …]
    python -m research.experiments.injection_transfer OUT --best-of-five ARM      # the demo with that arm's judge

clean clips (renderer, small Wan) → data inject → records ┐
renderer's own truth → records                            ├→ synthesise → stage 2 from ``start`` → held-out clips
clips of the small Wan that the oracle labelled → records ┘    of the small Wan, judged by the oracle → table

``start`` is the shipped judge after lessons whose verdicts have nothing to do with the video: it can
still write answers, and its verdict is (nearly) a coin. Every step is skipped where its result lies
in OUT. The plan is in docs/injection.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.core.weights import shipped
from cac_align.data.injection.run import SourceFile, inject
from cac_align.data.injection.settings import Injection
from cac_align.data.records import Record, read_records, write_records
from cac_align.data.synthesis.settings import Synthesis
from cac_align.data.synthesis.synthesise import synthesise
from cac_align.evaluation.bench.localisation import GRID_FPS, localisation_ious
from cac_align.generation.build import GeneratorRecipe, load_generator
from cac_align.miniature.demo import demo
from cac_align.miniature.oracle.oracle import analyse
from cac_align.miniature.teacher.ground_truth import GroundTruth
from cac_align.miniature.world.settings import PLAYGROUND, TRAIN_SEEDS
from cac_align.miniature.world.world import make_clip, make_prompts
from cac_align.rewards.build import load_reward
from cac_align.rewards.cac import CaC
from cac_align.training.policy import ModelRecipe
from cac_align.training.run import RunConfig
from cac_align.training.samples import DataRecipe
from cac_align.training.sft import SftRecipe, train_sft
from cac_align.vlm.local import set_threads
from research.training.generated import HELD_OUT, DrawnClip, anomalies_of, held_out_clips

RENDERED = 1500
"""Clean rendered clips that are offered to the injection: of 33 frames, in which a thing travels further than its size."""
TRAVELS = ("slides", "rolls", "rises")
DRAWN = 700
"""Clips asked of the small Wan: clean ones are sources, and 300 labelled ones the "human finish"."""
PAIRS = 400
LABELLED = 300
TESTED = 400
FIRST = TRAIN_SEEDS[700_000]
NOISE = 61_000_000
TEST_NOISE = HELD_OUT[700_000]
SMALL = Injection(tiers=["core"], seconds=1.0, min_seconds=1.0, short_side=64, judge_short_side=64, hard_normals=0.1)
DATA = {
    "forget": ("shuffled",),
    "injected": ("injected",),
    "exact": ("exact",),
    "finished": ("injected", "labelled"),
    "labelled": ("labelled",),
    "in_turn": ("labelled",),
}
"""What each arm learns from. Each but ``forget`` starts from its result, and ``in_turn`` from that of ``injected``."""


def _once(path: Path, make: Callable[[], Any]) -> Path:
    """``path``, made by ``make`` where it is not there yet."""
    if not path.exists():
        make()
    return path


# ---- clips and records ---------------------------------------------------------------------------------------------


def draw_clips(out: Path) -> Path:
    """Clips of the small Wan with the oracle's annotations, as records; those that do not follow their prompt are
    left out.
    """

    def make() -> None:
        wan = load_generator(GeneratorRecipe(model="miniature"))
        records = []
        (out / "drawn").mkdir(parents=True, exist_ok=True)
        for first in range(0, DRAWN, 20):
            numbers = range(first, min(first + 20, DRAWN))
            prompts = make_prompts([FIRST + 100_000 + number for number in numbers], PLAYGROUND)
            videos = wan.batch(prompts, [NOISE + number for number in numbers])
            for number, prompt, video in zip(numbers, prompts, videos, strict=True):
                result = analyse(prompt, video)
                status = result.verdict.status
                anomalies = anomalies_of(result, video.fps, video.height, video.width) if status == "abnormal" else ()
                if not all(result.verdict.follows.values()) or (status == "abnormal") != bool(anomalies):
                    continue
                path = f"drawn/{number:04d}.mp4"
                write_mp4(out / path, video.frames(range(len(video))).pixels, video.fps)
                size = len(video), video.width, video.height
                records.append(
                    Record(
                        f"drawn-{number}", path, prompt, video.fps, *size, status, anomalies, "oracle", "audited", {}
                    )
                )
        write_records(out / "drawn.jsonl", records)

    return _once(out / "drawn.jsonl", make)


def render_clips(out: Path) -> list[SourceFile]:
    """Clean clips of the playground as files, twice as long as the lessons: the injection cuts one second out, and sees
    the background behind a thing in the other.
    """
    files = []
    (out / "sources").mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST, FIRST + 2 * RENDERED):
        path = out / "sources" / f"{seed}.mp4"
        (prompt,) = make_prompts([seed], PLAYGROUND)
        if not any(motion in prompt for motion in TRAVELS) or len(files) == RENDERED:
            continue
        if not path.exists():
            clip = make_clip(seed, replace(PLAYGROUND, num_frames=(33,)), anomalous=False)
            write_mp4(path, clip.pixels, clip.fps)
            path.with_suffix(".txt").write_text(clip.prompt, encoding="utf-8")
        files.append(SourceFile(path, path.name, path.with_suffix(".txt").read_text(encoding="utf-8")))
    return files


def rendered_pairs(out: Path, name: str) -> Iterator[Record]:
    """Pairs by the renderer's truth, or (``shuffled``) the same four clips under each of the four verdicts."""
    folder = out / name
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for seed in range(FIRST + 50_000, FIRST + 50_000 + (PAIRS if name == "exact" else PAIRS // 4)):
        clip = make_clip(seed, PLAYGROUND, anomalous=True)
        normal = replace(clip, pixels=clip.normal_pixels, status="normal", anomalies=())
        shown = {"abnormal": clip, "normal": normal}
        for kind, one in shown.items():
            write_mp4(folder / f"videos/{seed}-{kind}.mp4", one.pixels, one.fps)
        for kind in shown:
            for told in ("abnormal", "normal") if name == "shuffled" else (kind,):
                record = shown[told].record(f"videos/{seed}-{kind}.mp4")
                yield replace(record, id=f"{seed}-{kind}-{told}", extra={})


def records_of(out: Path, name: str) -> Path:
    """The records file of one kind of lessons."""
    if name == "injected":

        def make() -> None:
            drawn = [r for r in read_records(draw_clips(out)) if r.status == "normal"]
            sources = [SourceFile(out / r.video, f"drawn-{Path(r.video).name}", r.prompt) for r in drawn]
            inject([*render_clips(out), *sources], out / name, SMALL, n=PAIRS, seed=0, workers=1, progress=_told)

        return _once(out / name / "records.jsonl", make)
    if name == "labelled":

        def write_labelled() -> None:
            rows = list(read_records(draw_clips(out)))
            kinds = [[r for r in rows if r.status == status][: LABELLED // 2] for status in ("normal", "abnormal")]
            write_records(out / "labelled.jsonl", [record for kind in kinds for record in kind])

        return _once(out / "labelled.jsonl", write_labelled)
    return _once(
        out / name / "records.jsonl",
        lambda: write_records(out / name / "records.jsonl", list(rendered_pairs(out, name))),
    )


def _told(pairs: int, counts: Any) -> None:
    if pairs % 50 == 0:
        print(pairs, dict(counts), flush=True)


def chains_of(out: Path, name: str) -> Path:
    """Chains of thought from the records' own truth, in the miniature's wording."""
    records = [replace(record, extra={}) for record in read_records(records_of(out, name))]
    folder, root = out / "chains" / name, records_of(out, name).parent

    def make() -> None:
        report = synthesise(records, root, GroundTruth(records), folder, Synthesis(wording="brief", workers=1))
        print(name, json.dumps(report), flush=True)

    _once(folder / "chains.jsonl", make)
    return folder


# ---- training and judging ------------------------------------------------------------------------------------------


def mixed_folder(out: Path, names: Sequence[str]) -> Path:
    """One folder of records and chains of several kinds of lessons."""
    folders = [chains_of(out, name) for name in names]
    if len(folders) == 1:
        return folders[0]
    mixed = out / "chains" / "+".join(names)
    mixed.mkdir(parents=True, exist_ok=True)
    for file in ("records.jsonl", "chains.jsonl"):
        text = "".join((folder / file).read_text(encoding="utf-8") for folder in folders)
        (mixed / file).write_text(text, encoding="utf-8")
    return mixed


def train(out: Path, arm: str, steps: int, seed: int) -> Path:
    """The weights of an arm after stage 2."""
    folder = out / "runs" / f"{arm}-{steps}-{seed}"
    before = f"injected-{steps}-{seed}" if arm == "in_turn" else "forget-60-0"
    start = shipped("cac") if arm == "forget" else out / "runs" / before / "final"
    recipe = SftRecipe(
        stage=2, out=str(folder), batch=32, micro_batch=32, lora_rank=0, eval_batches=2,
        model=ModelRecipe(path=str(start)),
        data=DataRecipe(
            folder=str(mixed_folder(out, DATA[arm])), samples="chains.jsonl", wording="brief", margin_s=0.25
        ),
        run=RunConfig(
            steps=steps, warmup_steps=10, lr=5e-4, min_lr_ratio=0.05, weight_decay=0.02, save_every=50,
            eval_every=50, log_every=10, threads=1, cpu=True, seed=seed,
        ),
    )  # fmt: skip
    return _once(folder / "final", lambda: train_sft(recipe))


@cache
def tested_clips() -> list[DrawnClip]:
    """The clips that every judge is tested on; drawn once per call of this module."""
    return held_out_clips(TESTED, first=TEST_NOISE)


def judged(out: Path, name: str, weights: Path) -> list[dict[str, Any]]:
    """The held-out clips under one judge: R's log-odds, verdict, and how far windows and boxes are right."""
    path = out / "judged" / f"{name}.jsonl"

    def make() -> None:
        clips, rows = tested_clips(), []
        judge = replace(CaC.load(str(weights)), threshold=0.0)
        for clip, score in zip(clips, judge([c.prompt for c in clips], [c.shown for c in clips]), strict=True):
            judgement = score.evidence if score.scored else None
            verdict = None if judgement is None else judgement.status
            row = {"prompt": clip.prompt, "truth": clip.status, "verdict": verdict, "log_odds": None}
            row["types"] = sorted({anomaly.type for anomaly in clip.anomalies})
            if score.scored:
                row["log_odds"] = score.parts["log_odds"]
            if judgement is not None and verdict == "abnormal" and clip.anomalies:
                times = [clip.shown.times_s[index] for index in clip.shown.indices_at(GRID_FPS)]
                found = localisation_ious(clip.anomalies, judgement, times)
                row |= {"tIoU": found.temporal, "sIoU": found.spatial}
            rows.append(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    _once(path, make)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """AUROC of the log-odds, recall, false alarms and localisation, of the clips with a score (shares)."""
    scored = [row for row in rows if row["log_odds"] is not None]
    normal, broken = ([r for r in scored if r["truth"] == truth] for truth in ("normal", "abnormal"))
    found = {"no score": 1 - len(scored) / len(rows)}
    if normal and broken:
        high, low = (np.array([r["log_odds"] for r in part]) for part in (normal, broken))
        wins = (high[:, None] > low[None]).mean() + 0.5 * (high[:, None] == low[None]).mean()
        found |= {"AUROC": float(wins)}
        for name, part in (("recall", broken), ("false alarms", normal)):
            found[name] = float(np.mean([r["verdict"] == "abnormal" for r in part]))
        for kind in PLAYGROUND.types:
            if own := [r for r in broken if kind in r["types"]]:
                found[f"recall {kind}"] = float(np.mean([r["verdict"] == "abnormal" for r in own]))
    for name in ("tIoU", "sIoU"):
        if values := [row[name] for row in rows if row.get(name) is not None]:
            found[name] = float(np.mean(values))
    return found


def bootstrap(parts: Sequence[Sequence[dict[str, Any]]], measure: Callable[..., float]) -> tuple[float, float]:
    """95 % of ``measure(*parts)`` over draws of prompts; the parts hold the same clips in the same order."""
    prompts = sorted({row["prompt"] for row in parts[0]})
    of = {prompt: [i for i, row in enumerate(parts[0]) if row["prompt"] == prompt] for prompt in prompts}
    rng, values = np.random.default_rng(0), []
    for _ in range(400):
        drawn = [i for n in rng.integers(len(prompts), size=len(prompts)) for i in of[prompts[n]]]
        values.append(measure(*([part[i] for i in drawn] for part in parts)))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def best_of_five(out: Path, arm: str, steps: int, seed: int) -> None:
    """``cac-align demo --prompts 40 --seed 100000`` with UnifiedReward and this arm's judge."""
    model = out / "runs" / f"{arm}-{steps}-{seed}" / "final"
    reward = load_reward("recipes/reward/miniature_tta.yaml", [f"components.cac.model={model}"])
    for line in demo(out / "best_of_five" / arm, num_prompts=40, seed=100_000, reward=reward):
        print(line, flush=True)


def main() -> None:
    """Print one line per judge, and the differences that the plan names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", default=["injected", "exact", "finished", "labelled"])
    parser.add_argument("--best-of-five", metavar="ARM")
    options = parser.parse_args()
    set_threads(1)
    if options.best_of_five:
        best_of_five(options.out, options.best_of_five, options.steps, options.seed)
        return
    start = train(options.out, "forget", 60, 0)
    rows = {"shipped": judged(options.out, "shipped", shipped("cac")), "start": judged(options.out, "start", start)}
    for arm in options.arms:
        weights = train(options.out, arm, options.steps, options.seed)
        rows[arm] = judged(options.out, f"{arm}-{options.steps}-{options.seed}", weights)
    for name, found in rows.items():
        low, high = bootstrap([found], lambda part: figures(part).get("AUROC", float("nan")))
        print(name, f"AUROC 95 % [{low:.3f}, {high:.3f}]", {k: round(v, 3) for k, v in figures(found).items()})
    for one, other in (
        ("injected", "start"),
        ("exact", "injected"),
        ("finished", "injected"),
        ("finished", "labelled"),
        ("in_turn", "labelled"),
    ):
        if one in rows and other in rows:
            for key in ("AUROC", "recall", "false alarms"):

                def change(a: Any, b: Any, key: str = key) -> float:
                    return figures(a)[key] - figures(b)[key]

                low, high = bootstrap([rows[one], rows[other]], change)
                print(f"{one} - {other}: {key} {change(rows[one], rows[other]):+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
