"""VideoVeritas: is this video real or fake, as a reward.

video at 3 fps → system prompt, "real or fake?" → answer → P(real) at the verdict, or the share of votes for it
    → Score in [0, 1]

Upstream samples at temperature 0.7, so its verdict is a matter of chance. Here it is either decoded greedily and
the probability of the word is read, or sampled several times and the verdicts are counted (``votes``).

Source: VideoVeritas (arXiv 2602.08828), Qwen3-VL-8B, repository EricTan7/VideoVeritas (Apache-2.0) at 4f5bf1c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.judges.frames import rate_indices
from cac_align.rewards.judges.questions import SamenessAlarm, ask_each, model_entries
from cac_align.rewards.judges.real_or_fake import VERDICT, p_real, read_real_or_fake
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, read_upstream_prompt
from cac_align.rewards.judges.votes import voters_provenance, voters_uncertainty
from cac_align.rewards.reward import Score
from cac_align.vlm.protocol import Conversation, Message, Reply, Vlm

VIDEOVERITAS_FPS = 3.0

_REPOSITORY, _FILE = "EricTan7/VideoVeritas", "self_scripts/infer/infer_vllm_single.py"
_SYSTEM = (
    UpstreamPrompt("VideoVeritas's system prompt", _REPOSITORY, _FILE, "1ce40e58a85d", ()),
    UpstreamPrompt(
        "VideoVeritas's system prompt (batch)", _REPOSITORY, "self_scripts/infer/infer_vllm.py", "bc007c391913", ()
    ),
)
_QUESTION = (UpstreamPrompt("VideoVeritas's question", _REPOSITORY, _FILE, "bb4918915be5", ()),)


@dataclass(frozen=True)
class VideoVeritas:
    """VideoVeritas behind any vision-language model, a Reward in [0, 1]; the caption is not shown to it.

    prompt_file: your copy of upstream's file. Raises ``ValueError`` when it is not usable, and for two votes.
    """

    # The model once, decoding greedily; or once per vote, sampling with another seed each.
    voters: tuple[Vlm, ...]
    prompt_file: str | Path | None
    max_new_tokens: int = 4096
    name: str = "videoveritas"
    bounds: tuple[float, float] = (0.0, 1.0)
    _texts: tuple[str, str] = field(init=False, repr=False)
    _prompt_entry: str = field(init=False, repr=False)
    _alarm: SamenessAlarm = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.voters or len(self.voters) == 2:
            raise ValueError(f"votes must be 3 or more, received {len(self.voters)}: a share of fewer says nothing")
        found = [read_upstream_prompt(known, self.prompt_file) for known in (_SYSTEM, _QUESTION)]
        object.__setattr__(self, "_texts", tuple(text for text, _ in found))
        object.__setattr__(self, "_prompt_entry", "; ".join(entry for _, entry in found))
        object.__setattr__(self, "_alarm", SamenessAlarm(self.name))

    @property
    def vlm(self) -> Vlm:
        """The first voter: it stands for the server in checks of reachability."""
        return self.voters[0]

    def with_vlms(self, wrap: Callable[[Vlm], Vlm]) -> VideoVeritas:
        """The same reward, with each voter wrapped, e.g. to count its tokens."""
        return replace(self, voters=tuple(map(wrap, self.voters)))

    @property
    def provenance(self) -> Mapping[str, str]:
        count = len(self.voters)
        how = "P(real) at the verdict" if count == 1 else f"share of real in {count} sampled verdicts"
        return {
            "reward": f"VideoVeritas, {how}",
            "prompt": self._prompt_entry,
            "frames": "video at 3 fps, linspace(0, N-1, int(N / source fps * 3)) rounded, 4 to 768",
            "max_new_tokens": str(self.max_new_tokens),
        } | model_entries(self.vlm.provenance)

    def conversation(self, prompt: str, video: Video) -> Conversation:
        """The question about one video. Raises ``ValueError`` when the video cannot be decoded."""
        system, question = self._texts
        frames = video.frames(rate_indices(len(video), video.fps, VIDEOVERITAS_FPS), fps=VIDEOVERITAS_FPS)
        return (Message("system", system), Message("user", question, frames))

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order; parts ``p_real`` and ``p_fake``, or ``votes`` and ``votes_real``."""
        prompts, videos = as_pairs(prompts, videos)
        if len(self.voters) == 1:
            scores = self._ask(self.vlm, prompts, videos)
        else:
            before = voters_provenance(self.voters)
            ballots = [self._ask(voter, prompts, videos) for voter in self.voters]
            reason = voters_uncertainty(before, self.voters)
            scores = [_count([ballot[index] for ballot in ballots], reason) for index in range(len(videos))]
        self._alarm.see(scores)
        return scores

    def _ask(self, vlm: Vlm, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        probable = len(self.voters) == 1
        return ask_each(
            vlm,
            self.conversation,
            _read_probability if probable else _read_vote,
            prompts,
            videos,
            provenance=lambda: self.provenance,
            max_new_tokens=self.max_new_tokens,
            readout=VERDICT if probable else None,
        )


def _read_probability(reply: Reply) -> tuple[float, dict[str, float]]:
    return p_real(reply, read_real_or_fake(reply.text))


def _read_vote(reply: Reply) -> tuple[float, dict[str, float]]:
    return float(read_real_or_fake(reply.text) == "real"), {}


def _count(votes: Sequence[Score], reason: str | None) -> Score:
    """The share of "real" among the votes. reason: why none of them counts."""
    failed = [vote for vote in votes if not vote.scored]
    provenance = votes[0].provenance
    if failed or reason is not None:
        why = reason or f"{len(failed)} of {len(votes)} votes have no verdict, the first because: {failed[0].error}"
        return Score.missing(why, provenance=provenance)
    real = math.fsum(vote.value for vote in votes)
    return Score(real / len(votes), {"votes": float(len(votes)), "votes_real": real}, provenance=provenance)
