"""The domain of a reward: which videos and prompts its judge was made for, and what happens to others.

``cac_align.json`` of a judge's folder → read_domain → Domain → score_inside_domain → a missing score outside it

The entry ``domain`` of the file holds the fields of ``Domain``. A judge without it has no stated domain, and nothing
is checked. A reward tells its domain by the attribute ``domain`` and by the entry "domain" of its provenance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cac_align.cac.judge_settings import FILE_NAME, read_settings_file
from cac_align.core.video import Video
from cac_align.rewards.reward import Score

ALLOW_KEY = "allow_out_of_domain"
# What to use instead for videos of the real world.
_FOR_REAL_VIDEO = (
    "for real video use a served Qwen3-VL, by the reward recipe qwen3vl_8b_server, qwen3vl_4b_server or "
    "qwen3vl_2b_server (`cac-align recipes show NAME` says how to start the servers), or an endpoint of yours, by the "
    "recipe api"
)
_FPS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Domain:
    """What a judge was made for. An empty field allows everything. Raises ``ValueError`` for a wrong ``prompt``."""

    # Name of the domain; it enters provenances, pages and JSON.
    name: str
    # A regular expression that the whole prompt must match, upper or lower case.
    prompt: str = ""
    # A prompt that matches, for messages.
    example: str = ""
    # Height and width in pixels of the frames.
    frame_sizes: tuple[tuple[int, int], ...] = ()
    # Numbers of frames.
    num_frames: tuple[int, ...] = ()
    # Frames per second.
    fps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        try:
            re.compile(self.prompt)
        except re.error as error:
            raise ValueError(
                f"domain {self.name!r}: prompt is no regular expression ({error}): {self.prompt}"
            ) from error

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Domain:
        """The domain of a settings file. Raises ``ValueError`` for an unknown field or a missing name."""
        known = [item.name for item in fields(cls)]
        if not row.get("name") or set(row) - set(known):
            raise ValueError(f"domain needs a name and takes {', '.join(known)}; received {sorted(row)}")
        sizes = tuple((int(height), int(width)) for height, width in row.get("frame_sizes", ()))
        lengths = tuple(map(int, row.get("num_frames", ())))
        rates = tuple(map(float, row.get("fps", ())))
        return cls(row["name"], row.get("prompt", ""), row.get("example", ""), sizes, lengths, rates)

    def describe(self) -> str:
        """The domain in words, such as "17 frames of 64 x 64 px at 16 fps, prompts like 'a red ball …'"."""
        lengths = " or ".join(map(str, self.num_frames))
        sizes = " or ".join(f"{height} x {width} px" for height, width in self.frame_sizes)
        rates = " or ".join(f"{rate:g} fps" for rate in self.fps)
        video = " ".join(
            text for text in (lengths and f"{lengths} frames", sizes and f"of {sizes}", rates and f"at {rates}") if text
        )
        return ", ".join(text for text in (video, self.example and f"prompts like {self.example!r}") if text)

    def mismatch(self, prompt: str, video: Video) -> str | None:
        """What of a prompt and a video lies outside the domain; None when nothing does."""
        found: list[str] = []
        if self.frame_sizes and (video.height, video.width) not in self.frame_sizes:
            found.append(f"its frames are {video.height} x {video.width} px")
        if self.num_frames and len(video) not in self.num_frames:
            found.append(f"it has {len(video)} frame{'s' if len(video) != 1 else ''}")
        if self.fps and all(abs(video.fps - rate) > _FPS_TOLERANCE * rate for rate in self.fps):
            found.append(f"it has {video.fps:g} frames per second")
        if self.prompt and not re.fullmatch(self.prompt, prompt.strip(), re.IGNORECASE):
            found.append(f"the prompt is {prompt[:60]!r}")
        return ", ".join(found) or None


def read_domain(folder: str | Path) -> Domain | None:
    """The domain that the settings file in a judge's folder states; None when it states none.

    Hub repositories and servers are not asked. Raises ``ValueError`` when the entry is wrong.
    """
    row = read_settings_file(folder).get("domain") if Path(folder).is_dir() else None
    if row is None:
        return None
    try:
        return Domain.from_json(row)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{Path(folder) / FILE_NAME}: {error}") from error


def score_inside_domain(
    domain: Domain | None,
    prompts: Sequence[str],
    videos: Sequence[Video],
    score: Callable[[Sequence[str], Sequence[Video]], list[Score]],
    provenance: Callable[[], Mapping[str, str]],
    *,
    allowed: bool = False,
) -> list[Score]:
    """One score per video, in order: missing outside the domain, and what ``score`` gives for the others in one call.

    provenance: makes the provenance of the missing scores. allowed: all are scored; where one outside the domain
    comes back without a score, its error begins with what the judge was made for.
    """
    if domain is None:
        return score(prompts, videos)
    if allowed:
        return [
            _explained(domain, found, domain.mismatch(prompt, video))
            for found, prompt, video in zip(score(prompts, videos), prompts, videos, strict=True)
        ]
    reasons = [domain.mismatch(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
    inside = [index for index, reason in enumerate(reasons) if reason is None]
    scores: dict[int, Score] = {}
    if inside:
        found = score([prompts[index] for index in inside], [videos[index] for index in inside])
        scores = dict(zip(inside, found, strict=True))
    stated = provenance() if len(inside) < len(videos) else {}
    for index, reason in enumerate(reasons):
        if reason is not None:
            text = f"{_outside(domain, reason)}, or set {ALLOW_KEY}=true to score it all the same"
            scores[index] = Score.missing(text, provenance=stated)
    return [scores[index] for index in range(len(videos))]


def _outside(domain: Domain, reason: str) -> str:
    """What a judge was made for, what of a video lies outside it, and what to use instead."""
    return (
        f"outside the domain of this reward, which is a toy for the {domain.name} ({domain.describe()}): "
        f"{reason}; {_FOR_REAL_VIDEO}"
    )


def _explained(domain: Domain, score: Score, reason: str | None) -> Score:
    """The same score; a missing one of a video outside the domain says so before what went wrong."""
    if score.scored or reason is None:
        return score
    return replace(score, error=f"{_outside(domain, reason)}. The judge's failure: {score.error}")


def domain_provenance(domain: Domain | None, allow_out_of_domain: bool) -> dict[str, str]:
    """The provenance's entries about a reward's domain."""
    if domain is None:
        return {}
    return {"domain": domain.name} | ({"out_of_domain": "allowed"} if allow_out_of_domain else {})


def domain_name(provenance: Mapping[str, str]) -> str | None:
    """The domain that a provenance names, also that of a component; None when it names none."""
    return next((value for key, value in provenance.items() if key.rpartition("/")[2] == "domain"), None)


def domains_of(reward: object) -> dict[str, Domain]:
    """The domains that a reward, its components or the reward behind its ledger state, by name."""
    found: dict[str, Domain] = {}
    if isinstance(own := getattr(reward, "domain", None), Domain):
        found[own.name] = own
    components = getattr(reward, "components", None)
    inner = list(components.values()) if isinstance(components, Mapping) else []
    for part in (*inner, getattr(reward, "reward", None)):
        if part is not None:
            found |= domains_of(part)
    return found


def domain_notice(reward: object) -> str | None:
    """One sentence about the domain of a reward and what to use outside it; None when it states none."""
    found = list(domains_of(reward).values())
    if not found:
        return None
    return f"this reward is a toy for the {found[0].name} ({found[0].describe()}); {_FOR_REAL_VIDEO}"


def page_notice(provenance: Mapping[str, str]) -> str | None:
    """The same sentence for a page that has only the provenance of its scores."""
    name = domain_name(provenance)
    return None if name is None else f"Domain: {name}. This reward is a toy for the {name}; {_FOR_REAL_VIDEO}."
