"""The single-turn formulation: one look at the whole 4 fps video gives status, windows and boxes at
once.

videos → one turn (4 fps) → Judgement
         unusable answer → asked again with its faults quoted
    → still unusable: no verdict, but the reason

The paper's ablation compares it with two turns. Boxes refer to the 4 fps frames, and a defect
between two of them is never seen. It is another reward: name, provenance and prompt hash differ.

Source: CaC (arXiv 2605.11723) Sec. 4.3, Table 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from cac_align.cac.prompts import single_turn_conversation, wording_hash
from cac_align.cac.two_turn import TurnState, ask_turns, check_rates, decide
from cac_align.core.judgement import Judgement
from cac_align.core.video import Frames, Video
from cac_align.vlm.dialogue import Dialogue


@dataclass(frozen=True)
class SingleTurn:
    """How the single turn is asked: fields as in ``TwoTurn``. Every field is part of the reward's
    provenance.
    """

    scan_fps: float = 4.0
    wording: str = "full"
    constrained: bool = False
    max_new_tokens: int = 4096
    retries: int = 1

    probabilities = True  # as in TwoTurn, and not a choice

    def __post_init__(self) -> None:
        check_rates(scan_fps=self.scan_fps)
        if self.max_new_tokens < 1 or self.retries < 0:
            raise ValueError(
                f"expected max_new_tokens >= 1 and retries >= 0, received {self.max_new_tokens} and {self.retries}"
            )

    def provenance(self) -> dict[str, str]:
        fields = {name: str(getattr(self, name)) for name in self.__dataclass_fields__}
        return {"mode": "single turn: no second look", **fields, "prompt_sha256": single_turn_hash(self.wording)}


def single_turn_hash(wording: str) -> str:
    """First 12 hex digits of the sha256 over the texts that a single turn sends in this wording."""
    return wording_hash(wording, ("single_turn", "retry"))


def single_turn_dialogue(prompt: str, video: Video, frames: Frames, settings: SingleTurn) -> Dialogue[Judgement]:
    """The dialogue that judges one video in a single turn (number 1), whose answer has windows and
    boxes.
    """
    conversation = single_turn_conversation(prompt, frames, wording=settings.wording)
    (only,) = yield from ask_turns([TurnState(1, conversation, frames, single=True)], settings)
    if only.error is not None:
        return Judgement(None, turns=only.turns, error=f"single turn: {only.error}")
    return decide([only], (), ())
