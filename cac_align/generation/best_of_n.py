"""Best-of-N: make or take N candidates per prompt, score them with any reward, keep the highest and say why.

prompts → generate(prompt, seed) or given candidates → reward(N candidates of one prompt) → Selection (chosen, scores, reason)

A candidate without a score loses to any score; when none has one the prompt is *undecided*, never silently picked. Scores within
``QUANTUM`` are a tie and the lowest index wins. With ``out`` everything is on disk at once and the same call resumes:
``out/videos/<slug>-<seed>.mp4`` (complete or absent), ``out/generator.json`` and ``out/reward.json`` (their provenances),
``out/ledger.jsonl``, ``out/selection.jsonl`` (one line per prompt as it is decided, in the order of the prompts at the end, then
those of former calls). Scores are then taken of the written file, so that a resumed run sees the same bytes.

Source: CaC (arXiv 2605.11723) Sec. 4.2: Best-of-N with N = 5.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.generation.selection_log import SelectionLog
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.normalise import quantise
from cac_align.rewards.reward import Reward, Score, lasting
from cac_align.runs.files import write_whole

Generate = Callable[[str, int], Video]
"""(prompt, seed) → Video; the same pair gives the same video. ``ValueError`` means that this one came out unusable (NaN pixels)."""


@runtime_checkable
class BatchGenerate(Protocol):
    """A generator that can make several videos in one call; the same prompt and seed give the same video as alone, up to rounding."""

    def batch(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Video]: ...


Candidates = Mapping[str, Sequence[Path | Video]]
"""Given candidates by prompt."""


class Bar(Protocol):
    """What a progress bar must be able to do; tqdm's can."""

    def update(self, n: int) -> Any: ...

    def close(self) -> Any: ...


Progress = Callable[[int, str], Bar]
"""(how many candidates in all, a word for them) → a bar, moved on as the candidates of each prompt are decided."""


VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi")
_NOT_SLUG = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Selection:
    """What was chosen for one prompt, and why.

    chosen: index into ``candidates``, None when undecided. candidates: paths (or names) in order. scores: one per candidate.
    seeds: one per generated candidate, empty for given ones. reason: one or two plain sentences. video: the chosen one itself.
    """

    prompt: str
    chosen: int | None
    candidates: tuple[str, ...]
    scores: tuple[Score, ...]
    seeds: tuple[int, ...]
    reason: str
    video: Video | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """A line of ``selection.jsonl``; ``scores`` and ``errors`` hold null where there is none. Evidence is in the ledger."""
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "candidates": list(self.candidates),
            "scores": [score.value if score.scored else None for score in self.scores],
            "errors": [score.error for score in self.scores],
            "seeds": list(self.seeds),
            "reason": self.reason,
        }


def best_of_n(
    prompts: Sequence[str],
    candidates: Generate | Candidates | Path,
    reward: Reward,
    *,
    n: int = 5,
    seed: int = 0,
    distinct_seeds: bool = False,
    out: Path | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    doing: Callable[[str], None] | None = None,
) -> list[Selection]:
    """The best of several candidates per prompt, in the order of ``prompts`` (a prompt given twice is decided once).

    candidates: a generator ``(prompt, seed) → Video``; or given candidates by prompt; or a folder or JSONL (``read_candidates``).
    n: how many to generate per prompt, with seeds ``seed … seed + n − 1``; given candidates are all judged. distinct_seeds: the i-th
    prompt (from 0) takes ``seed + i·n … seed + (i + 1)·n − 1`` instead, so that no two prompts share a noise: what a rate with an
    interval over prompts needs. out: a folder to write to and to resume from. share: (i, k): this is process i of k that fill one ``out`` together; it decides every k-th prompt and writes
    ``selection-i.jsonl``; once all are through, a call without share finds everything made and scored. progress: makes the progress bars, e.g. ``lambda total, about: tqdm(total=total, desc=about)``.
    doing: is told of each prompt that it is being made, and then judged (``whereabouts.RankStatus.at``).
    Raises ``ValueError`` for no prompt, a blank one, n below 1, candidates that cannot be found, or an ``out`` whose videos come from
    another generator (by its provenance; one that has none goes by its name). A candidate that cannot be
    made (``ValueError`` of the generator) or read is one without a score; any other exception of the generator ends the call,
    and nothing already made or scored is lost.
    """
    prompts = list(prompts)
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        blank = next((i for i, prompt in enumerate(prompts) if not (isinstance(prompt, str) and prompt.strip())), None)
        raise ValueError(
            "expected at least one prompt, received none" if blank is None else f"prompt {blank} is blank; remove it"
        )
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
            _same_generator(out, candidates)
        others = f"write to another folder (--candidates {out / 'videos'} takes these videos)"
        _same(out / "reward.json", lasting(reward.provenance), "choices come from another reward", others)
        reward = Ledger(out / "ledger.jsonl").wrap(reward)
        log = SelectionLog(out / ("selection.jsonl" if share[1] == 1 else f"selection-{share[0]}.jsonl"))
    total = n * len(unique) if callable(candidates) else sum(len(candidates.get(prompt, ())) for prompt in unique)
    bar = progress(total, "candidates") if progress else None
    decided: dict[str, Selection] = {}
    try:
        for prompt in unique:
            seeds = tuple(range(first[prompt], first[prompt] + n)) if callable(candidates) else ()
            if doing:
                doing(f"making candidates of {prompt!r}")
            if callable(candidates):
                entrants = _all_generated(candidates, prompt, seeds, out)
            else:
                entrants = [_opened(source) for source in candidates.get(prompt, ())]
            if doing:
                doing(f"judging {', '.join(Path(entrant.name).name for entrant in entrants)}")
            decided[prompt] = _select(prompt, entrants, _scored(reward, prompt, entrants), seeds)
            if log:
                log.add(decided[prompt])
            if bar:
                bar.update(len(entrants))
    finally:
        if bar:
            bar.close()
    if log:
        log.finish([decided[prompt] for prompt in unique])
    return [decided[prompt] for prompt in prompts]


def select(prompt: str, videos: Sequence[Video], reward: Reward) -> Selection:
    """The best of these videos, nothing written."""
    entrants = [_Entrant(video.name, video, None) for video in videos]
    return _select(prompt, entrants, _scored(reward, prompt, entrants), ())


# ---- candidates ---------------------------------------------------------------------------------------------------


def slug(prompt: str) -> str:
    """A file name stem for any prompt: up to 40 of its ASCII letters and digits for people, 10 digits of its sha256 for uniqueness."""
    words = _NOT_SLUG.sub("-", prompt[:200].lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(prompt.encode("utf-8", errors="surrogatepass")).hexdigest()[:10]
    return f"{words}-{digest}" if words else digest


def read_candidates(source: Path, prompts: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Given candidates by prompt, from a JSONL of ``{"prompt", "video"}`` (paths relative to it) or a folder.

    A folder holds ``candidates.jsonl``, or videos named ``<slug of the prompt>-<number>.<mp4|webm|gif|…>`` (``prompts`` says of which
    prompts). prompts: keep only these; None: all that the JSONL names.
    Raises ``ValueError`` when the source does not exist, a line is not such an object, or no candidate fits any prompt.
    """
    source = Path(source)
    listing = source / "candidates.jsonl" if source.is_dir() else source
    if not source.exists():
        raise ValueError(f"{source}: no such folder or JSONL of candidates")
    found: dict[str, list[Path]] = {prompt: [] for prompt in prompts or ()}
    if listing.is_file():
        for number, line in enumerate(listing.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                prompt, video = row["prompt"], listing.parent / row["video"]
                if not (isinstance(prompt, str) and prompt.strip()):
                    raise ValueError("no prompt")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{listing}: line {number}: expected {{"prompt": …, "video": …}}, received {line[:80]!r}'
                ) from error
            if prompts is None or prompt in found:
                found.setdefault(prompt, []).append(video)
    elif prompts is None:
        raise ValueError(f'{source}: expected a file candidates.jsonl of {{"prompt": …, "video": …}} in it, found none')
    else:
        stems = {slug(prompt): prompt for prompt in prompts}
        named = []
        for path in source.iterdir():
            stem, dash, number = path.stem.rpartition("-")
            if path.suffix.lower() in VIDEO_SUFFIXES and dash and number.isdecimal() and stem in stems:
                named.append((stem, int(number), path))
        for stem, _, path in sorted(named):
            found[stems[stem]].append(path)
    if not any(found.values()):
        named_like = f", or name them {slug(prompts[0])}-0.mp4, …" if prompts else ""
        raise ValueError(
            f'{source}: no candidate for any of the prompts; list them in a JSONL as {{"prompt": …, "video": …}}{named_like}'
        )
    return found


@dataclass(frozen=True)
class _Entrant:
    """One candidate: how it is called, and the video, or why there is none."""

    name: str
    video: Video | None
    error: str | None


def _opened(source: Path | Video) -> _Entrant:
    if isinstance(source, Video):
        return _Entrant(source.name, source, None)
    try:
        return _Entrant(str(source), Video.open(source), None)
    except ValueError as error:
        return _Entrant(str(source), None, str(error))


def _video_path(prompt: str, seed: int, out: Path | None) -> Path | None:
    return out / "videos" / f"{slug(prompt)}-{seed}.mp4" if out else None


def _all_generated(generate: Generate, prompt: str, seeds: Sequence[int], out: Path | None) -> list[_Entrant]:
    """The candidates of one prompt; those that are not on disk yet in one call where the generator can batch."""
    missing = [seed for seed in seeds if (path := _video_path(prompt, seed, out)) is None or not path.exists()]
    if not isinstance(generate, BatchGenerate) or len(missing) < 2:
        return [_generated(generate, prompt, seed, out) for seed in seeds]
    try:
        made = dict(zip(missing, generate.batch([prompt] * len(missing), missing), strict=True))
    except ValueError:
        # One of them is unusable; alone, each says so for itself and the others are kept.
        return [_generated(generate, prompt, seed, out) for seed in seeds]
    return [_generated(lambda _, each: made[each], prompt, seed, out) for seed in seeds]


def _generated(generate: Generate, prompt: str, seed: int, out: Path | None) -> _Entrant:
    """A candidate from the generator, or the finished file of an earlier run."""
    name = f"{slug(prompt)}-{seed}"
    path = _video_path(prompt, seed, out)
    if path is None or not path.exists():
        try:
            video = generate(prompt, seed)
            if path is None:
                return _Entrant(name, video, None)
            write_mp4(path, video.frames(range(len(video))).pixels, video.fps)
        except ValueError as error:
            return _Entrant(str(path or name), None, f"the generator gave no usable video: {error}")
    return _opened(path)


def _where(generate: object) -> str:
    """A generator without a provenance goes by where it is defined: "module:Name"."""
    kind = generate if hasattr(generate, "__qualname__") else type(generate)
    return f"{kind.__module__}:{kind.__qualname__}"


def _same_generator(out: Path, generate: object) -> None:
    """Refuse to take another generator's finished videos for this one's."""
    own = getattr(generate, "provenance", None)
    path, provenance = out / "generator.json", own or {"generator": _where(generate)}
    made = next((out / "videos").glob("*.mp4"), None)
    if own and made is not None and not path.exists():
        raise ValueError(f"{out}: who made {made.name} is not known ({path.name} is missing); write to another folder")
    _same(path, provenance, "videos come from another generator", "write to another folder")


def _same(path: Path, provenance: Mapping[str, str], what: str, cure: str) -> None:
    """Keep the provenance, or refuse to go on where another one is kept."""
    if not path.exists():
        write_whole(path, json.dumps(dict(provenance), indent=1, sort_keys=True) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [key for key in sorted({*before, *provenance}) if before.get(key) != provenance.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{path.parent}: its {what} ({', '.join(changed)} differ; {key} was {before.get(key)!r}, now {provenance.get(key)!r}); "
            f"{cure}, or go on with the same one"
        )


def _scored(reward: Reward, prompt: str, entrants: Sequence[_Entrant]) -> list[Score]:
    """One Score per entrant. All readable ones go to the reward in one call: they are the prompt's group."""
    present = [index for index, entrant in enumerate(entrants) if entrant.video is not None]
    scores = [Score.missing(entrant.error or "no video") for entrant in entrants]
    if present:
        fresh = reward([prompt] * len(present), [entrants[index].video for index in present])
        if len(fresh) != len(present):
            raise ValueError(
                f"reward {reward.name!r} returned {len(fresh)} scores for {len(present)} videos; expected one each"
            )
        for index, score in zip(present, fresh, strict=True):
            scores[index] = score
    return scores


# ---- choosing, and why --------------------------------------------------------------------------------------------


def _select(prompt: str, entrants: Sequence[_Entrant], scores: Sequence[Score], seeds: tuple[int, ...]) -> Selection:
    names = tuple(entrant.name for entrant in entrants)
    ranking = sorted(
        (i for i, score in enumerate(scores) if score.scored), key=lambda i: (-quantise(scores[i].value), i)
    )
    chosen = ranking[0] if ranking else None
    video = entrants[chosen].video if chosen is not None else None
    return Selection(prompt, chosen, names, tuple(scores), seeds, _reason(ranking, scores), video)


def _reason(ranking: Sequence[int], scores: Sequence[Score]) -> str:
    """Why the first of the ranking won, in plain sentences."""
    unscored = [index for index, score in enumerate(scores) if not score.scored]
    if not scores:
        return "Undecided: there is no candidate for this prompt."
    if not ranking:
        errors = "; ".join(f"candidate {index}: {_short(scores[index].error or '')}" for index in unscored)
        return f"Undecided: none of the {len(scores)} candidates has a score ({errors})."
    best = ranking[0]
    sentences = []
    if len(ranking) == 1:
        sentences.append(f"Candidate {best} ({scores[best].value:.4g}) is the only one with a score.")
    else:
        ties = [i for i in ranking[1:] if quantise(scores[i].value) == quantise(scores[best].value)]
        second = ranking[len(ties) + 1] if len(ranking) > len(ties) + 1 else None
        if ties:
            others = ", ".join(str(i) for i in ties)
            sentences.append(
                f"Candidate {best} is tied with candidate{'s' if len(ties) > 1 else ''} {others} at {scores[best].value:.4g}; "
                "the lowest index wins."
            )
        if second is not None:
            margin = quantise(scores[best].value) - quantise(scores[second].value)
            sentence = f"Candidate {best} ({scores[best].value:.4g}) beats candidate {second} by {margin:.4g}"
            sentences.append(sentence + _against(scores[best], scores[second]) + ".")
    seen = [f"candidate {i}: {text}" for i in ranking[1:] if (text := _anomaly_seen(scores[i]))]
    if seen:
        sentences.append("Anomalies seen in the others: " + "; ".join(seen) + ".")
    if flaw := _anomaly_seen(scores[best]):
        sentences.append(f"The chosen one is not clean either: {flaw}.")
    if unscored:
        errors = "; ".join(f"candidate {index}: {_short(scores[index].error or '')}" for index in unscored)
        sentences.append(f"Without a score: {errors}.")
    return " ".join(sentences)


def _against(best: Score, second: Score) -> str:
    """The parts in which two scores differ, ": unified 3.9 against 3.2, …"; of a combination the raw component values."""
    names = [name for name in best.parts if "/" not in name and name in second.parts]
    moved = [name for name in names if quantise(best.parts[name]) != quantise(second.parts[name])]
    return (
        ": " + ", ".join(f"{name} {best.parts[name]:.3g} against {second.parts[name]:.3g}" for name in moved)
        if moved
        else ""
    )


def _anomaly_seen(score: Score) -> str:
    """The first anomaly of an abnormal verdict in a few words, or an empty text."""
    if score.evidence is None or score.evidence.status != "abnormal":
        return ""
    if not score.evidence.anomalies:
        return "judged abnormal"
    anomaly, more = score.evidence.anomalies[0], len(score.evidence.anomalies) - 1
    when = f" at {anomaly.window.start_s:.2f}–{anomaly.window.end_s:.2f} s" if anomaly.window else ""
    why = f" ({_short(anomaly.reason)})" if anomaly.reason.strip() else ""
    return f"{anomaly.type}{when}{why}" + (f" and {more} more" if more else "")


def _short(text: str, limit: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
