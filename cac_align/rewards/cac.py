"""The CaC reward: judge in two turns, read R = P(normal) / (P(normal) + P(abnormal)) off the deciding turn (Eq. 7).

prompts, videos → two_turn.judge → Judgement → Score in [0, 1], with the judgement as its evidence

With ``VerdictOnly`` settings it is a different, cheaper reward under a name and passport of its own (see ``cac.verdict_only``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cac_align.cac import two_turn, verdict_only
from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.judgement import Judgement
from cac_align.rewards.reward import Score, check_pairs
from cac_align.video import Video
from cac_align.vlm.connect import connect
from cac_align.vlm.protocol import Vlm
from cac_align.weights import shipped


@dataclass(frozen=True)
class CaC:
    """CaC behind any vision-language model; a ``Reward``.

    vlm: who is asked. settings: how (see ``TwoTurn``); with ``VerdictOnly`` the name is "cac_verdict_only" unless given. min_mass: P(normal) + P(abnormal) below this means that the model wanted to
    write something else, and there is no score. bounds: the range of its values, for ``normalise="range"``.
    """

    vlm: Vlm
    settings: TwoTurn | VerdictOnly = field(default_factory=TwoTurn)
    min_mass: float = 0.01
    name: str = ""
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", "cac" if isinstance(self.settings, TwoTurn) else "cac_verdict_only")

    @classmethod
    def load(cls, model: str, *, settings: TwoTurn | VerdictOnly | None = None, min_mass: float = 0.01, **backend: Any) -> CaC:
        """``model``: a checkpoint (folder or hub id) to run here, or the URL of an OpenAI-compatible server.

        backend: passed to ``LocalVlm.load`` (device, dtype, batch_size, …) or ``ServerVlm`` (served_model, concurrency, timeout_s, …).
        Raises ``ValueError`` when the model cannot be loaded or reached.
        """
        return cls(connect(model, **backend), settings or TwoTurn(), min_mass)

    @classmethod
    def miniature(cls, **backend: Any) -> CaC:
        """The small trained judge that ships with the package: real architecture, made for the miniature world only."""
        return cls.load(str(shipped("cac")), settings=TwoTurn(wording="brief", max_new_tokens=400), **backend)

    @property
    def passport(self) -> Mapping[str, str]:
        kind = "cac" if isinstance(self.settings, TwoTurn) else "cac verdict only"
        return {"reward": kind, "min_mass": repr(self.min_mass), **two_turn.passport(self.settings, self.vlm)}

    def judge(
        self, prompts: Sequence[str], videos: Sequence[Video], *, progress: Callable[[int], None] | None = None
    ) -> list[Judgement]:
        """The judgements themselves, one per video, in order."""
        ask = two_turn.judge if isinstance(self.settings, TwoTurn) else verdict_only.judge
        return ask(self.vlm, prompts, videos, self.settings, progress=progress)

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        check_pairs(prompts, videos)
        passport = self.passport
        return [self._score(judgement, passport) for judgement in self.judge(prompts, videos)]

    def _score(self, judgement: Judgement, passport: Mapping[str, str]) -> Score:
        if judgement.error is not None:
            return Score.missing(f"cac: {judgement.error}", evidence=judgement, passport=passport)
        parts = {"p_normal": judgement.p_normal, "p_abnormal": judgement.p_abnormal, "mass": judgement.mass}
        if not judgement.mass >= self.min_mass:
            reason = f"cac: the verdict's two words hold only {judgement.mass:.3g} of the probability (limit {self.min_mass:g})"
            return Score.missing(reason, parts=parts, evidence=judgement, passport=passport)
        return Score(judgement.reward, {**parts, "log_odds": judgement.log_odds}, judgement, None, passport)
