"""The temperature of the shipped judge: fitted on generated clips that it has neither learnt from nor is measured by.

judge folder + N clips of the small Wan → two turns → log-odds, oracle's verdicts → fit_temperature → FOLDER/cac_align.json

    python -m cac_align.miniature.calibrate runs/cac_mean 320                        # of the video as it is
    python -m cac_align.miniature.calibrate runs/cac_mean 320 as_is,mirrored         # of the mean over views, kept beside the former
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.views import AS_IS
from cac_align.evaluation.calibration import fit_temperature
from cac_align.miniature.generated import held_out_clips
from cac_align.rewards.cac import CaC
from cac_align.vlm.local import set_threads

FIRST = 60_000_000
"""First noise seed of the clips: behind those of the lessons, before the held-out ones."""


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (2, 3):
        print("usage: python -m cac_align.miniature.calibrate FOLDER CLIPS [VIEW,VIEW,…]", file=sys.stderr)
        return 2
    views = tuple(arguments[2].split(",")) if len(arguments) == 3 else (AS_IS,)
    set_threads(1)
    folder, clips = Path(arguments[0]), held_out_clips(int(arguments[1]), first=FIRST)
    settings = TwoTurn(wording="brief", max_new_tokens=400)
    cac = CaC.load(str(folder), settings=settings, temperature=1.0, views=views, batch_size=32)
    judged = zip(clips, cac([clip.prompt for clip in clips], [clip.video() for clip in clips]), strict=True)
    rows = [(score.parts["log_odds"], clip.status == "normal") for clip, score in judged if score.scored]
    temperature = round(fit_temperature(*zip(*rows, strict=True)), 3)
    file = folder / "cac_align.json"
    if views == (AS_IS,):
        fitted = {"temperature": temperature}  # the first of a judge: what was fitted for views belongs to former weights
    else:
        fitted = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        fitted.setdefault("of_views", {})[", ".join(views)] = temperature
    file.write_text(json.dumps(fitted) + "\n", encoding="utf-8")
    odds, normal = (np.array(column) for column in zip(*rows, strict=True))
    print(
        f"{len(rows)} clips, {1 - normal.mean():.2f} broken; T = {temperature}; verdicts right {((odds > 0) == normal).mean():.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
