"""Temperature and threshold of the shipped judge: fitted on generated clips that it has neither
learnt from nor is measured by.

judge folder + N clips of the small Wan → two turns → log-odds, oracle's verdicts → fit_scores →
FOLDER/cac_align.json

    python -m research.experiments.calibrate runs/cac_mean 320                        # of the video as it is
    python -m research.experiments.calibrate runs/cac_mean 320 as_is,mirrored         # of several test-time augmentations, kept beside the former; with a threshold
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cac_align.cac.augmentations import AS_IS
from cac_align.cac.judge_settings import write_temperature, write_threshold
from cac_align.evaluation.bench.fitting import CalibrationFit, fit_scores
from cac_align.rewards.cac import CaC
from cac_align.vlm.local import set_threads
from research.training.generated import held_out_clips

FIRST = 60_000_000
"""First noise seed of the clips: none of the examples', none of the held-out ones."""


def calibrate(folder: Path, clips: int, tta: tuple[str, ...] = (AS_IS,), *, model: str = "miniature") -> CalibrationFit:
    """Fit a judge's temperature, and of several augmentations the threshold, on clips of this small Wan, and keep
    both in the judge's folder. Raises ``ValueError`` where its log-odds do not tell the classes apart.
    """
    set_threads(1)
    drawn = held_out_clips(clips, model=model, first=FIRST)
    cac = CaC.load(str(folder), temperature=1.0, tta=tta, batch_size=32)
    scores = cac([clip.prompt for clip in drawn], [clip.video() for clip in drawn])
    fit = fit_scores(scores, [clip.status == "normal" for clip in drawn], num_augmentations=len(tta))
    write_temperature(folder, fit.temperature, tta)
    if fit.threshold is not None:
        write_threshold(folder, fit.threshold, tta)
    return fit


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (2, 3):
        print("usage: python -m research.experiments.calibrate FOLDER CLIPS [VIEW,VIEW,…]", file=sys.stderr)
        return 2
    tta = tuple(arguments[2].split(",")) if len(arguments) == 3 else (AS_IS,)
    fit = calibrate(Path(arguments[0]), int(arguments[1]), tta)
    print(
        f"{fit.n} clips, {fit.abnormal:.2f} broken; T = {fit.temperature}; above 0 as is right {fit.right_before:.3f}"
    )
    if fit.threshold is not None:
        print(f"threshold {fit.threshold}; above it as is right {fit.right:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
