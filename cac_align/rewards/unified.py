"""UnifiedReward-2.0's video point score: 16 frames in, Alignment, Physics and Style from 1 to 5
out, their mean as the score.

video → 16 frames at int(i N / 16), as images → prompt with the caption → answer text
    → read_axes → Score(mean, parts)

The prompt is our own wording unless ``prompt_file`` is the user's copy of upstream's, which is
checked by its hash; the provenance says which. Scores are raw, in ``bounds`` = [1, 5];
``combine``'s ``range`` makes (x − 1) / 4 of them. The video score has Physics where upstream's
image score has Coherence, so an answer with Coherence answers another question.

Source: UnifiedReward (arXiv 2503.05236), repository CodeGoat24/UnifiedReward (MIT),
inference_qwen/UnifiedReward-2.0-inference/point_score_APS_video_generation.py.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cac_align.core.text import quoted_excerpt
from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.domain import Domain, domain_provenance, read_domain, score_inside_domain
from cac_align.rewards.judges.questions import ask_each
from cac_align.rewards.judges.upstream_prompt import text_digest, texts_in
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Conversation, Message, Reply, Vlm
from cac_align.vlm.replies import checked_provenance

NUM_FRAMES = 16
AXES = ("alignment", "physics", "style")
# First 12 hexadecimal digits of the sha256 of upstream's video prompt (713 characters).
UPSTREAM_SHA256 = "707411fb9175"
UPSTREAM_REPOSITORY = "https://github.com/CodeGoat24/UnifiedReward"
UPSTREAM_FILE = "inference_qwen/UnifiedReward-2.0-inference/point_score_APS_video_generation.py"

_OWN_PROMPT = Path(__file__).with_name("prompts") / "unified_video.md"
_SLOT = "{prompt}"
_VIDEOS_AT_ONCE = 32  # limits decoded frames in memory: 16 of 480P are 19 MB
# Applied to text whose white space is single spaces, so that they take linear time.
_HEADING = re.compile(
    r"\b(alignment|physics|coherence|style) score ?(?:\(([^()]{0,40})\))? ?\*{0,3} ?: ?\*{0,3} ?(?=(\S{0,40}))",
    re.IGNORECASE,
)
_RANGE = re.compile(r" ?(\d{1,6}(?:\.\d{1,6})?) ?[-–] ?(\d{1,6}(?:\.\d{1,6})?) ?")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?[*.,;]*")
_LOWEST, _HIGHEST = 1.0, 5.0

_warned = False


def sample_indices(num_frames: int) -> tuple[int, ...]:
    """Source indices of the frames: ``int(i N / 16)`` for i = 0 … 15, each once. 81 frames give 0,
    5, 10, …, 75.

    Of fewer than 16 frames upstream repeats some; here each is shown once, because ``Frames`` has
    each source index once.
    """
    return tuple(sorted({int(i * num_frames / NUM_FRAMES) for i in range(NUM_FRAMES)}))


def read_axes(text: str) -> dict[str, float]:
    """The three axes in an answer. Per axis the last heading counts, because a model may reason
    first.

    A heading may declare another range than 1 to 5, as in "Physics Score (1.0-10.0): 4.8"; the
    value is rescaled to 1 to 5. Raises ``ValueError`` naming the axis that is missing, is not a plain
    number, or lies outside its range.
    """
    found = {match.group(1).lower(): match.groups()[1:] for match in _HEADING.finditer(" ".join(text.split()))}
    axes: dict[str, float] = {}
    for axis in AXES:
        name = f"{axis.capitalize()} Score"
        if axis not in found:
            raise ValueError(f"no {name} in the answer {quoted_excerpt(text)}")
        declared, written = found[axis]
        lowest, highest = _declared_range(name, declared, text)
        number = _NUMBER.fullmatch(written)
        if number is None or (number.group(2) is not None and float(number.group(2)) != highest):
            raise ValueError(f"{name} is not a number in the answer {quoted_excerpt(text)}")
        value = float(number.group(1))
        if not lowest <= value <= highest:
            raise ValueError(
                f"{name} {value:g} lies outside {lowest:g} to {highest:g} in the answer {quoted_excerpt(text)}"
            )
        if (lowest, highest) != (_LOWEST, _HIGHEST):
            value = _LOWEST + (value - lowest) / (highest - lowest) * (_HIGHEST - _LOWEST)
        axes[axis] = value
    return axes


def _declared_range(name: str, declared: str | None, text: str) -> tuple[float, float]:
    """The range in a heading's brackets, or 1 to 5 without brackets."""
    if declared is None:
        return _LOWEST, _HIGHEST
    match = _RANGE.fullmatch(declared)
    if match is None or not float(match.group(1)) < float(match.group(2)):
        raise ValueError(
            f"{name} declares the range ({declared}), expected e.g. (1-5), in the answer {quoted_excerpt(text)}"
        )
    return float(match.group(1)), float(match.group(2))


def write_axes(axes: Mapping[str, float]) -> str:
    """The answer a model is trained to give, which ``read_axes`` reads back: one line per axis."""
    return "\n".join(f"{axis.capitalize()} Score (1-5): {axes[axis]:g}" for axis in AXES)


def own_prompt() -> str:
    """Our own wording, with the slot ``{prompt}`` still open."""
    return _OWN_PROMPT.read_text(encoding="utf-8").rstrip("\n")


def fill_prompt(template: str, prompt: str) -> str:
    """The template with the caption in its slot, replaced literally, because captions may contain
    braces.
    """
    return template.replace(_SLOT, prompt)


class UnifiedReward:
    """UnifiedReward-2.0's video point score, a Reward. Values are the mean of the three axes, in
    [1, 5].

    vlm: the model behind any backend. prompt_file: the user's copy of upstream's prompt text; its
    sha256 must begin with ``UPSTREAM_SHA256`` unless ``allow_other_prompt``. Raises ``ValueError``
    for a prompt file that cannot be read, is another text, or has no ``{prompt}`` slot.
    """

    name = "unified"
    bounds = (1.0, 5.0)

    def __init__(
        self,
        vlm: Vlm,
        *,
        prompt_file: Path | None = None,
        max_new_tokens: int = 512,
        allow_other_prompt: bool = False,
        domain: Domain | None = None,
        allow_out_of_domain: bool = False,
    ) -> None:
        self.vlm = vlm
        self.domain = domain
        self.allow_out_of_domain = allow_out_of_domain
        self.max_new_tokens = max_new_tokens
        self.template, self._prompt_entry = _load_template(prompt_file, allow_other_prompt)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        prompt_file: Path | None = None,
        max_new_tokens: int = 512,
        allow_other_prompt: bool = False,
        allow_out_of_domain: bool = False,
        **backend: Any,
    ) -> UnifiedReward:
        """UnifiedReward on a checkpoint (folder or hub id) that runs here, or on the URL of an
        OpenAI-compatible server.

        backend: passed to ``LocalVlm.load`` (device, dtype, batch_size, …) or ``ServerVlm``
        (concurrency, timeout_s, …; ``served_model`` is "UnifiedReward" unless given, the name in
        upstream's own server command). Raises ``ValueError`` when the model cannot be loaded or
        reached, or the prompt file is not usable.
        """
        from cac_align.vlm.connect import connect

        model = str(model)
        if model.startswith(("http://", "https://")):
            backend.setdefault("served_model", "UnifiedReward")
        vlm = connect(model, **backend)
        domain = read_domain(model)
        if domain is None:  # the miniature's scorer was trained with our own words
            warn_about_wording(prompt_file)
        return cls(
            vlm,
            prompt_file=prompt_file,
            max_new_tokens=max_new_tokens,
            allow_other_prompt=allow_other_prompt,
            domain=domain,
            allow_out_of_domain=allow_out_of_domain,
        )

    @classmethod
    def miniature(cls, **backend: Any) -> UnifiedReward:
        """The small trained scorer that ships with the package: real architecture, made for the
        miniature world only.
        """
        from cac_align.core.weights import shipped

        return cls.load(str(shipped("unified")), max_new_tokens=96, **backend)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "reward": "UnifiedReward video point score (alignment, physics, style; mean, 1 to 5)",
            "prompt": self._prompt_entry,
            "frames": f"{NUM_FRAMES} at int(i*N/{NUM_FRAMES}) as images before the text; "
            f"videos below {NUM_FRAMES} frames: each once",
            "max_new_tokens": str(self.max_new_tokens),
            **domain_provenance(self.domain, self.allow_out_of_domain),
        } | {f"vlm/{key}": value for key, value in checked_provenance(self.vlm.provenance, "the Vlm").items()}

    def conversation(self, prompt: str, video: Video) -> Conversation:
        """The question about one video: its frames as images, then the text, without system
        message.

        Raises ``ValueError`` when the video cannot be decoded.
        """
        frames = video.frames(sample_indices(len(video)))
        return (Message("user", fill_prompt(self.template, prompt), frames, as_images=True),)

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order; parts ``alignment``, ``physics``, ``style``. A failure
        affects its own video only.
        """
        prompts, videos = as_pairs(prompts, videos)
        allowed = self.allow_out_of_domain
        return score_inside_domain(
            self.domain, prompts, videos, self._score_all, lambda: self.provenance, allowed=allowed
        )

    def _score_all(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """One Score per video, in order, whatever the domain."""
        return ask_each(
            self.vlm,
            self.conversation,
            _read,
            prompts,
            videos,
            provenance=lambda: self.provenance,
            max_new_tokens=self.max_new_tokens,
            videos_at_once=_VIDEOS_AT_ONCE,
        )


def _read(reply: Reply) -> tuple[float, dict[str, float]]:
    axes = read_axes(reply.text)
    return math.fsum(axes.values()) / len(axes), axes


def _load_template(prompt_file: Path | None, allow_other_prompt: bool) -> tuple[str, str]:
    """The prompt text with its open slot, and the provenance's entry about it."""
    if prompt_file is None or not (allow_other_prompt or Path(prompt_file).exists()):
        text = own_prompt()
        missing = "" if prompt_file is None else f" ({Path(prompt_file).name} is missing)"
        return text, f"own wording{missing}, sha256 {text_digest(text)}"
    try:
        text = Path(prompt_file).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{prompt_file}: the prompt file cannot be read as UTF-8 text: {error}") from error
    # Editors add a final newline, which upstream's literal does not have.
    forms = [text, text.removesuffix("\n"), *(texts_in(text) if Path(prompt_file).suffix == ".py" else ())]
    upstream = next((form for form in forms if text_digest(form) == UPSTREAM_SHA256), None)
    if upstream is not None:
        return upstream, f"upstream, sha256 {UPSTREAM_SHA256}"
    if not allow_other_prompt:
        raise ValueError(
            f"{prompt_file}: sha256 {text_digest(text)}, expected {UPSTREAM_SHA256} "
            "(UnifiedReward-2.0's video point score); "
            "take the text from upstream's point_score_APS_video_generation.py, or pass allow_other_prompt=True"
        )
    if _SLOT not in text:
        raise ValueError(f"{prompt_file}: no slot {_SLOT} for the caption; write it where the caption belongs")
    return text, f"other text ({Path(prompt_file).name}), sha256 {text_digest(text)}, not upstream's {UPSTREAM_SHA256}"


def warn_about_wording(prompt_file: Path | None) -> None:
    """Say once per run on stderr that a full-size scorer is asked in our words and not as it was trained. Of several
    processes of one run the first says it.
    """
    global _warned
    lacks = prompt_file is None or not Path(prompt_file).exists()
    if lacks and not _warned and os.environ.get("RANK", "0") == "0":
        _warned = True
        lacking = "no prompt_file is named" if prompt_file is None else f"{prompt_file} does not exist"
        print(
            f"UnifiedReward is asked in our own words, which is another reward than the published one: {lacking}. "
            f"Fetch {UPSTREAM_FILE} (sha256 of its prompt {UPSTREAM_SHA256}) from {UPSTREAM_REPOSITORY} and name it as "
            "prompt_file.",
            file=sys.stderr,
        )
