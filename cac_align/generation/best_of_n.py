"""Best-of-N: make or take N candidates per prompt, score them with any reward, keep the best one
and say why.

prompts → generated or given candidates → reward (one call per prompt) → ``Selection`` (chosen, scores, reason)

One prompt's candidates are judged in a thread while the next one's are generated.

With ``out`` everything is on disk at once, and the same call resumes: ``out/videos/<file
stem>-<seed>.mp4`` (complete or absent), ``out/generator.json`` and ``out/reward.json`` (their
provenances), ``out/ledger.jsonl``, ``out/selection.jsonl`` (one line per prompt as it is decided;
at the end in the order of the prompts, then those of earlier calls), ``out/chosen/<file stem>.mp4``
(the winners). The scores are then those of the written files, so that a resumed run scores the same
bytes. Source: CaC (arXiv 2605.11723) Sec. 4.2: Best-of-N with N = 5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cac_align.core.text import check_prompt
from cac_align.generation.candidates import (
    Candidate,
    Generate,
    GivenCandidates,
    generate_candidates,
    open_candidate,
)
from cac_align.generation.chosen import write_chosen
from cac_align.generation.given_candidates import read_candidates
from cac_align.generation.selection import Selection, choose, score_candidates
from cac_align.generation.selection_log import SelectionLog
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Reward, stable_provenance
from cac_align.runs.background import BackgroundThread
from cac_align.runs.files import atomic_write


class ProgressBar(Protocol):
    """What a progress bar must be able to do; tqdm's can."""

    def update(self, n: int) -> Any: ...

    def close(self) -> Any: ...


MakeProgressBar = Callable[[int, str], ProgressBar]
"""(number of candidates, a word for them) → a bar, which is updated as the prompts are decided."""


def best_of_n(
    prompts: Sequence[str],
    candidates: Generate | GivenCandidates | Path,
    reward: Reward,
    *,
    n: int = 5,
    seed: int = 0,
    distinct_seeds: bool = False,
    out: Path | None = None,
    share: tuple[int, int] = (0, 1),
    fps: float | None = None,
    overlap: bool = True,
    progress: MakeProgressBar | None = None,
    report: Callable[[str], None] | None = None,
) -> list[Selection]:
    """The best of several candidates per prompt, in the order of ``prompts``. A prompt given twice
    is decided once.

    candidates: a generator ``(prompt, seed) → Video``, given candidates by prompt, or a folder or table for
    ``read_candidates``. Given candidates are all scored.
    n: how many to generate per prompt, with the seeds seed … seed + n − 1.
    distinct_seeds: the i-th prompt (from 0) has the seeds seed + i·n … seed + (i + 1)·n − 1 instead, so that no
    two prompts share their noise. A rate over prompts with a confidence interval needs that.
    out: the folder to write to and to resume from.
    share: (i, k) for process i of k that fill one ``out`` together. It decides every k-th prompt and writes
    ``selection-i.jsonl``. After all of them, a call without ``share`` finds everything made and scored.
    fps: the true frame rate of given candidates, where their files state a wrong one or, as folders of images, none.
    overlap: whether one prompt's candidates are judged while the next one's are generated. False where
    both at once do not fit into memory; the results are the same.
    progress: makes the progress bar, for example ``lambda total, about: tqdm(total=total, desc=about)``.
    report: called with a sentence before candidates are made and before their scores are waited for.

    Raises ``ValueError`` for no prompt, a blank prompt, n below 1, candidates that cannot be found,
    or an ``out`` whose videos come from another generator (by its provenance, or else its name) or
    whose choices come from another reward. A candidate that cannot be made (the generator raises
    ``ValueError``) or read has no score. Any other exception of the generator ends the call, and
    nothing already made or scored is lost.
    """
    prompts = list(prompts)
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        blank = next((i for i, prompt in enumerate(prompts) if not (isinstance(prompt, str) and prompt.strip())), None)
        raise ValueError(
            "expected at least one prompt, received none" if blank is None else f"prompt {blank} is blank; remove it"
        )
    for prompt in prompts:
        check_prompt(prompt, "best_of_n")
    if n < 1:
        raise ValueError(f"n must be at least 1, received {n}")
    if not 0 <= share[0] < share[1]:
        raise ValueError(f"share must be (i, k) with 0 <= i < k, received {share}")
    first = {prompt: seed + i * n * distinct_seeds for i, prompt in enumerate(dict.fromkeys(prompts))}
    unique = list(first)[share[0] :: share[1]]
    prompts = unique if share[1] > 1 else prompts
    if isinstance(candidates, (str, os.PathLike)):
        candidates = read_candidates(Path(candidates), unique)
    log = None
    if out is not None:
        out = Path(out)
        (out / "videos").mkdir(parents=True, exist_ok=True)
        if (out / "recipe.json").exists():
            raise ValueError(f"{out}: holds a run that trains (recipe.json); write to another folder")
        if callable(candidates):
            _check_generator(out, candidates)
        others = f"write to another folder (--candidates {out / 'videos'} takes these videos)"
        _check_provenance(
            out / "reward.json", stable_provenance(reward.provenance), "choices come from another reward", others
        )
        reward = cached(reward, Ledger(out / "ledger.jsonl"))
        log = SelectionLog(out / ("selection.jsonl" if share[1] == 1 else f"selection-{share[0]}.jsonl"))
    total = n * len(unique) if callable(candidates) else sum(len(candidates.get(prompt, ())) for prompt in unique)
    bar = progress(total, "candidates") if progress else None
    decided: dict[str, Selection] = {}

    def judge(prompt: str, group: list[Candidate], seeds: tuple[int, ...]) -> Selection:
        selection = choose(prompt, group, score_candidates(reward, prompt, group), seeds)
        if log:
            log.add(selection)
        return selection

    def finish(judging: _Judging) -> None:
        if report:
            report(f"judging {judging.names}")
        decided[judging.prompt] = thread.wait(judging.selection)
        if bar:
            bar.update(len(judging.group))

    try:
        with BackgroundThread("reward", overlap=overlap) as thread:
            before: _Judging | None = None
            for prompt in unique:
                seeds = tuple(range(first[prompt], first[prompt] + n)) if callable(candidates) else ()
                if report:
                    meanwhile = f" while judging {before.names}" if before else ""
                    report(f"making candidates of {prompt!r}{meanwhile}")
                if callable(candidates):
                    group = generate_candidates(candidates, prompt, seeds, out)
                else:
                    group = [open_candidate(source, fps) for source in candidates.get(prompt, ())]
                judging = _Judging(prompt, group, thread.submit(judge, prompt, group, seeds))
                if before:
                    finish(before)
                before = judging
            if before:
                finish(before)
    finally:
        if bar:
            bar.close()
    if log:
        log.finish([decided[prompt] for prompt in unique])
    if out is not None and share[1] == 1:
        write_chosen([decided[prompt] for prompt in unique], out)
    return [decided[prompt] for prompt in prompts]


@dataclass(frozen=True, eq=False)
class _Judging:
    """The candidates of a prompt that were given to the reward, and what is chosen once that is known."""

    prompt: str
    group: list[Candidate]
    selection: Future[Selection]

    @property
    def names(self) -> str:
        return ", ".join(Path(one.name).name for one in self.group)


def _qualified_name(generate: Any) -> str:
    """Where a generator is defined, as "module:Name"; this identifies one that has no provenance."""
    kind = generate if hasattr(generate, "__qualname__") else type(generate)
    return f"{kind.__module__}:{kind.__qualname__}"


def _check_generator(out: Path, generate: object) -> None:
    """Raise ``ValueError`` where the videos in ``out`` come from another generator."""
    own = getattr(generate, "provenance", None)
    path, provenance = out / "generator.json", own or {"generator": _qualified_name(generate)}
    made = next((out / "videos").glob("*.mp4"), None)
    if own and made is not None and not path.exists():
        raise ValueError(f"{out}: who made {made.name} is not known ({path.name} is missing); write to another folder")
    _check_provenance(path, provenance, "videos come from another generator", "write to another folder")


def _check_provenance(path: Path, provenance: Mapping[str, str], what: str, fix: str) -> None:
    """Write the provenance, or raise ``ValueError`` where another one was written before."""
    if not path.exists():
        atomic_write(path, json.dumps(dict(provenance), indent=1, sort_keys=True) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in sorted({*before, *provenance}) if before.get(key) != provenance.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{path.parent}: its {what} ({', '.join(changed)} differ; {key} was {before.get(key)!r}, now "
            f"{provenance.get(key)!r}); "
            f"{fix}, or go on with the same one"
        )
