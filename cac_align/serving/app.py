"""The HTTP service: a reward for trainers that cannot hold it themselves. One process, one reward, many clients.

request → token → size → typed JSON → videos (path inside a root | file | JPEG frames) → queue → reward → one answer per video

    POST /v1/score    our typed JSON (wire.py)                  GET /health     readiness, names, provenances, limits
    POST /score       UniRL's reward service                    GET /metrics    Prometheus text
    POST /compute     Flow-Factory's reward server; /reward/NAME/compute for one component

A video that fails, fails alone: its answer carries the reason. A full queue answers 429 with Retry-After. Every wait is bounded.
Loopback by default; any other address demands a token (Bearer, or as the password of basic authentication, so that clients that can
only be given a URL can use http://any:TOKEN@host:port). Nothing here unpickles anything.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import math
import signal
import socket
import sys
import threading
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import ValidationError

from cac_align.cac.two_turn import TwoTurn
from cac_align.core.video import Video
from cac_align.rewards.build import reward_choices
from cac_align.rewards.cac import CaC
from cac_align.rewards.combine import Combined
from cac_align.rewards.reward import Reward, Score
from cac_align.rewards.unified import NUM_FRAMES, UnifiedReward
from cac_align.serving.batcher import Full, Scoring
from cac_align.serving.incoming import FlowFactoryRequest, UniRLRequest, flow_factory_part, open_part, unirl_part
from cac_align.serving.wire import (
    PACKED,
    FramePlan,
    Health,
    Limits,
    ScoreRequest,
    ScoreResponse,
    ScoreResult,
    SentFrames,
    VideoPart,
    unpack,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceSettings:
    """How the service runs.

    token: demanded from every caller. roots: folders whose files may be named by path. fps: the rate of videos that come without one
    (UniRL's files carry a wrong one, Flow-Factory's frames none). timeout_s: from acceptance to the answer, per request.
    drain_s: how long stopping may take to finish accepted work. batch_size, wait_s: see ``Scoring``.
    """

    token: str | None = None
    roots: tuple[Path, ...] = ()
    fps: float = 16.0
    timeout_s: float = 600.0
    drain_s: float = 600.0
    batch_size: int = 16
    wait_s: float = 0.005
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number of frames per second, received {self.fps}")


# ---- the application -----------------------------------------------------------------------------------------------


def create_app(reward: Reward, settings: ServiceSettings = ServiceSettings(), ledger: Path | None = None) -> FastAPI:
    """The service around a reward; ``ledger`` is a JSONL file that caches and keeps every judgement.

    Raises ``ValueError`` for a reward that normalises within a prompt's group, or that cannot say who it is.
    """
    rewards = reward_choices(reward)
    default = next(iter(rewards))
    plans = {name: plan_of(each) for name, each in rewards.items()}
    _ = [each.provenance for each in rewards.values()]  # read anew for every answer: a server may be exchanged
    if ledger is not None:
        from cac_align.rewards.cached import cached
        from cac_align.rewards.ledger import Ledger

        kept = Ledger(ledger)
        rewards = {name: cached(each, kept) for name, each in rewards.items()}
    registry = CollectorRegistry()
    requests_total = Counter(
        "cac_align_requests", "Requests by path and HTTP status", ["path", "status"], registry=registry
    )
    videos_total = Counter("cac_align_videos", "Videos by reward and outcome", ["reward", "outcome"], registry=registry)
    batch_seconds = Histogram(
        "cac_align_batch_seconds", "Seconds per call of the reward", ["reward"], registry=registry
    )
    batch_videos = Histogram(
        "cac_align_batch_videos", "Videos per call", ["reward"], buckets=(1, 2, 4, 8, 16, 32), registry=registry
    )

    def observe(name: str, count: int, seconds: float) -> None:
        batch_seconds.labels(name).observe(seconds)
        batch_videos.labels(name).observe(count)

    limits = settings.limits
    scoring = Scoring(
        rewards, batch_size=settings.batch_size, wait_s=settings.wait_s, max_queued=limits.max_queued, observe=observe
    )
    Gauge("cac_align_queued_videos", "Videos that wait", registry=registry).set_function(lambda: scoring.queued)
    Gauge("cac_align_busy_seconds", "How long the batch in work has run", registry=registry).set_function(
        lambda: scoring.busy_s
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if not await asyncio.to_thread(scoring.close, settings.drain_s):
            log.error("stopped after %g s with %d videos still waiting", settings.drain_s, scoring.queued)

    app = FastAPI(title="cac-align", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.scoring = scoring
    in_work = (
        0  # POSTs being read, decoded or judged: a burst must not fill the memory before its videos reach the queue
    )

    @app.middleware("http")
    async def counted(request: Request, call_next: Any) -> Response:
        nonlocal in_work
        if request.method == "POST" and in_work >= limits.max_queued:
            response = Response("the queue is full", 429, headers={"Retry-After": str(scoring.retry_after_s(1))})
        else:
            in_work += request.method == "POST"
            try:
                response = await call_next(request)
            finally:
                in_work -= request.method == "POST"
        route = getattr(
            request.scope.get("route"), "path", "other"
        )  # the route, not the raw path: a caller must not mint labels
        requests_total.labels(route, str(response.status_code)).inc()
        return response

    def admit(request: Request) -> None:
        if settings.token is not None and not token_fits(request.headers.get("Authorization"), settings.token):
            raise HTTPException(401, "token missing or wrong", headers={"WWW-Authenticate": 'Basic realm="cac-align"'})

    async def body_of(request: Request) -> bytes:
        admit(request)
        too_large = HTTPException(413, f"request larger than {limits.max_body_bytes} bytes; send fewer videos at once")
        if int(request.headers.get("Content-Length", "0") or 0) > limits.max_body_bytes:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.max_body_bytes:
                raise too_large
        return bytes(body)

    async def read(request: Request, kind: Any) -> Any:
        try:
            async with asyncio.timeout(settings.timeout_s):
                body = await body_of(request)
            packed = kind is ScoreRequest and request.headers.get("Content-Type") == PACKED
            return await asyncio.to_thread(unpack if packed else kind.model_validate_json, body)
        except TimeoutError as error:
            raise HTTPException(408, f"the request's body did not arrive within {settings.timeout_s:g} s") from error
        except ValidationError as error:
            detail = [
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_input=False)[:5]
            ]
            raise HTTPException(422, detail) from error
        except ValueError as error:
            raise HTTPException(422, [str(error)]) from error

    async def judge(
        name: str, prompts: Sequence[str], parts: Sequence[VideoPart]
    ) -> list[tuple[Score, tuple[int, ...]]]:
        """(Score, frames that were asked for and not sent) per part, in order."""
        if name not in rewards:
            raise HTTPException(400, f"unknown reward {name!r}; this service offers {', '.join(rewards)}")
        if len(prompts) != len(parts):
            raise HTTPException(
                422, f"expected one prompt per video, received {len(prompts)} prompts and {len(parts)} videos"
            )
        if len(parts) > limits.max_items:
            raise HTTPException(413, f"{len(parts)} videos in one request, at most {limits.max_items} are accepted")
        answers = await asyncio.gather(*(asyncio.to_thread(opened_or_why, part, settings) for part in parts))
        videos = {index: video for index, video in enumerate(answers) if isinstance(video, Video)}
        try:
            futures = scoring.submit(name, [prompts[index] for index in videos], list(videos.values()))
        except Full as full:
            raise HTTPException(
                503 if full.stopping else 429, str(full), headers={"Retry-After": str(full.retry_after_s)}
            ) from full
        waited = [asyncio.wrap_future(future) for future in futures]
        if waited:
            await asyncio.wait(waited, timeout=settings.timeout_s)
        for index, future in zip(videos, waited, strict=True):
            if future.done():
                answers[index], videos[index] = future.result()
            else:
                future.cancel()  # takes it out of the queue if it still waits there and nobody else waits for it
                answers[index] = Score.missing(f"timed out: the service gave it {settings.timeout_s:g} s")
        for score in answers:
            videos_total.labels(name, "scored" if score.scored else "unscored").inc()
        return [(score, unsent_frames(videos.get(index))) for index, score in enumerate(answers)]

    async def provenance_of(name: str) -> dict[str, str]:
        try:
            return await asyncio.to_thread(lambda: dict(rewards[name].provenance))  # a server may have to be asked
        except ValueError as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "5"}) from error

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        message = await read(request, ScoreRequest)
        name = message.reward or default
        before = await provenance_of(name) if name in rewards else {}
        answers = await judge(name, [item.prompt for item in message.items], [item.video for item in message.items])
        scores, provenance = of_one_judge([score for score, _ in answers], before, await provenance_of(name))
        results = [
            ScoreResult(**each.to_json(), unsent=unsent) for each, (_, unsent) in zip(scores, answers, strict=True)
        ]
        answer = ScoreResponse(scores=results, provenance=provenance)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post("/score")
    async def score_unirl(request: Request) -> dict[str, Any]:
        message = await read(request, UniRLRequest)
        results: list[dict[str, Any]] = [{} for _ in message.requests]
        errors: list[dict[str, str]] = [{} for _ in message.requests]
        wanted: dict[str, list[int]] = {}
        for index, item in enumerate(message.requests):
            for name in item.required_rewards:
                wanted.setdefault(name, []).append(index)
        unknown = sorted(set(wanted) - set(rewards))
        if unknown:
            raise HTTPException(400, f"unknown reward: {', '.join(unknown)}; available: {', '.join(rewards)}")
        for name, indices in wanted.items():
            turns = [message.requests[index].history[-1] for index in indices]
            answers = await judge(
                name, [turn.text for turn in turns], [unirl_part(turn, settings.fps) for turn in turns]
            )
            for index, (answer, _) in zip(indices, answers, strict=True):
                if answer.scored:  # the first entry is what UniRL trains on
                    parts = {part: value for part, value in answer.parts.items() if math.isfinite(value)}
                    results[index][name] = {"score": answer.value, **parts}
                else:
                    errors[index][name] = answer.error or ""
        return {"results": results, "errors": errors}

    @app.post("/compute")
    @app.post("/reward/{name}/compute")
    async def compute(request: Request, name: str = default) -> dict[str, Any]:
        message = await read(request, FlowFactoryRequest)
        if not message.video:
            return {
                "rewards": None,
                "error": "no video sent: list 'video' in required_fields; this reward judges video",
            }
        parts = [flow_factory_part(frames, settings.fps) for frames in message.video]
        answers = await judge(name, message.prompt, parts)
        failed = next((answer.error for answer, _ in answers if not answer.scored), None)
        if failed is not None:  # its format has no place for one missing score; with "error" its client raises at once
            return {"rewards": None, "error": f"policy raise: {failed}"}
        return {"rewards": [answer.value for answer, _ in answers]}

    @app.get("/health")
    async def health(request: Request) -> Response:
        stuck = scoring.busy_s > settings.timeout_s
        status = "stopping" if scoring.stopping else "stuck" if stuck else "ok"
        stranger = settings.token is not None and not token_fits(request.headers.get("Authorization"), settings.token)
        if stranger:  # a probe may ask whether we live, nothing else
            answer = Health(status=status)
        else:
            provenances = {name: await provenance_of(name) for name in rewards}
            names = {name: ["ready"] for name in rewards}
            answer = Health(
                status=status, rewards=names, default=default, provenances=provenances, frame_plans=plans, limits=limits
            )
        return Response(answer.model_dump_json(), 200 if status == "ok" else 503, media_type="application/json")

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        admit(request)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def plan_of(reward: Reward) -> FramePlan | None:
    """Which frames a reward samples; None for a reward of another kind, to which every frame is sent."""
    components = list(reward.components.values()) if isinstance(reward, Combined) else [reward]
    scans: set[float] = set()
    looks: set[float] = set()
    counts: set[int] = set()
    for component in components:
        if isinstance(component, CaC):
            scans.add(component.settings.scan_fps)
            if isinstance(component.settings, TwoTurn):  # the others look once
                looks.add(component.settings.look_fps)
        elif isinstance(component, UnifiedReward):
            counts.add(NUM_FRAMES)
        else:
            return None
    return FramePlan(scan_fps=tuple(sorted(scans)), look_fps=tuple(sorted(looks)), counts=tuple(sorted(counts)))


def of_one_judge(
    scores: Sequence[Score], before: dict[str, str], after: dict[str, str]
) -> tuple[list[Score], dict[str, str]]:
    """(the scores, the provenance that holds for every number among them), from the provenances read before and after judging.

    Where these differ, the scores' own tell which it was; the score of another judge is missing.
    """
    stated = [dict(score.provenance) for score in scores if score.scored]
    provenance = after if before == after else next((each for each in (after, before) if each in stated), after)
    lost = Score.missing(
        "the judge was exchanged while it scored, so nobody knows which one did", provenance=provenance
    )
    wrong = [before != after and score.scored and dict(score.provenance) != provenance for score in scores]
    return [lost if other else score for score, other in zip(scores, wrong, strict=True)], provenance


def unsent_frames(video: Video | None) -> tuple[int, ...]:
    """Source indices the reward asked for that the client had not sent."""
    source = video._source if video is not None else None
    return tuple(sorted(set(source.missed))) if isinstance(source, SentFrames) else ()


def opened_or_why(part: VideoPart, settings: ServiceSettings) -> Video | Score:
    """The video, or the missing score that says why there is none."""
    try:
        video = open_part(part, settings.roots, settings.limits)
        _ = video.content_hash  # kept by the video: taken here, in a thread, because the queue goes by it
        return video
    except ValueError as error:
        return Score.missing(str(error))


def token_fits(header: str | None, token: str) -> bool:
    """Whether an Authorization header carries the token, as Bearer or as the password of basic authentication."""
    kind, _, value = (header or "").partition(" ")
    if kind.lower() == "basic":
        try:
            value = b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(value.encode(), token.encode())


# ---- running it ----------------------------------------------------------------------------------------------------


def serve(
    reward: Reward,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServiceSettings = ServiceSettings(),
    ledger: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted is finished first.

    ledger: a JSONL file that caches and keeps every judgement. Raises ``ValueError`` when ``host`` is not a loopback address and no
    token is set, when a root is no folder, or the port is taken.
    """
    with bound(host, port, settings) as listening:
        config = uvicorn_config(create_app(reward, settings, ledger), settings)
        print(f"cac-align: {reward.name} on http://{host}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
        with _signals_end_quietly():
            uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn stops gracefully on SIGINT and SIGTERM, then raises them once more: a finished stop is not a failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bound(host: str, port: int, settings: ServiceSettings) -> socket.socket:
    """The socket to listen on (port 0: any free one). Raises ``ValueError`` as ``serve`` says."""
    if not _loopback(host) and not settings.token:
        raise ValueError(
            f"host {host} can be reached from other machines: set a token (CAC_ALIGN_TOKEN), or bind 127.0.0.1"
        )
    for root in settings.roots:
        if not root.is_dir():
            raise ValueError(f"root {root} is not a folder")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another port"
        ) from error


def uvicorn_config(app: FastAPI, settings: ServiceSettings) -> uvicorn.Config:
    """uvicorn waits ``drain_s`` for requests in work; then the lifespan finishes what nobody waits for any more."""
    drain = max(1, math.ceil(settings.drain_s))
    return uvicorn.Config(app, log_level="info", access_log=False, timeout_graceful_shutdown=drain)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
