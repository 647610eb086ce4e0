"""UnifiedReward-Think and -Flex: judges that only compare two videos.

prompt, two videos → 8 + 8 frames as images, then upstream's text → answer
    → winner, and P(first) / (P(first) + P(second)) where the server gives log-probabilities

Frames lie at ``linspace(0, N − 1, 8)``. Think ends with ``<answer>Video 1 is better</answer>``, Flex
with a JSON object whose ``winner`` is "Video 1" or "Video 2". Neither has a tie.

Source: UnifiedReward (arXiv 2503.05236), -Think (2505.03318), -Flex (2602.02380), repository
CodeGoat24/UnifiedReward (MIT) at ff6f520.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_align.core.video import Video
from cac_align.rewards.judges.frames import even_indices, joined_frames
from cac_align.rewards.judges.questions import model_entries
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, fill_slots, read_upstream_prompt
from cac_align.rewards.pairwise.comparison import Comparison
from cac_align.vlm.protocol import Conversation, Message, Readout, Reply, Vlm
from cac_align.vlm.replies import checked_replies

FRAMES_PER_VIDEO = 8
_PAIRS_AT_ONCE = 32  # limits decoded frames in memory

_THINK = (
    UpstreamPrompt(
        "UnifiedReward-Think (Qwen3-VL), two videos",
        "CodeGoat24/UnifiedReward",
        "UnifiedReward-Think/inference_qwen/UnifiedReward-Think-qwen3-inference/qwen3_infer_cot_video_generation.py",
        "e40c6e7f767f",
    ),
    UpstreamPrompt(
        "UnifiedReward-Think (Qwen2.5-VL), two videos",
        "CodeGoat24/UnifiedReward",
        "UnifiedReward-Think/inference_qwen/video_generation/qwen_infer_cot_video_generation.py",
        "f45197425b81",
    ),
)
_FLEX = (
    UpstreamPrompt(
        "UnifiedReward-Flex, two videos",
        "CodeGoat24/UnifiedReward",
        "UnifiedReward-Flex/flex_pair_rank_video_generation.py",
        "dd95da9d5f2b",
    ),
)
_ANSWER = re.compile(r"<answer>([^<]*)</answer>")
_VIDEO_NUMBER = re.compile(r"<answer>\s*Video (?=[12])")
_WINNER_NUMBER = re.compile(r'"winner"\s*:\s*"Video (?=[12])')
_VERDICT = re.compile(r"video ([12]) is better\.?", re.IGNORECASE)


def read_think(text: str) -> int:
    """Which video the last ``<answer>`` calls better, 1 or 2. Raises ``ValueError`` for none."""
    answers = _ANSWER.findall(text)
    verdict = _VERDICT.fullmatch(answers[-1].strip()) if answers else None
    if verdict is None:
        raise ValueError(f"no <answer>Video 1 is better</answer> or Video 2 in the answer {text[-160:]!r}")
    return int(verdict.group(1))


def read_flex(text: str) -> int:
    """Which video the JSON object's ``winner`` names, 1 or 2. Raises ``ValueError`` for none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        row = json.loads(text[start : end + 1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object in the answer ({error}): {text[-160:]!r}") from error
    winner = row.get("winner") if isinstance(row, dict) else None
    found = re.fullmatch(r"video ([12])", winner.strip(), re.IGNORECASE) if isinstance(winner, str) else None
    if found is None:
        raise ValueError(f"winner is {winner!r}, expected 'Video 1' or 'Video 2'")
    return int(found.group(1))


def _after_answer(text: str) -> int | None:
    return max((match.end() for match in _VIDEO_NUMBER.finditer(text)), default=None)


def _after_winner(text: str) -> int | None:
    return max((match.end() for match in _WINNER_NUMBER.finditer(text)), default=None)


@dataclass(frozen=True)
class _Form:
    """How one of the family is asked and read."""

    name: str
    prompts: tuple[UpstreamPrompt, ...]
    read: Callable[[str], int]
    locate: Callable[[str], int | None]


_FORMS = {
    "unified_think": _Form("unified_think", _THINK, read_think, _after_answer),
    "unified_flex": _Form("unified_flex", _FLEX, read_flex, _after_winner),
}


class UnifiedPairs:
    """UnifiedReward-Think ("unified_think") or -Flex ("unified_flex"), a Comparator.

    prompt_file: your copy of upstream's file. Raises ``ValueError`` for an unknown form and for a
    prompt file that is not usable.
    """

    def __init__(
        self,
        form: str,
        vlm: Vlm,
        *,
        prompt_file: str | Path | None,
        allow_other_prompt: bool = False,
        max_new_tokens: int = 4096,
    ) -> None:
        if form not in _FORMS:
            raise ValueError(f"form must be one of {', '.join(_FORMS)}, received {form!r}")
        self._form = _FORMS[form]
        self.vlm = vlm
        self.max_new_tokens = max_new_tokens
        self.template, self._prompt_entry = read_upstream_prompt(
            self._form.prompts, prompt_file, allow_other_prompt=allow_other_prompt
        )

    @property
    def name(self) -> str:
        return self._form.name

    @property
    def provenance(self) -> Mapping[str, str]:
        return {
            "prompt": self._prompt_entry,
            "frames": f"{FRAMES_PER_VIDEO} + {FRAMES_PER_VIDEO} at linspace(0, N-1, {FRAMES_PER_VIDEO}) as images",
            "max_new_tokens": str(self.max_new_tokens),
        } | model_entries(self.vlm.provenance)

    def conversation(self, prompt: str, first: Video, second: Video) -> Conversation:
        """The question about one ordered pair. Raises ``ValueError`` when a video cannot be read."""
        shown = [video.frames(even_indices(len(video), FRAMES_PER_VIDEO)) for video in (first, second)]
        text = fill_slots(self.template, {"{prompt}": prompt})
        return (Message("user", text, joined_frames(*shown), as_images=True),)

    def compare(self, prompts: Sequence[str], firsts: Sequence[Video], seconds: Sequence[Video]) -> list[Comparison]:
        """One Comparison per (prompt, first, second), in order; a failure is its own pair's."""
        questions = list(zip(prompts, firsts, seconds, strict=True))
        found: list[Comparison] = []
        for start in range(0, len(questions), _PAIRS_AT_ONCE):
            found += self._compare(questions[start : start + _PAIRS_AT_ONCE])
        return found

    def _compare(self, questions: Sequence[tuple[str, Video, Video]]) -> list[Comparison]:
        found: dict[int, Comparison] = {}
        conversations: dict[int, Conversation] = {}
        for index, question in enumerate(questions):
            try:
                conversations[index] = self.conversation(*question)
            except (ValueError, OSError) as error:
                found[index] = Comparison.missing(f"a video cannot be shown: {error}")
        if conversations:
            readout = Readout(("1", "2"), self._form.locate)
            returned = self.vlm.answer(
                list(conversations.values()), max_new_tokens=self.max_new_tokens, readout=readout
            )
            replies = checked_replies(returned, len(conversations), readout)
            found |= {index: self._read(reply) for index, reply in zip(conversations, replies, strict=True)}
        return [found[index] for index in range(len(questions))]

    def _read(self, reply: Reply) -> Comparison:
        if reply.error is not None:
            return Comparison.missing(f"the model gave no answer: {reply.error}")
        if reply.truncated:
            return Comparison.missing("the answer was cut off at the token limit", reply.text)
        try:
            winner = self._form.read(reply.text)
        except ValueError as error:
            return Comparison.missing(str(error), reply.text)
        tokens = {"read": reply.num_prompt_tokens, "written": reply.num_tokens}
        p = float(winner == 1)
        if reply.log_p is not None and not reply.bounded:
            lead = reply.log_p["1"] - reply.log_p["2"]
            soft = 1 / (1 + math.exp(-lead)) if abs(lead) < 700 else float(lead > 0)
            if not math.isnan(soft) and (soft >= 0.5) == (winner == 1):
                p = soft
        return Comparison(p, None, reply.text, tokens)
