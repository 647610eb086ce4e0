"""The step-wise loop: plan → generate → verify → repair the rest of the step, or go on.

task → per step: ``Plan`` → clip from the last frame → ``Verdict`` → accepted | the good part is kept and
the rest made anew from its last frame, with the suggestion in the prompt
    → ``StepwiseVideo``; ``out/steps.jsonl``, ``out/clips/``

Every attempt has a seed of its own. A missing verdict is no accept. A step of which no attempt was
accepted is filled by its best attempt (the one that is good longest) and marked, so there is a
video whatever planner and verifier do; why it ended is part of the result. A step is as long as it was
planned, however often a good part was kept. Clips that could not be made are not counted as clips.
Plans and attempts are found again by content (``attempts.attempt_key``), never because a file exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Frames, Video
from cac_align.core.whole_file import whole_file
from cac_align.generation.repair.attempts import Costs, RepairLog, attempt_key
from cac_align.generation.stepwise.continuation import Continuation
from cac_align.generation.stepwise.contracts import Plan, Verdict
from cac_align.generation.stepwise.roles import NoAnswer, Planner, Verifier
from cac_align.rewards.metered import UsageMeter

_Pixels = UInt8[np.ndarray, "T H W 3"]


@dataclass(frozen=True)
class StepwiseSettings:
    """How a video is made step by step. Raises ``ValueError`` for numbers outside their ranges.

    max_steps: planned steps at most. attempts: clips per step at most. frames_per_step: new frames
    per step. min_good: the least share of a step that is worth keeping. seed: of the first attempt;
    all later ones count on from it. max_frame_steps, max_judge_calls: budgets; None: no limit.
    """

    max_steps: int = 3
    attempts: int = 3
    frames_per_step: int = 48
    min_good: float = 0.2
    seed: int = 0
    max_frame_steps: int | None = None
    max_judge_calls: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "attempts", "frames_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}")
        if not 0 <= self.min_good <= 1:
            raise ValueError(f"min_good is a share in [0, 1], received {self.min_good}")


@dataclass(frozen=True)
class StepRecord:
    """One step of the finished video: its plan, whether a clip of it was accepted, attempts and frames."""

    plan: Plan
    accepted: bool
    attempts: int
    num_frames: int


@dataclass(frozen=True, eq=False)
class StepwiseVideo:
    """The result. video: None only where not a single clip could be made. complete: whether the task was called done
    by an accepted step. reason: why it ended.
    """

    video: Video | None
    steps: tuple[StepRecord, ...]
    complete: bool
    reason: str
    costs: Costs


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A clip of a step as far as it was made. pixels: the step's frames. verdict: None where there is none."""

    pixels: _Pixels
    verdict: Verdict | None


def generate_stepwise(
    task: str,
    planner: Planner,
    verifier: Verifier,
    continuation: Continuation,
    settings: StepwiseSettings,
    out: Path,
    *,
    first_frame: UInt8[np.ndarray, "H W 3"] | None = None,
    report: Callable[[str], None] | None = None,
) -> StepwiseVideo:
    """Make a video of the task step by step, and write ``out/video.mp4`` where there is one.

    first_frame: what it begins with; None lets the generator begin. report: called with a sentence
    before each attempt. What generator, disk or a server raise beyond ``ValueError`` ends the call;
    the same call resumes.
    """
    return _Loop(task, planner, verifier, continuation, settings, Path(out), report).run(first_frame)


class _Loop:
    def __init__(
        self,
        task: str,
        planner: Planner,
        verifier: Verifier,
        continuation: Continuation,
        settings: StepwiseSettings,
        out: Path,
        report: Callable[[str], None] | None,
    ) -> None:
        (out / "clips").mkdir(parents=True, exist_ok=True)
        self.task, self.settings, self.out, self.make = task, settings, out, continuation
        self.meter = UsageMeter()
        self.planner, self.verifier = planner.counted_by(self.meter), verifier.counted_by(self.meter)
        self.log, self.report = RepairLog(out / "steps.jsonl"), report or (lambda sentence: None)
        self.costs, self.seed, self.dearest = Costs(), settings.seed, 0

    def run(self, first_frame: UInt8[np.ndarray, "H W 3"] | None) -> StepwiseVideo:
        done: list[_Pixels] = [] if first_frame is None else [first_frame[None]]
        steps: list[StepRecord] = []
        complete, reason = False, f"max_steps {self.settings.max_steps} is reached"
        for number in range(1, self.settings.max_steps + 1):
            last = done[-1][-1] if done else None
            try:
                plan = self._plan(steps, number, last)
            except NoAnswer as error:
                reason = f"no plan for step {number}: {error}"
                break
            attempts, over = self._step(plan, last)
            made = [attempt for attempt in attempts if len(attempt.pixels)]
            if not made:
                reason = over or f"no clip of step {number} could be made"
                break
            best = max(made, key=lambda attempt: _good(attempt.verdict))
            accepted = best.verdict is not None and best.verdict.accept
            done.append(best.pixels)
            steps.append(StepRecord(plan, accepted, len(attempts), len(best.pixels)))
            if accepted and best.verdict is not None and (plan.last_step or best.verdict.task_complete):
                complete, reason = True, f"the task is done after step {number}"
                break
            if over is not None:
                reason = over
                break
        if not steps:
            return StepwiseVideo(None, (), False, reason, self.costs)
        pixels = np.concatenate(done)
        write_mp4(self.out / "video.mp4", pixels, self.make.fps)
        video = Video.open(pixels, fps=self.make.fps, layout="THWC", name=self.task)
        return StepwiseVideo(video, tuple(steps), complete, reason, self.costs)

    def _plan(self, steps: list[StepRecord], number: int, last: UInt8[np.ndarray, "H W 3"] | None) -> Plan:
        told = [(step.plan.action, step.accepted) for step in steps]
        key = attempt_key(
            task=self.task,
            steps=told,
            number=number,
            limit=self.settings.max_steps,
            frame=_digest(last),
            planner=dict(self.planner.provenance),
        )
        row = self.log.find(key)
        if row is None:
            seconds = self.settings.frames_per_step / self.make.fps
            frame = None if last is None else Frames(last[None], (0,), (0.0,), self.make.fps, 1)
            before = self.meter.reading()
            plan = self.planner(self.task, told, number, self.settings.max_steps, seconds, frame)
            spent = Costs.of(self.meter.since(before))
            row = {"key": key, "kind": "plan", "step": number, "plan": asdict(plan), "costs": spent.to_json()}
            self.log.add(row)
        self._spend(row)
        return Plan(**row["plan"])

    def _step(self, plan: Plan, last: UInt8[np.ndarray, "H W 3"] | None) -> tuple[list[_Attempt], str | None]:
        """The attempts at one step, the accepted one last; and why the budget ended them, if it did."""
        wanted = self.settings.frames_per_step
        instruction, kept = plan.action, None
        attempts: list[_Attempt] = []
        for _ in range(self.settings.attempts):
            start = last if kept is None else kept[-1]
            have = 0 if kept is None else len(kept)
            # The frame that a clip goes on from is its first one, and no new one.
            length = self._length(wanted - have + (start is not None))
            if (over := self._over_budget(length)) is not None:
                return attempts, over
            attempt = self._attempt(plan, instruction, start, kept, length, wanted)
            self.seed += 1
            attempts.append(attempt)
            verdict = attempt.verdict
            if verdict is None:
                continue
            if verdict.accept:
                break
            instruction = f"{plan.action} {verdict.suggestion or verdict.diagnosis}".strip()
            good = int(verdict.good_fraction * wanted)
            if verdict.good_fraction >= self.settings.min_good and have < good < wanted:
                kept = attempt.pixels[:good]
        return attempts, None

    def _attempt(
        self,
        plan: Plan,
        instruction: str,
        start: UInt8[np.ndarray, "H W 3"] | None,
        kept: _Pixels | None,
        length: int,
        wanted: int,
    ) -> _Attempt:
        """One clip of a step, behind the part that was kept, with its verdict; found again where it was finished."""
        key = attempt_key(
            task=self.task,
            plan=asdict(plan),
            instruction=instruction,
            start=_digest(start),
            kept=_digest(kept),
            frames=[length, wanted],
            seed=self.seed,
            generator=dict(self.make.provenance),
            verifier=dict(self.verifier.provenance),
        )
        path = self.out / "clips" / f"{key[:16]}.npz"
        row = self.log.find(key)
        if (
            row is not None
            and (row["error"] is None or row["clip"] is None)
            and (row["clip"] is None or path.is_file())
        ):
            self._spend(row)
            pixels = np.load(path)["pixels"] if row["clip"] is not None else _nothing(start)
            return _Attempt(pixels, None if row["verdict"] is None else Verdict(**row["verdict"]))
        self.report(f"seed {self.seed}: {instruction}")
        row = {
            "key": key,
            "kind": "attempt",
            "instruction": instruction,
            "seed": self.seed,
            "kept": 0 if kept is None else len(kept),
        }
        row |= {"clip": None, "verdict": None, "error": None}
        frame_steps, before = length * self.make.steps, self.meter.reading()
        try:
            pixels = self._clip(path, instruction, start, kept, length, wanted)
        except ValueError as error:
            spent = Costs(frame_steps=frame_steps)
            row |= {"error": f"no clip: {error}", "costs": spent.to_json()}
            pixels, verdict = _nothing(start), None
        else:
            verdict, error = self._verify(plan, pixels)
            spent = Costs.of(self.meter.since(before), clips=1, frame_steps=frame_steps)
            row |= {"clip": path.name, "error": error, "costs": spent.to_json()}
            row["verdict"] = None if verdict is None else verdict.to_json()
        self.log.add(row)
        self._spend(row)
        return _Attempt(pixels, verdict)

    def _clip(
        self,
        path: Path,
        instruction: str,
        start: UInt8[np.ndarray, "H W 3"] | None,
        kept: _Pixels | None,
        length: int,
        wanted: int,
    ) -> _Pixels:
        """The step's frames as a lossless file; a whole one of the same key that a killed run left is taken."""
        if path.is_file():
            return np.load(path)["pixels"]
        made = self.make(instruction, start, length, self.seed)
        frames = made.frames(range(len(made))).pixels[(start is not None) :]
        pixels = (frames if kept is None else np.concatenate([kept, frames]))[:wanted]
        with whole_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, pixels=pixels)
        return pixels

    def _verify(self, plan: Plan, pixels: _Pixels) -> tuple[Verdict | None, str | None]:
        clip = Video.open(pixels, fps=self.make.fps, layout="THWC", name=plan.action)
        try:
            return self.verifier(self.task, plan, clip), None
        except NoAnswer as error:
            return None, str(error)

    def _length(self, at_least: int) -> int:
        """The shortest length of at least so many frames that the generator can make."""
        return -(-max(at_least - 1, 1) // self.make.temporal) * self.make.temporal + 1

    def _over_budget(self, length: int) -> str | None:
        for name, total in (
            ("max_frame_steps", self.costs.frame_steps + length * self.make.steps),
            ("max_judge_calls", self.costs.judge_calls + max(self.dearest, 1)),
        ):
            limit = getattr(self.settings, name)
            if limit is not None and total > limit:
                return f"another clip would come to {total}, more than {name} {limit}"
        return None

    def _spend(self, row: Mapping[str, Any]) -> None:
        spent = Costs.from_json(row["costs"])
        self.costs, self.dearest = self.costs + spent, max(self.dearest, spent.judge_calls)


def _good(verdict: Verdict | None) -> tuple[bool, bool, float]:
    """The order of attempts: accepted, then judged, then good for longest."""
    return (False, False, 0.0) if verdict is None else (verdict.accept, True, verdict.good_fraction)


def _nothing(like: UInt8[np.ndarray, "H W 3"] | None) -> _Pixels:
    height, width = (2, 2) if like is None else like.shape[:2]
    return np.empty((0, height, width, 3), np.uint8)


def _digest(pixels: np.ndarray | None) -> str | None:
    return None if pixels is None else hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
