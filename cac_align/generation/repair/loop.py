"""The repair loop over many videos: one video's repair is judged in a thread while the next one's is made.

videos, prompts → ``VideoRepair`` each → judged in turn → ``RepairResult`` each, in ``out/repairs.jsonl``

The originals are only read. The same call resumes: what ``out/attempts.jsonl`` holds is not done again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.core.video import Video
from cac_align.generation.repair.assess import Assessor
from cac_align.generation.repair.one_video import RepairBackend, RepairResult, RepairSteps, VideoRepair
from cac_align.generation.repair.settings import RepairSettings
from cac_align.runs.background import BackgroundThread
from cac_align.runs.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor


def repair_videos(
    videos: Sequence[Video],
    prompts: Sequence[str],
    backend: RepairBackend,
    assessor: Assessor,
    settings: RepairSettings,
    out: Path,
    *,
    latents: Sequence[Tensor | None] | None = None,
    done: Callable[[RepairResult], Any] | None = None,
    report: Callable[[str], None] | None = None,
) -> list[RepairResult]:
    """Repair each video within its budget, and write everything below ``out``.

    latents: those of videos that were generated here; others are encoded. done: called with each
    result. report: called with a sentence before each attempt.

    Raises ``ValueError`` where videos and prompts differ in number, an original lies where results
    are written, or the judge gives no verdict on three repairs in a row; what the judge or the disk
    raises ends the run as well. Nothing that was made is lost, and no original is touched.
    """
    if len(videos) != len(prompts):
        raise ValueError(f"expected one prompt per video, received {len(videos)} videos and {len(prompts)} prompts")
    out = Path(out)
    for video in videos:
        if video.path is not None and (out / "videos").resolve() in video.path.resolve().parents:
            raise ValueError(f"{video.path}: lies where the repaired videos are written; choose another folder")
    run = VideoRepair(backend, assessor, settings, out, report)
    given = latents or [None] * len(videos)
    ready: deque[tuple[int, RepairSteps, Any]] = deque(
        (number, run.steps(*each), None) for number, each in enumerate(zip(videos, prompts, given, strict=True))
    )
    judging: deque[tuple[int, RepairSteps, Any]] = deque()
    results: dict[int, RepairResult] = {}
    with BackgroundThread("judge", overlap=settings.overlap) as thread:
        while ready or judging:
            if ready:
                number, steps, answer = ready.popleft()
                try:
                    prompt, video = steps.send(answer)
                    judging.append((number, steps, thread.submit(assessor, prompt, video)))
                except StopIteration as end:
                    results[number] = end.value
                    _write_results(out, results)
                    if done is not None:
                        done(end.value)
            if judging and (len(judging) > 1 or not ready):
                number, steps, future = judging.popleft()
                ready.appendleft((number, steps, thread.wait(future)))
    return [results[number] for number in range(len(videos))]


def _write_results(out: Path, results: Mapping[int, RepairResult]) -> None:
    lines = [json.dumps(results[number].to_json(), ensure_ascii=True) for number in sorted(results)]
    atomic_write(out / "repairs.jsonl", "".join(line + "\n" for line in lines))
