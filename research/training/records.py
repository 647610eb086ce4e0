"""Records for the three stages that end in the judge that ships: rendered clips and clips that the
small Wan drew, in one folder.

recipe → rendered clips (the renderer's truth) + drawn clips (the oracle's) → OUT/videos/*.mp4 +
OUT/records.jsonl → cac-align data …

A drawn clip that does not follow its prompt, whose defect has no box, or whose record breaks a
convention of ``data.validate`` (a jump that the oracle saw on a single frame) is left out: its
record would say what is not so. Half of each kind is anomalous. The same call goes on with the
drawn clips where the last one ended.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from cac_align.core.encoding import write_mp4
from cac_align.data.records import Record, read_records, write_records
from cac_align.data.validate import validate
from cac_align.generation.build import GeneratorRecipe, load_generator
from cac_align.generation.wan import Wan
from cac_align.miniature.oracle.oracle import analyse
from cac_align.miniature.world.settings import PLAYGROUND, TRAIN_SEEDS
from cac_align.miniature.world.world import make_prompts, write_world
from cac_align.runs.checkpoint import claim_folder
from cac_align.runs.files import atomic_write
from cac_align.vlm.local import set_threads
from research.training.generated import HELD_OUT, anomalies_of, places_of

BATCH = 20
"""Drawn clips per call of the small Wan."""


@dataclass(frozen=True)
class Clips:
    """What to make. rendered: playground clips of world seeds ``first_seed`` on, half of them
    anomalous. drawn: clips asked of the small Wan (noise from ``seed`` on, prompts of TRAIN_SEEDS
    in turn), of which as many normal as anomalous ones are kept. model: "miniature" or a pipeline's
    folder. jobs: drawing processes.
    """

    out: str = "out/records"
    rendered: int = 2000
    first_seed: int = 810_000
    drawn: int = 2400
    seed: int = 59_000_000
    model: str = "miniature"
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.seed < HELD_OUT.stop and self.seed + self.drawn > HELD_OUT.start:
            raise ValueError(f"noise seeds {HELD_OUT.start} to {HELD_OUT.stop} are held out, received seed={self.seed}")
        if self.first_seed not in TRAIN_SEEDS or self.first_seed + self.rendered > TRAIN_SEEDS.stop:
            raise ValueError(f"first_seed: seeds of training lie in {TRAIN_SEEDS.start} to {TRAIN_SEEDS.stop - 1}")
        if self.rendered < 2 or self.rendered % 2 or self.drawn < 1 or self.jobs < 1:
            raise ValueError("expected an even number of rendered clips, at least one drawn clip and one job")


def make(recipe: Clips) -> Path:
    """The folder's ``records.jsonl``, made where it is not there yet. Raises ``ValueError`` where
    the folder belongs to another recipe.
    """
    out = Path(recipe.out)
    claim_folder(out, "records", recipe, free=("out", "jobs"))
    if (out / "records.jsonl").is_file():
        return out / "records.jsonl"
    part = out / "rendered.partial"
    if not (out / "rendered").is_dir():
        shutil.rmtree(part, ignore_errors=True)
        write_world(recipe.rendered, recipe.first_seed, part, PLAYGROUND)
        os.replace(part, out / "rendered")
    (out / "drawn").mkdir(exist_ok=True)
    starts = [first for first in range(0, recipe.drawn, BATCH) if not (out / "drawn" / f"{first:06d}.jsonl").is_file()]
    shares = [share for job in range(recipe.jobs) if (share := starts[job :: recipe.jobs])]
    if len(shares) == 1:
        _draw(recipe, starts)
    elif shares:
        with ProcessPoolExecutor(recipe.jobs, mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(_draw, recipe, share) for share in shares]:
                done.result()
    write_records(out / "records.jsonl", _all(recipe, out))
    return out / "records.jsonl"


def _all(recipe: Clips, out: Path) -> Iterator[Record]:
    for record in read_records(out / "rendered" / "records.jsonl"):
        yield replace(record, video=f"rendered/{record.video}")
    told = out / "drawn.jsonl"
    batches = sorted((out / "drawn").glob("*.jsonl"))
    atomic_write(told, "".join(batch.read_text(encoding="utf-8") for batch in batches))
    if not told.stat().st_size:
        print(f"kept none of {recipe.drawn} drawn clips: none follows its prompt", file=sys.stderr)
        return
    wrong = {violation.record for violation in validate(told).violations}
    kinds: dict[str, list[Record]] = {"normal": [], "abnormal": []}
    for record in read_records(told):
        if record.id not in wrong:
            kinds[record.status].append(record)
    drawn = 2 * min(map(len, kinds.values()))
    print(
        f"kept {drawn} of {recipe.drawn} drawn clips, half of them anomalous; {len(wrong)} break a convention, "
        f"{sum(map(len, kinds.values())) - drawn} are beyond the half, the others do not follow their prompt or have no box",
        file=sys.stderr,
    )
    for pair in zip(*kinds.values(), strict=False):
        yield from pair


def _draw(recipe: Clips, starts: Sequence[int]) -> None:
    """Draw these batches; each leaves its videos and one file of records, written last."""
    set_threads(1)
    wan = load_generator(GeneratorRecipe(model=recipe.model))
    for first in starts:
        atomic_write(
            Path(recipe.out) / "drawn" / f"{first:06d}.jsonl",
            "".join(json.dumps(record.to_json()) + "\n" for record in _batch(recipe, wan, first)),
        )
        print(f"drawn {first + BATCH} of {recipe.drawn} clips", file=sys.stderr, flush=True)


def _batch(recipe: Clips, wan: Wan, first: int) -> Iterator[Record]:
    numbers = range(first, min(first + BATCH, recipe.drawn))
    prompts = make_prompts([TRAIN_SEEDS[number] for number in numbers], PLAYGROUND)
    noises = [recipe.seed + number for number in numbers]
    for noise, prompt, video in zip(noises, prompts, wan.batch(prompts, noises), strict=True):
        result = analyse(prompt, video)
        status = result.verdict.status
        anomalies = anomalies_of(result, video.fps, video.height, video.width) if status == "abnormal" else ()
        if not all(result.verdict.follows.values()) or (status == "abnormal") != bool(anomalies):
            continue
        path = f"drawn/{noise}.mp4"
        write_mp4(Path(recipe.out) / path, video.frames(range(len(video))).pixels, video.fps)
        extra = {"noise": noise, "places": places_of(result, video.height, video.width)}
        size = len(video), video.width, video.height
        yield Record(f"drawn-{noise}", path, prompt, video.fps, *size, status, anomalies, "oracle", "audited", extra)
