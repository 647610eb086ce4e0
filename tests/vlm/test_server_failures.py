"""ServerVlm when the server fails, hangs, answers nonsense or is overrun."""

from __future__ import annotations

import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.video import Video
from cac_align.rewards.build import load_reward
from cac_align.rewards.cac import CaC
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger, score_key
from cac_align.vlm.dialogue import Question, run_dialogues
from cac_align.vlm.server import server as server_module
from cac_align.vlm.server.reply import RequestFailed
from cac_align.vlm.server.server import ServerVlm
from tests.support.chat_server import (
    Answer,
    Server,
    broken_connection,
    completion,
    user,
    vlm_for,
)


def one(server: Server, **settings: Any) -> Any:
    return vlm_for(server, **settings).answer([user()], max_new_tokens=5)[0]


def test_retry_after_is_honoured(serve: Any) -> None:
    busy = Answer({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.3"})
    server = serve(lambda body, number: busy if number == 0 else Answer(completion("fine")))
    assert one(server).text == "fine"
    assert server.times_s[1] - server.times_s[0] >= 0.3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_failures_are_retried(serve: Any, status: int) -> None:
    server = serve(
        lambda body, number: Answer(raw=b"oops", status=status) if number < 2 else Answer(completion("fine"))
    )
    assert one(server).text == "fine"
    assert len(server.requests) == 3 and server.requests[0] == server.requests[2]


@pytest.mark.parametrize("status", [204, 304])
def test_the_body_of_a_reply_without_one_is_not_read_as_the_next_answer(serve: Any, status: int) -> None:
    server = serve(lambda body, number: Answer(completion("fine"), status=status if number == 0 else 200))
    vlm = vlm_for(server, retries=0)
    replies = [vlm.answer([user()], max_new_tokens=5)[0] for _ in range(3)]
    assert [reply.text for reply in replies] == ["", "fine", "fine"]
    assert str(status) in (replies[0].error or "")


def test_retries_are_bounded_and_the_reason_is_kept(serve: Any) -> None:
    server = serve(lambda body, number: Answer({"error": {"message": "out of memory"}}, status=500))
    reply = one(server, retries=2)
    assert (reply.text, len(server.requests)) == ("", 3)
    assert reply.error == "the server answered 500: out of memory (gave up after 3 attempts)"


class Waits:
    """Stands for the event that ends the waiting: notes how long it was waited for, and lets no time pass."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


def waits_of(vlm: ServerVlm, jitter: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long this client waits between its attempts while the server is away."""
    monkeypatch.setattr(server_module.random, "uniform", lambda low, high: jitter)
    monkeypatch.setattr(vlm, "_attempt", lambda body: server_module._Retry("the server is away"))
    waits = Waits()
    with pytest.raises(RequestFailed, match="the server is away"):
        vlm._post({}, waits)  # type: ignore[arg-type]
    return waits.seconds


def test_waits_double_up_to_half_a_minute_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def vlm(retries: int) -> ServerVlm:
        return ServerVlm("http://127.0.0.1:9", "cac", retries=retries, backoff_s=0.5)

    assert waits_of(vlm(8), 1.0, monkeypatch) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert waits_of(vlm(3), 0.5, monkeypatch) == [0.25, 0.5, 1]
    assert waits_of(vlm(2000), 1.0, monkeypatch)[-1] == 30  # .5 s doubled 2,000 times is no float


def test_the_shipped_servers_may_be_away_for_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = load_reward(Path(__file__).parents[2] / "recipes/reward/qwen3vl_8b_server.yaml")
    assert set(reward.components) == {"unified", "cac"}
    for part in reward.components.values():
        assert sum(waits_of(part.vlm, 0.5, monkeypatch)) == pytest.approx(120.75)  # the least that jitter leaves
        assert sum(waits_of(part.vlm, 1.0, monkeypatch)) == pytest.approx(241.5)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"error": {"message": "maximum context length is 100"}}, "maximum context length is 100"),
        (400, {"object": "error", "message": "bad image", "code": 400}, "bad image"),
        (401, {"error": "Unauthorized"}, "Unauthorized"),
        (404, {"detail": "The model `cac` does not exist."}, "The model `cac` does not exist."),
        (422, {"detail": [{"msg": "field required"}]}, "field required"),
    ],
)
def test_wrong_requests_are_final_with_the_servers_words(serve: Any, status: int, body: Any, said: str) -> None:
    server = serve(lambda request, number: Answer(body, status=status))
    reply = one(server)
    assert len(server.requests) == 1
    assert reply.error.startswith(f"the server answered {status}: ") and said in reply.error


# ---- who answered -------------------------------------------------------------------------------------------------

AWAY = Answer({"error": {"message": "starting"}}, status=503)


def models(root: str) -> Answer:
    return Answer({"data": [{"id": "cac", "root": root}]})


def verdict() -> Answer:
    """One token, P(normal) = .75 and P(abnormal) = .25."""
    top = [{"token": word, "logprob": math.log(p), "bytes": None} for word, p in (("normal", 0.75), ("abnormal", 0.25))]
    return Answer(completion("normal", {"content": [{**top[0], "top_logprobs": top}]}))


def judge_of(server: Server) -> CaC:
    return CaC(vlm_for(server), VerdictOnly())


def clips(*levels: int) -> list[Video]:
    return [Video.open(np.full((9, 32, 32, 3), level, np.uint8), fps=16) for level in levels]


def test_a_server_that_was_away_and_is_the_same_again_loses_no_score(serve: Any) -> None:
    server = serve(
        lambda body, number: (verdict(), broken_connection(), AWAY)[number if number < 3 else 0], models("one")
    )
    scores = judge_of(server)(["a"] * 3, clips(1, 2, 3))
    assert [score.value for score in scores] == pytest.approx([0.75] * 3)
    assert {score.provenance["vlm/served"] for score in scores} == {"one"}


def test_a_checkpoint_that_is_not_known_when_its_answers_come_gives_no_score(serve: Any) -> None:
    def wakes(body: dict[str, Any], number: int) -> Answer:
        server.models = models("one")
        return AWAY if number == 0 else verdict()

    server = serve(wakes, AWAY)
    judge = judge_of(server)
    assert judge.provenance["vlm/served"] == "unreachable"
    (early,) = judge(["a"], clips(1))
    assert not early.scored and "did not say which checkpoint it runs" in early.error
    (late,) = judge(["a"], clips(1))
    assert (
        late.value == pytest.approx(0.75) and late.provenance["vlm/served"] == "one" == judge.provenance["vlm/served"]
    )
    server.models, server.respond = AWAY, lambda body, number: verdict()
    (gone,) = judge(["a"], clips(1))
    assert gone == late  # nothing broke: the server is still believed to be what it was
    judge.vlm._forget_checkpoint()
    assert not judge(["a"], clips(1))[0].scored


@pytest.mark.parametrize("how", ["503", "broken", "quietly"])
def test_a_changed_checkpoint_gives_no_score_and_then_a_provenance_of_its_own(
    serve: Any, tmp_path: Path, how: str
) -> None:
    """Between two calls: by a 503 or a broken connection at the next request, or while nobody asks, the connection merely being new."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    server = serve(lambda body, number: verdict(), models("one"))
    judge = judge_of(server)
    reward = cached(judge, ledger)
    before = dict(reward.provenance)
    assert reward(["a"], clips(1))[0].scored
    restart = {"503": AWAY, "broken": broken_connection()}.get(how)
    first = len(server.requests)
    server.models = models("two")
    server.respond = lambda body, number: restart if restart and number == first else verdict()
    if how == "quietly":
        judge.vlm._client.close()
        judge.vlm._client = None
    (score,) = reward(["a"], clips(2))
    assert not score.scored and "checkpoint changed during the call" in score.error
    assert reward.provenance["vlm/served"] == "two" and dict(reward.provenance) != before
    fresh = reward(["a", "a"], clips(1, 2))  # the first clip's score was another judge's
    assert [score.provenance["vlm/served"] for score in fresh] == ["two", "two"] and len(
        server.requests
    ) == first + 3 + bool(restart)
    for row in ledger.rows():
        if row["kind"] == "score":
            (video,) = (video for video in clips(1, 2) if video.content_hash == row["video_hash"])
            assert row["key"] == score_key("a", video, row["provenance"])


def test_what_a_server_runs_is_asked_again_after_a_minute(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda body, number: verdict(), models("one"))
    vlm = vlm_for(server)
    assert vlm.provenance["served"] == "one"
    server.models = models("two")
    assert vlm.provenance["served"] == "one"
    monkeypatch.setattr(server_module, "_CHECKPOINT_VALID_S", 0.0)
    assert vlm.provenance["served"] == "two"


def test_a_hanging_server_times_out(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("late")).after(0.6 if number == 0 else 0))
    assert (
        one(server, timeout_s=0.2, retries=0).error
        == "no answer from the server within 0.2 s (gave up after one attempt)"
    )
    assert one(server, timeout_s=0.2).text == "late"


def test_a_reset_connection_is_retried(serve: Any) -> None:
    server = serve(lambda body, number: broken_connection() if number == 0 else Answer(completion("fine")))
    assert one(server).text == "fine"


def test_a_dead_server_is_an_error_not_an_exception() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    vlm = ServerVlm(url, "cac", retries=1, backoff_s=0.01)
    replies = vlm.answer([user(), user()], max_new_tokens=5)
    assert all("connection to the server failed" in reply.error and reply.text == "" for reply in replies)
    assert vlm.provenance["served"] == "unreachable"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(raw=b"<html>gateway</html>"), "not JSON: <html>gateway</html>"),
        (Answer(raw=b""), "not JSON"),
        (Answer(raw=b"\xff\xfe\x00garbage"), "not JSON"),
        (Answer([1, 2]), "no choices"),
        (Answer({"choices": []}), "no choices"),
        (Answer({"error": {"message": "quota"}}), "quota"),
        (Answer(completion(None)), "empty (no text"),
        (Answer(completion("")), "empty"),
        (Answer(completion(None, reasoning_content="hmm")), "thinking off"),
        (Answer(completion("half", finish="content_filter")), "content_filter"),
        (Answer(completion("half", finish="abort")), "abort"),
        (Answer({"choices": [{"message": "text"}]}), "empty"),
    ],
)
def test_broken_answers_are_errors(serve: Any, answer: Answer, said: str) -> None:
    server = serve(lambda body, number: answer)
    reply = one(server)
    assert said in reply.error and reply.text == ""
    assert len(server.requests) == 1


def test_a_truncated_answer_says_so(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion('{"COT": "Step 1', finish="length")))
    reply = one(server)
    assert (reply.text, reply.truncated, reply.error) == ('{"COT": "Step 1', True, None)


def test_one_failure_touches_no_other_and_order_is_kept(serve: Any) -> None:
    def respond(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][0]["content"]
        if text == "3":
            return Answer({"error": {"message": "no"}}, status=400)
        return Answer(completion(f"reply {text}")).after(0.05 * (int(text) % 3))

    replies = vlm_for(serve(respond)).answer([user(str(n)) for n in range(8)], max_new_tokens=5)
    assert [reply.text for reply in replies] == [f"reply {n}" if n != 3 else "" for n in range(8)]
    assert [n for n, reply in enumerate(replies) if reply.error] == [3]


def test_concurrency_holds_over_all_callers(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")).after(0.05))
    vlm = vlm_for(server, concurrency=3)
    with ThreadPoolExecutor(4) as callers:
        for replies in callers.map(lambda _: vlm.answer([user()] * 4, max_new_tokens=5), range(4)):
            assert [reply.text for reply in replies] == ["fine"] * 4
    assert server.most_in_flight == 3 and len(server.requests) == 16


def talk(name: str, *turns: str) -> Any:
    """A dialogue of several turns; returns what it heard."""
    heard = []
    for turn in turns:
        heard += [reply.text or reply.error for reply in (yield [Question(user(f"{name} {turn}"), 5)])]
    return heard


def test_a_second_turn_does_not_wait_for_the_first_turns_of_others(serve: Any) -> None:
    second = threading.Event()

    def respond(body: dict[str, Any], number: int) -> Answer:
        text = body["messages"][0]["content"]
        if text == "quick two":
            second.set()
        waited = (
            second.wait(8) if text == "slow one" else True
        )  # answered only once the other dialogue is at its second turn
        return Answer(completion(f"{text}: {waited}"))

    finished = []
    vlm_for(serve(respond), concurrency=2).run_dialogues(
        [talk("slow", "one"), talk("quick", "one", "two")], lambda number, heard: finished.append((number, heard))
    )
    assert sorted(finished) == [(0, ["slow one: True"]), (1, ["quick one: True", "quick two: True"])]


def test_dialogues_keep_the_server_full_but_no_fuller(serve: Any) -> None:
    server = serve(lambda body, number: Answer(completion("fine")).after(0.05))
    results = run_dialogues(vlm_for(server, concurrency=3), [talk(str(n), "one", "two") for n in range(8)])
    assert results == [["fine", "fine"]] * 8 and server.most_in_flight == 3 and len(server.requests) == 16


def test_a_dialogue_that_raises_ends_the_call(serve: Any) -> None:
    def broken() -> Any:
        yield [Question(user("x"), 5)]
        raise ValueError("no such wording")

    def asks_nobody() -> Any:
        yield [Question((), 5)]

    with pytest.raises(ValueError, match="no such wording"):
        run_dialogues(vlm_for(serve(lambda body, number: Answer(completion("fine")))), [broken()])
    with pytest.raises(ValueError, match="dialogue 0's question has no user message"):
        run_dialogues(vlm_for(serve(lambda body, number: Answer(completion("fine")))), [asks_nobody()])


def test_a_server_too_busy_to_name_its_checkpoint_at_once_loses_no_judgement(serve: Any) -> None:
    server = serve(lambda body, number: verdict(), models("one"))
    judge = judge_of(server)
    assert judge(["a"], clips(1))[0].scored
    judge.vlm._forget_checkpoint()
    away, named = AWAY, models("one")
    server.models = away
    threading.Timer(0.5, lambda: setattr(server, "models", named)).start()
    (score,) = judge(["a"], clips(1))
    assert score.value == pytest.approx(0.75) and score.provenance["vlm/served"] == "one"
