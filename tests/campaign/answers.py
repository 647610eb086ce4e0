"""What a judge may write, and what a Vlm or Reward that breaks its protocol may return."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cac_align.cac.two_turn import TwoTurn
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.answer import read_answer
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score
from cac_align.rewards.unified import UnifiedReward
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm
from tests.campaign.promise import Broken, Promise, refused

NORMAL = json.dumps({"COT": "fine", "status": "normal", "anomalies": []})
ABNORMAL = json.dumps(
    {
        "COT": "a",
        "status": "abnormal",
        "anomalies": [
            {
                "Attributed Time Region": "Frame 0-1",
                "Attributed Label": "Object Distortion",
                "Reason for Anomaly": "it melts",
                "Problem Region": "ball",
                "BBOX": {"Frame 0": [100, 200, 500, 600]},
            }
        ],
    }
)
_pieces = st.sampled_from(
    [
        " ",
        "\n",
        "*",
        ":",
        "Alignment Score",
        "Physics Score (1-5): ",
        "Style Score: 4",
        "(1-5)",
        "{",
        "[",
        "]",
        "}",
        '"',
        "\\",
    ]
    + [
        "Frame 1-",
        "5",
        "999999",
        '"status": "',
        "normal",
        "abnormal",
        ",",
        "NaN",
        "null",
        "\ud800",
        "\0",
        "é",
        "1e999",
        "-",
    ]
)
_long = st.lists(st.tuples(_pieces, st.sampled_from([1, 1, 2, 3, 50, 2000, 8000])), max_size=8).map(
    lambda parts: "".join(piece * count for piece, count in parts)
)
_any_text = st.one_of(_long, st.text(st.characters(), max_size=80))


def _video(_: Path | None = None) -> Video:
    return Video.open(np.zeros((9, 16, 16, 3), np.uint8), fps=16)


def _broken(text: str, how: tuple[str, float]) -> str:
    """An answer that cannot be used, whatever else it says."""
    kind, place = how
    if kind == "cut":
        return text[: int(place * (len(text) - 1))]
    if kind == "duplicate":
        return text.replace('"status": ', '"status": "normal", "status": ', 1)
    if kind == "constant":
        return text.replace('"COT": ', f'"more": {("NaN", "Infinity", "-Infinity")[int(place * 3)]}, "COT": ', 1)
    if kind == "nested":
        return "[" * int(100_000 * place) + text[:-1]
    if kind == "two":
        return text + " " + text
    return text.replace('"normal"', '"norma"').replace('"abnormal"', '["abnormal"]')


_how = st.tuples(
    st.sampled_from(["cut", "duplicate", "constant", "nested", "two", "word"]), st.floats(0, 1, exclude_max=True)
)
_unusable = st.builds(_broken, st.sampled_from([NORMAL, ABNORMAL]), _how)


def _check_unusable(video: Video, text: str) -> None:
    for settings in (TwoTurn(), VerdictOnly("json")):
        judge = CaC(ScriptedVlm(lambda _: text), settings)
        (score,) = judge(["a ball"], [video])
        if score.scored:
            raise Broken(f"{score.value} for an unusable answer ({judge.name})")


def _check_any_answer(video: Video, text: str) -> None:
    for number in (1, 2):
        turn = read_answer(text, number=number, frames=(0, 4, 8), times_s=(0.0, 0.25, 0.5))
        json.dumps(turn.to_json(), allow_nan=False)
    for judge in (CaC(ScriptedVlm(lambda _: text)), UnifiedReward(ScriptedVlm(lambda _: text))):
        (score,) = judge(["a ball"], [video])
        low, high = judge.bounds
        if score.scored and not low <= score.value <= high:
            raise Broken(f"{judge.name}: {score.value}")
        json.dumps(score.to_json(), allow_nan=False).encode("ascii")


# ---- log-probabilities ----------------------------------------------------------------------------------------------

_number = st.one_of(
    st.floats(),
    st.floats(-30, 0),
    st.floats(-2, 0),
    st.sampled_from([math.nan, math.inf, -math.inf, -9999.0, 0.0, None, "0", True, 1 + 0j, 10**400, [], {}]),
)


def _fits(log_p: Any, status: str) -> bool:
    """Whether these log-probabilities are a verdict's, worked out without the package."""
    if not isinstance(log_p, dict) or not {"normal", "abnormal"} <= set(log_p):
        return False
    normal, abnormal = log_p["normal"], log_p["abnormal"]
    if any(
        type(one) is not float or not math.isfinite(one) or one > 1e-3 or one <= -9999 for one in (normal, abnormal)
    ):
        return False
    mass = math.exp(normal) + math.exp(abnormal)
    odds = normal - abnormal
    return 0.009 <= mass <= 1.003 and (odds >= -0.03 if status == "normal" else odds <= 0.03)


def _check_log_p(video: Video, case: tuple[str, Any, bool]) -> None:
    status, log_p, verdict_only = case
    text = NORMAL if status == "normal" else ABNORMAL
    settings = VerdictOnly("json") if verdict_only else TwoTurn()
    (score,) = CaC(ScriptedVlm(lambda _: Reply(text, log_p=log_p)), settings)(["p"], [video])
    if not score.scored:
        return
    if not _fits(log_p, status):
        raise Broken(f"{score.value} for {log_p!r} behind {status}")
    expected = (
        1 / (1 + math.exp(log_p["abnormal"] - log_p["normal"]))
        if abs(log_p["abnormal"] - log_p["normal"]) < 700
        else None
    )
    if expected is not None and not abs(score.value - expected) < 1e-9:
        raise Broken(f"{score.value}, expected {expected}")


_log_p = st.one_of(
    st.fixed_dictionaries({"normal": _number, "abnormal": _number}),
    st.dictionaries(st.sampled_from(["normal", "abnormal", "x", ""]), _number),
    st.sampled_from([None, [], "x", 3, {"normal": 0.0, "abnormal": 0.0}]),
)


# ---- third parties --------------------------------------------------------------------------------------------------

_junk: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        3,
        "text",
        b"x",
        math.nan,
        math.inf,
        True,
        [],
        {},
        [None],
        "\ud800",
        10**400,
        np.float32(0.5),
        np.zeros(3),
        object,
    ]
)


@dataclass
class _Vlm:
    """A Vlm that returns what it was told."""

    replies: Any

    @property
    def provenance(self) -> Any:
        return {"model": "third party"}

    def answer(self, conversations: Any, **_: Any) -> Any:
        if isinstance(self.replies, list):
            return [Reply(NORMAL, log_p={"normal": -0.1, "abnormal": -3.0}), *self.replies]
        return self.replies


class _OwnLoop(_Vlm):
    """The same Vlm, which runs dialogues itself."""

    def run_dialogues(self, dialogues: Any, done: Any) -> None:
        for number, (dialogue, reply) in enumerate(zip(dialogues, self.answer(()), strict=False)):
            try:
                asked = next(dialogue)
                while True:
                    asked = dialogue.send([reply] * len(asked))
            except StopIteration as end:
                done(number, end.value)


@dataclass
class _Reward:
    """A reward that returns a good score and then what it was told."""

    rest: Any
    name: str = "third"
    bounds: Any = (0.0, 1.0)

    @property
    def provenance(self) -> Any:
        return {"reward": "third"}

    def __call__(self, prompts: Any, videos: Any) -> Any:
        return [Score(0.5), *self.rest] if isinstance(self.rest, list) else self.rest


def _check_vlm(video: Video, case: Any) -> None:
    kind, junk, more = case
    if kind == "replies":
        replies: Any = junk
    elif kind == "count":
        replies = [Reply(NORMAL, log_p={"normal": -0.1, "abnormal": -3.0})] * (0 if more else 2)
    elif kind == "item":
        replies = [junk]
    else:
        replies = [Reply(**{"text": NORMAL, "log_p": {"normal": -0.1, "abnormal": -3.0}, **{kind: junk}})]
    whose_is_clear = kind not in ("replies", "count")
    for vlm in (_Vlm(replies), _OwnLoop(replies)) if whose_is_clear else (_Vlm(replies),):
        scores = refused(CaC(vlm, VerdictOnly("json")), ["a", "b"], [video, video])
        if scores is not None:
            _check_scores_of_vlm(scores, kind, junk, replies)


def _check_scores_of_vlm(scores: list[Score], kind: str, junk: Any, replies: Any) -> None:
    if len(scores) != 2 or not all(isinstance(score, Score) for score in scores):
        raise Broken(f"{len(scores)} scores of 2 videos")
    if kind in ("replies", "count", "item", "text", "log_p") and scores[1].scored and junk is not None:
        raise Broken(f"{scores[1].value} for {kind} = {junk!r}")
    if isinstance(replies, list) and len(replies) == 1 and not scores[0].scored:
        raise Broken(f"the neighbour lost its score: {scores[0].error}")
    json.dumps([score.to_json() for score in scores], allow_nan=False)


def _score(kind: str, junk: Any) -> Any:
    """A Score whose field was set without its checks, as a third party's own class may be."""
    score = Score(0.25)
    object.__setattr__(score, kind, junk)
    return score


def _check_reward(context: tuple[Video, Path], case: Any) -> None:
    video, folder = context
    other = Video.open(np.ones((9, 16, 16, 3), np.uint8), fps=16)
    kind, junk, more = case
    if kind == "scores":
        rest: Any = junk
    elif kind == "count":
        rest = [] if more else [Score(0.25)] * 2
    else:
        rest = [junk] if kind == "item" else [_score(kind, junk)]
    path = folder / "third.jsonl"
    path.unlink(missing_ok=True)
    for reward in (cached(_Reward(rest), Ledger(path)), combine({"third": _Reward(rest), "again": _Reward(rest)})):
        scores = refused(reward, ["a", "b"], [video, other])
        if scores is None:
            continue
        if len(scores) != 2 or not all(isinstance(score, Score) for score in scores):
            raise Broken("not two scores")
        usable = (
            type(junk) in (float, int) and math.isfinite(junk) if type(junk) is not int or abs(junk) < 1e300 else False
        )
        if kind in ("scores", "count", "item") and scores[1].scored and not isinstance(junk, np.floating):
            raise Broken(f"{scores[1].value} for {kind} = {junk!r}")
        if kind == "value" and scores[1].scored and not usable and not isinstance(junk, np.floating):
            raise Broken(f"{scores[1].value} for the value {junk!r}")
        if isinstance(rest, list) and len(rest) == 1 and not scores[0].scored:
            raise Broken(f"the neighbour lost its score: {scores[0].error}")
    if Ledger(path).faults:
        raise Broken(f"the ledger is damaged: {Ledger(path).faults}")


_vlm_case = st.tuples(
    st.sampled_from(["replies", "count", "item", "text", "log_p", "error", "bounded", "readout_error", "truncated"]),
    _junk,
    st.booleans(),
)
_reward_case = st.tuples(
    st.sampled_from(["scores", "count", "item", "value", "parts", "evidence", "error", "provenance"]),
    _junk,
    st.booleans(),
)
PROMISES = (
    Promise("unusable answers", "An answer that cannot be used gives no score", _video, _unusable, _check_unusable),
    Promise("any answer", "Any text is read in time, and a score lies within its bounds",
            _video, _any_text, _check_any_answer, 2.0),
    Promise("log-probabilities", "Only usable log-probabilities that agree with the verdict give a score",
            _video, st.tuples(st.sampled_from(["normal", "abnormal"]), _log_p, st.booleans()), _check_log_p, 2.0),
    Promise("third-party Vlm", "A Vlm that breaks its protocol costs its own video's score and no other's",
            _video, _vlm_case, _check_vlm),
    Promise("third-party Reward", "A Reward that breaks its protocol costs its own video's score and no other's",
            lambda folder: (_video(), folder), _reward_case, _check_reward),
)  # fmt: skip
