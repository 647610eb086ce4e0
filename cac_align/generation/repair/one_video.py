"""The repair of one video: judge, make the marked part anew, judge again, keep it only where it is better.

video, prompt → judged → cells of the marked windows → attempts (new seed, growing strength) → ``compare``
→ ``RepairResult``

Below ``out``: ``attempts.jsonl`` (every attempt and its costs), ``attempts/`` (all videos that were
made), ``masks/`` and ``latents/`` beside them, ``videos/`` (what was kept). The defects of a repair
that was kept are repaired next, from its own latents, within the same budget.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly
from cac_align.core.video import Video
from cac_align.core.whole_file import whole_file
from cac_align.generation.latent_masks import LatentGrid, grow_and_soften, marked_cells, pixel_mask
from cac_align.generation.repair.accept import AcceptRule, Assessment, compare
from cac_align.generation.repair.assess import Assessor
from cac_align.generation.repair.attempts import Costs, RepairLog, attempt_key
from cac_align.generation.repair.resample import RepairedClip, RepairRequest
from cac_align.generation.repair.settings import RepairSettings
from cac_align.rewards.metered import Usage

if TYPE_CHECKING:
    from torch import Tensor

_SILENT = 3
"""Repairs in a row without a verdict after which the judge counts as gone and the run ends."""


class RepairBackend(Protocol):
    """Who makes the repaired video: ``resample.MaskedResampling`` or ``vace.VaceRepair``."""

    @property
    def provenance(self) -> Mapping[str, str]: ...

    def grid(self, video: Video) -> LatentGrid:
        """The latent grid of a video. Raises ``ValueError`` where it cannot be repaired here, with the reason."""
        ...

    def steps(self, strength: float) -> int:
        """How many denoising steps a repair of this strength takes."""
        ...

    def __call__(self, request: RepairRequest) -> RepairedClip: ...


@dataclass(frozen=True)
class RepairResult:
    """What became of one video.

    status: ``normal`` (nothing to repair), ``mended`` (now judged normal), ``improved`` (better,
    still judged abnormal), ``kept`` (no attempt was better), ``not local`` (the judge names no
    place, or nearly the whole clip: a new seed is the better repair), ``unjudged``, or ``unfit``
    (the checkpoint cannot make such a video). path: the video to use, the original where nothing
    was kept. before, after: the judge's scores of the original and of that one.
    """

    video: str
    prompt: str
    status: str
    reason: str
    path: str
    before: float | None
    after: float | None
    attempts: int
    costs: Costs

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "costs": self.costs.to_json()}


RepairSteps = Generator[tuple[str, Video], tuple[Assessment, Usage], RepairResult]
"""The repair of one video: it yields (prompt, video) to be judged and is sent the verdict and its costs."""


@dataclass(frozen=True, eq=False)
class _Version:
    """The best version of a video so far. content: what identifies it. path: of the file to use."""

    video: Video
    latents: Tensor | None
    content: str
    assessment: Assessment
    path: str


class VideoRepair:
    """Repairs videos one by one, with one backend, one judge with its guards, and one log."""

    def __init__(
        self,
        backend: RepairBackend,
        assessor: Assessor,
        settings: RepairSettings,
        out: Path,
        report: Callable[[str], None] | None = None,
    ) -> None:
        for folder in ("videos", "attempts", "masks", "latents"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        self.backend, self.assessor, self.settings, self.out = backend, assessor, settings, out
        self.report = report or (lambda sentence: None)
        self.rule = AcceptRule(settings.min_gain, settings.guard_tolerance)
        self.log = RepairLog(out / "attempts.jsonl")
        self.silent = 0

    def steps(self, video: Video, prompt: str, latents: Tensor | None = None) -> RepairSteps:
        """The repair of a video, as steps between which it is judged."""
        original = str(video.path or video.name)
        content = attempt_key(video=video.content_hash, prompt=prompt, **self.assessor.provenance)
        assessment, usage = yield prompt, video
        costs = self._costs_of_the_original(content, original, prompt, assessment, usage)
        dearest = costs.judge_calls
        best = _Version(video, latents, content, assessment, original)

        def result(status: str, reason: str, made: int = 0) -> RepairResult:
            status = "improved" if best.path != original and status != "mended" else status
            scores = (_value(assessment), _value(best.assessment))
            return RepairResult(original, prompt, status, reason, best.path, *scores, made, costs)

        if not assessment.score.scored:
            return result("unjudged", f"no verdict: {assessment.score.error}")
        if assessment.score.evidence is None:
            return result("unjudged", "this reward gives a number without windows and boxes; repair needs a judge")
        if not _abnormal(assessment):
            return result("normal", "the judge sees no defect")
        try:
            grid = self.backend.grid(video)
        except ValueError as error:
            return result("unfit", str(error))
        failures, former = 0, ""
        for made in range(1, self.settings.attempts + 1):
            weights, anomalies = self._weights(best, grid)
            strength = self.settings.strength_after(failures)
            frame_steps = grid.num_frames * self.backend.steps(strength)
            if (reason := self._not_local(weights)) is not None:
                return result("not local", former + reason, made - 1)
            if (reason := self._over_budget(costs, frame_steps, dearest)) is not None:
                return result("kept", former + reason, made - 1)
            seed = self.settings.seed + made - 1
            request = RepairRequest(prompt, best.video, weights, strength, seed, best.latents)
            key = self._key(best, request)
            stem = f"{Path(original).stem[:40]}-{key[:12]}"
            found = self.log.find(key)
            row: dict[str, Any] = found or {}
            if not row or row["error"] or not (row["path"] is None or Path(row["path"]).is_file()):
                self.report(f"attempt {made} on {Path(original).name}, from noise level {strength:.2f}")
                row = {
                    "key": key,
                    "attempt": made,
                    "video": original,
                    "prompt": prompt,
                    "base": str(best.video.path or original),
                    "mask": str(self.out / "masks" / f"{stem}.npz"),
                    "mask_share": float(weights.mean()),
                    "strength": strength,
                    "seed": seed,
                    "windows": [anomaly.window.to_json() for anomaly in anomalies if anomaly.window is not None],
                    "before": _verdict(best.assessment),
                }
                try:
                    repaired = self._made(request, stem, grid)
                except ValueError as error:
                    spent = Costs(frame_steps=frame_steps)
                    row |= {"path": None, "accepted": False, "reason": f"no usable video: {error}", "error": None}
                else:
                    after, usage = yield prompt, repaired
                    spent = Costs.of(usage, clips=1, frame_steps=frame_steps)
                    decision = compare(best.assessment, after, self.rule)
                    row |= {"path": str(repaired.path), "accepted": decision.accepted, "reason": decision.reason}
                    row |= {"after": _verdict(after), "error": after.score.error}
                    row["outside"] = _difference_outside(best.video, repaired, weights, grid)
                self.log.add({**row, "costs": spent.to_json()})
                self._count_silence(row["error"])
            spent = Costs.from_json(self.log.find(key)["costs"])  # pyright: ignore[reportOptionalSubscript]
            costs, dearest = costs + spent, max(dearest, spent.judge_calls)
            former = f"attempt {made}: {row['reason']}; "
            if not row["accepted"]:
                failures += 1
                continue
            failures = 0
            path: str = row["path"] or ""
            accepted = Video.open(path)
            after, _ = yield prompt, accepted  # from the ledger
            best = _Version(accepted, self._latents(stem), key, after, self._keep(path, original, content))
            if not _abnormal(after):
                return result("mended", row["reason"], made)
        return result("kept", former + "no attempt is left", self.settings.attempts)

    def _costs_of_the_original(
        self, content: str, original: str, prompt: str, assessment: Assessment, usage: Usage
    ) -> Costs:
        """What judging the original cost, now or in an earlier run; a first judgement is attempt 0 of the log."""
        row = self.log.find(content)
        if row is None or row["error"]:
            facts = {"key": content, "attempt": 0, "video": original, "prompt": prompt, "path": original}
            verdict = {"after": _verdict(assessment), "error": assessment.score.error}
            self.log.add({**facts, **verdict, "costs": Costs.of(usage).to_json()})
            return Costs.of(usage)
        return Costs.from_json(row["costs"])

    def _weights(self, best: _Version, grid: LatentGrid) -> tuple[np.ndarray, tuple[Anomaly, ...]]:
        """The weights of the latent cells to repair, and the anomalies that they come from."""
        evidence = best.assessment.score.evidence
        anomalies = evidence.anomalies if evidence is not None else ()
        if self.settings.windows == "worst" and anomalies:
            anomalies = (max(anomalies, key=lambda anomaly: marked_cells([anomaly], best.video, grid).sum()),)
        mask = marked_cells(anomalies, best.video, grid)
        if mask.any():
            return grow_and_soften(mask, grow=self.settings.grow, border=self.settings.border), anomalies
        return mask.astype(np.float32), anomalies

    def _not_local(self, weights: np.ndarray) -> str | None:
        """Why these weights are no repair of a part; None where they are."""
        share, most = float(weights.mean()), self.settings.max_share
        if share == 0:
            return "the judge names no place inside the clip; generate it anew with another seed"
        if share > most:
            covered = f"the windows and boxes, grown, cover {share:.0%} of the clip, more than max_share {most:.0%}"
            return f"{covered}; generate it anew with another seed"
        return None

    def _over_budget(self, costs: Costs, frame_steps: int, judge_calls: int) -> str | None:
        """Why another attempt at these costs is too dear; None where it is not."""
        for name, total in (
            ("max_frame_steps", costs.frame_steps + frame_steps),
            ("max_judge_calls", costs.judge_calls + judge_calls),
        ):
            limit = getattr(self.settings, name)
            if limit is not None and total > limit:
                return f"another attempt would come to {total}, more than {name} {limit}"
        return None

    def _key(self, best: _Version, request: RepairRequest) -> str:
        return attempt_key(
            base=best.content,
            weights=[*request.weights.shape, hashlib.sha256(request.weights.tobytes()).hexdigest()],
            strength=request.strength,
            seed=request.seed,
            backend=dict(self.backend.provenance),
            rule=[self.rule.min_gain, self.rule.tolerance],
        )

    def _made(self, request: RepairRequest, stem: str, grid: LatentGrid) -> Video:
        """The repaired video as a file; a whole one that a killed run left is taken."""
        from safetensors.torch import save_file

        path = self.out / "attempts" / f"{stem}.mp4"
        if not path.exists():
            clip = self.backend(request)
            with whole_file(self.out / "masks" / f"{stem}.npz") as part, part.open("wb") as file:
                np.savez_compressed(file, weights=request.weights, strides=np.array([grid.temporal, grid.spatial]))
            if clip.latents is not None:
                with whole_file(self.out / "latents" / f"{stem}.safetensors") as part:
                    save_file({"latents": clip.latents.contiguous()}, part)
            write_mp4(path, clip.video.frames(range(len(clip.video))).pixels, clip.video.fps)
        return Video.open(path)

    def _latents(self, stem: str) -> Tensor | None:
        from safetensors.torch import load_file

        path = self.out / "latents" / f"{stem}.safetensors"
        return load_file(path)["latents"] if path.exists() else None

    def _keep(self, path: str, original: str, content: str) -> str:
        """Copy an accepted attempt to ``videos/``, where it takes the place of an earlier one."""
        final = self.out / "videos" / f"{Path(original).stem[:40]}-{content[:6]}.mp4"
        with whole_file(final) as part:
            shutil.copyfile(path, part)
        return str(final)

    def _count_silence(self, error: str | None) -> None:
        self.silent = 0 if error is None else self.silent + 1
        if self.silent >= _SILENT:
            raise ValueError(
                f"the judge gave no verdict on {self.silent} repairs in a row ({error}); nothing that was made is lost "
                "and the originals stand: see to the judge, then run the same command again"
            )


def _abnormal(assessment: Assessment) -> bool:
    evidence = assessment.score.evidence
    return evidence is not None and evidence.status == "abnormal"


def _value(assessment: Assessment) -> float | None:
    return assessment.score.value if assessment.score.scored else None


def _verdict(assessment: Assessment) -> dict[str, Any]:
    """The judge's score and verdict and the guards' scores, for the log; null stands for a missing one."""
    evidence = assessment.score.evidence
    guards = {name: score.value if score.scored else None for name, score in assessment.guards.items()}
    return {"score": _value(assessment), "status": evidence.status if evidence else None, "guards": guards}


def _difference_outside(
    before: Video, after: Video, weights: np.ndarray, grid: LatentGrid
) -> dict[str, float | int | None]:
    """How much the files differ outside the mask, in grey levels of 255; null where nothing is outside."""
    outside = ~pixel_mask(weights, grid)
    if not outside.any():
        return {"mean": None, "max": None}
    frames = [video.frames(range(len(video))).pixels.astype(np.int16) for video in (before, after)]
    change = np.abs(frames[0] - frames[1])[outside]
    return {"mean": round(float(change.mean()), 3), "max": int(change.max())}
