"""What moves the reward and must not: another codec, size, brightness, rate tag, a mirror, a sham edit.

clean clip → the same clip with a change that is no defect → how far the reward moves, against a defect's drop
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.evaluation.audit.asking import Asker, AuditQuestion
from cac_align.evaluation.audit.pairs import AuditPair, mirrored_prompt, mirrored_video, pixels_of, same_clock
from cac_align.evaluation.statistics import NO_ESTIMATE, Estimate, mean_interval


@dataclass(frozen=True)
class Nuisance:
    """``change``: mean of |changed − clean|. ``shift``: mean of changed − clean. ``share_of_drop``:
    the change as a share of the mean drop that a defect causes; None where that is no drop.
    ``unscored``: clips without one of the two scores, as where a judge refuses another rate.
    """

    change: Estimate
    shift: float | None
    share_of_drop: float | None
    unscored: int


def recompressed(video: Video) -> Video:
    """Through H.264 (crf 12), which nobody sees."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, pixels_of(video), video.fps)
        return same_clock(video, pixels_of(Video.open(path)), "recompressed")


def resized(video: Video) -> Video:
    """To three quarters of its size and back."""
    import PIL.Image

    height, width = video.height, video.width
    small = (max(width * 3 // 4, 2), max(height * 3 // 4, 2))
    frames = [
        np.asarray(PIL.Image.fromarray(frame).resize(small).resize((width, height))) for frame in pixels_of(video)
    ]
    return same_clock(video, np.stack(frames), "resized")


def brightened(video: Video) -> Video:
    """Ten per cent brighter."""
    return same_clock(video, np.clip(pixels_of(video) * 1.1 + 0.5, 0, 255).astype(np.uint8), "brightened")


def retagged(video: Video) -> Video:
    """The same frames, tagged with a rate a quarter higher."""
    return video.with_fps(video.fps * 1.25)


CHANGES: dict[str, Callable[[Video], Video]] = {
    "recompression": recompressed,
    "resize": resized,
    "brightness": brightened,
    "fps_tag": retagged,
    "mirror": mirrored_video,
}
"""Changes of a whole clip that are no defect, by name."""


def disturb(pairs: Sequence[AuditPair], asker: Asker, drop: float | None) -> dict[str, Nuisance]:
    """Change the clean clips of these pairs in every way, and compare with the clips themselves.

    drop: mean drop of the reward by a defect, to compare with.
    """
    found = {}
    for name, change in CHANGES.items():
        cases = []
        for pair in pairs:
            prompt = mirrored_prompt(pair.prompt) if name == "mirror" else pair.prompt
            if name == "mirror" and asker.compares and prompt != pair.prompt:
                continue  # videos of two prompts are not compared
            cases.append([AuditQuestion(pair.prompt, pair.clean), AuditQuestion(prompt, change(pair.clean))])
        found[name] = _nuisance(asker.ask(cases), drop)
    sham = [
        [AuditQuestion(p.prompt, p.original), AuditQuestion(p.prompt, p.clean)] for p in pairs if p.original is not None
    ]
    if sham:
        found["sham_edit"] = _nuisance(asker.ask(sham), drop)
    return found


def _nuisance(scores: Sequence[Sequence], drop: float | None) -> Nuisance:
    moves = [after.value - before.value for before, after in scores if before.scored and after.scored]
    unscored = len(scores) - len(moves)
    if not moves:
        return Nuisance(NO_ESTIMATE, None, None, unscored)
    change = mean_interval([abs(move) for move in moves])
    of_drop = change.value / drop if drop is not None and drop > 0 and change.value is not None else None
    return Nuisance(change, float(np.mean(moves)), of_drop, unscored)
