"""The settings of a synthesis, which are also the recipe of `cac-align data synthesise`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from cac_align.cac.prompts import wording_hash
from cac_align.cac.single_turn import single_turn_hash
from cac_align.data.synthesis.prompts import texts_hash
from cac_align.data.synthesis.questions import ALL_TASKS, TASKS


@dataclass
class Synthesis:
    """How chains of thought are made; also the recipe of `cac-align data synthesise`."""

    # Maximum number of answers per question (Sec. 3.1: five).
    rounds: int = 5
    # Anomalies verified within this many rounds are salient (Sec. 3.1: three).
    salient_rounds: int = 3
    # Also apply the stricter rule of the paper's prompt (Fig. S6): both ends within two frames, 85
    # % covered.
    strict: bool = False
    # The teacher also checks the reasoning of each verified chain against the annotation (Fig. S6).
    review: bool = False
    # Which wording of the judge's instructions the samples carry: full or brief.
    wording: str = "full"
    # Show the teacher enlarged frames of the anomaly with a scan.
    close_ups: bool = True
    # Set saliency where the annotation has none ("fill"), or always ("all").
    saliency: str = "fill"
    # Which questions are asked: scan, look, frame, single.
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    # Maximum number of single frames per video.
    frames_per_video: int = 2
    # Clips are shorter than this, in seconds (Sec. 3.2: one second).
    max_clip_s: float = 1.0
    # Share of looks at anomalous videos that are given a false alarm, in [0, 1]; at normal videos
    # all are.
    false_alarm_share: float = 0.5
    # Seed of every choice of questions.
    seed: int = 0
    # Records in progress at the same time.
    workers: int = 8
    # Maximum length of an answer, in tokens.
    max_new_tokens: int = 4096
    # Force answers into the answer's JSON schema while they are decoded.
    constrained: bool = False
    # Stop after this many records in a row without a chain; 0 never stops.
    give_up_after: int = 20
    # Price per million prompt tokens, for the cost in the report; None: not computed.
    price_prompt: float | None = None
    # Price per million answer tokens; None: not computed.
    price_answer: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.salient_rounds <= self.rounds or self.workers < 1 or self.max_clip_s <= 0:
            raise ValueError(
                f"expected 1 <= salient_rounds <= rounds, workers >= 1, max_clip_s > 0; received "
                f"{self.salient_rounds}, "
                f"{self.rounds}, {self.workers}, {self.max_clip_s}"
            )
        unknown = sorted(set(self.tasks) - set(ALL_TASKS))
        if unknown or not self.tasks or ("look" in self.tasks and "scan" not in self.tasks):
            raise ValueError(
                f"tasks must be some of {', '.join(ALL_TASKS)}, and look needs scan; received {self.tasks}"
            )
        if not 0 <= self.false_alarm_share <= 1:
            raise ValueError(f"false_alarm_share is a share in [0, 1], received {self.false_alarm_share}")
        if self.saliency not in ("fill", "all"):
            raise ValueError(f"saliency must be 'fill' or 'all', received {self.saliency!r}")

    def identity(self) -> dict[str, str]:
        """The settings that must not change between a run and its resumption."""
        free = {"workers", "give_up_after", "price_prompt", "price_answer", "rounds", "salient_rounds", "saliency"}
        fixed = {name: str(value) for name, value in asdict(self).items() if name not in free}
        single = {"single_turn_sha256": single_turn_hash(self.wording)} if "single" in self.tasks else {}
        return {**fixed, **single, "texts_sha256": texts_hash(), "wording_sha256": wording_hash(self.wording)}
