"""Audit pairs from a user's own videos: a defect is injected into each, at a place that is then known.

video files → shots with a moving object → injectors (``data.injection``) → AuditPairs
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cac_align.core.video import Video
from cac_align.data.injection.injector import SourceClip
from cac_align.data.injection.pairs import TwinPair, make_pair
from cac_align.data.injection.registry import usable_injectors
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.clips import UnusableSource, load_clip, open_source
from cac_align.evaluation.audit.pairs import AuditPair, Defective, cut_to_move, mirrored_defect

_ROUNDS = 4
"""How often each video is taken, at other places and with other defects, until there are enough pairs."""


def pairs_from_videos(
    paths: Sequence[str | Path],
    prompts: Sequence[str],
    n: int,
    *,
    seed: int = 0,
    settings: Injection = Injection(),
    progress: Callable[[int], object] | None = None,
) -> list[AuditPair]:
    """At most ``n`` pairs; videos that cannot be used are left out.

    progress: called with 1 per pair. Raises ``ValueError`` where none of the videos gives a pair,
    with the reasons.
    """
    if not paths:
        raise ValueError("no videos to audit with; expected a folder, files or a pattern")
    found: list[AuditPair] = []
    reasons: Counter[str] = Counter()
    injectors, _ = usable_injectors(settings.tiers, settings.injectors, body_models=settings.body_models)
    for path, prompt, rng in _turns(paths, prompts, seed):
        if len(found) == n:
            break
        try:
            clip, _ = load_clip(open_source(Path(path), settings), float(rng.random()), settings, prompt)
        except UnusableSource as error:
            reasons[error.reason] += 1
            continue
        pair, rejected = make_pair(clip, injectors, rng, settings)
        if pair is None:
            reasons.update({f"no injector fits ({rejected[0].reason})" if rejected else "no injector fits": 1})
            continue
        found.append(_audit_pair(clip, pair))
        if progress is not None:
            progress(1)
    if not found:
        told = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common(3))
        raise ValueError(f"none of the {len(paths)} videos gives a pair of clips with and without a defect: {told}")
    return found


def _turns(
    paths: Sequence[str | Path], prompts: Sequence[str], seed: int
) -> Iterator[tuple[str | Path, str, np.random.Generator]]:
    for turn in range(_ROUNDS):
        for path, prompt in zip(paths, prompts, strict=True):
            digest = hashlib.sha256(f"{seed}\0{turn}\0{Path(path).name}".encode()).digest()
            yield path, prompt, np.random.default_rng(list(digest[:16]))


def _audit_pair(clip: SourceClip, pair: TwinPair) -> AuditPair:
    def video(pixels: np.ndarray, name: str) -> Video:
        return Video.open(pixels, fps=clip.fps, name=f"{clip.name} ({name})", layout="THWC")

    defect = Defective(clip.prompt, video(pair.edit.anomalous, pair.edit.subtype), pair.anomaly)
    return AuditPair(
        clean=video(pair.edit.sham, "sham"),
        defect=defect,
        severity=pair.severity,
        size=pair.truth.area_share,
        moved_in_time=cut_to_move(defect),
        moved_in_space=mirrored_defect(defect),
        original=video(clip.pixels, "original"),
    )
