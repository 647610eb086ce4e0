"""Defects made in the latent space of the small Wan: what a pair costs, and how often the oracle sees the defect.

    python -m research.experiments.injection_latent OUT [--n 36] [--injector NAME]… [--sweep]

Sources are clean playground clips with an object that can be followed. The oracle judges every twin
against the source's prompt. --sweep: the same redraws from other noise levels, instead.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from cac_align.cli.injection_models import load_models
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.data.injection.injectors import latent
from cac_align.data.injection.models import ClipLatents, Models
from cac_align.data.injection.run import SourceFile, inject
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.clips import load_clip, open_source
from cac_align.data.records import read_records
from cac_align.evaluation.pages.injection_page import write_injection_page
from cac_align.miniature.oracle.oracle import analyse
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip

FOLLOWED = (106, 124, 140, 150, 162, 172, 180, 198, 20, 224, 240, 26, 266, 298, 36, 46, 82, 84)
"""Playground seeds whose object can be followed."""


def sources(out: Path) -> list[SourceFile]:
    """The clean clips as files."""
    folder = out / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for seed in FOLLOWED:
        clip = make_clip(seed, PLAYGROUND, anomalous=False)
        write_mp4(folder / f"{seed}.mp4", clip.pixels, clip.fps)
        files.append(SourceFile(folder / f"{seed}.mp4", f"{seed}.mp4", clip.prompt))
    return files


def anomalous(prompt: str, pixels: np.ndarray, fps: float) -> bool:
    """What the oracle says about some frames."""
    return analyse(prompt, Video.open(pixels, fps=fps, layout="THWC")).verdict.status == "abnormal"


def pairs(out: Path, settings: Injection, models: Models, n: int) -> None:
    """Make ``n`` pairs; print their cost and how many twins the oracle calls anomalous."""
    files = sources(out)
    began, clock = time.process_time(), time.perf_counter()
    result = inject(files, out / "pairs", settings, n=n, seed=0, models=models)
    cpu, wall = time.process_time() - began, time.perf_counter() - clock
    print(f"{result.pairs} pairs, {60 * result.pairs / cpu:.0f} per CPU minute, {wall / result.pairs:.1f} s each")
    called = defaultdict(list)
    for record in read_records(result.records):
        video = Video.open(out / "pairs" / record.video)
        frames = video.frames(range(len(video))).pixels
        called[record.extra["injector"], record.status].append(anomalous(record.prompt, frames, video.fps))
    for (name, status), found in sorted(called.items()):
        print(f"{name}, {status} twins: {sum(found)} of {len(found)} are anomalous to the oracle")
    print(result.audit["rejected_attempts"], result.audit["shortcut_auc"])
    print(write_injection_page(out / "pairs", result.records, result.audit))


def sweep(out: Path, settings: Injection, models: Models, clips: int = 12) -> None:
    """Redraw the first clips from rising noise levels; print how many of them the oracle calls anomalous."""
    assert models.redrawer is not None
    levels = models.redrawer.noise_levels
    called = defaultdict(list)
    for file in sources(out)[:clips]:
        clip, _ = load_clip(open_source(file.path, settings), 0.5, settings, file.prompt)
        latents = ClipLatents(models.redrawer)
        for wanted in (0.8, 0.9, 0.94, 0.97, 1.0):
            level = min(levels, key=lambda level: abs(level - wanted))
            latent.DEFECT_NOISE = (level, level)
            edit = latent.redraw(latents, clip, np.random.default_rng(5), 1.0)
            called[level].append(anomalous(file.prompt, edit.anomalous, clip.fps))
    for level, found in called.items():
        print(f"noise level {level:.3f}: {sum(found)} of {len(found)} are anomalous to the oracle")


def main() -> None:
    """Parse the options, run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=36)
    parser.add_argument("--injector", action="append", default=[])
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    settings = Injection(
        tiers=["gpu"], wan="miniature", device="cpu", injectors=options.injector, seconds=1.0, min_seconds=1.0,
        short_side=64, judge_short_side=64, hard_normals=0.0,
    )  # fmt: skip
    models = load_models(settings)
    if options.sweep:
        sweep(options.out, settings, models)
    else:
        pairs(options.out, settings, models, options.n)


if __name__ == "__main__":
    main()
