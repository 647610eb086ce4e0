"""The HTTP application: a reward for trainers that cannot hold it in their own process.

request → token → size → typed JSON → ``Service.judge`` → one answer per video

    POST /v1/score    our typed JSON (wire.py)                  GET /health     readiness, names, provenances, limits
    POST /score       UniRL's reward service                    GET /metrics    Prometheus text
    POST /compute     Flow-Factory's reward server; /reward/NAME/compute for one component

A full queue answers 429 with Retry-After. A token is accepted as Bearer or as the password of basic
authentication, so that a client that takes only a URL can use http://any:TOKEN@host:port. Nothing
here unpickles anything.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from cac_align.rewards.combine import bounds_of
from cac_align.rewards.reward import Reward
from cac_align.serving.docs_page import docs_page
from cac_align.serving.incoming import (
    FlowFactoryRequest,
    UniRLRequest,
    flow_factory_part,
    read_score_request,
    unirl_part,
)
from cac_align.serving.service import Service, ServiceSettings, scores_of_one_judge
from cac_align.serving.wire import PACKED, Health, ScoreRequest, ScoreResponse, ScoreResult, encode_message, unpack

log = logging.getLogger(__name__)

M = TypeVar("M")

router = APIRouter()


def create_app(reward: Reward, settings: ServiceSettings = ServiceSettings(), ledger: Path | None = None) -> FastAPI:
    """The application around a reward. Raises ``ValueError`` as ``Service`` does."""
    service = Service(reward, settings, ledger)

    @asynccontextmanager
    async def finish_accepted_work(app: FastAPI) -> AsyncIterator[None]:
        yield
        if not await asyncio.to_thread(service.batcher.close, settings.drain_s):
            log.error("stopped after %g s with %d videos still waiting", settings.drain_s, service.batcher.queued)

    app = FastAPI(title="cac-align", lifespan=finish_accepted_work, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.middleware("http")(limit_and_count)
    app.include_router(router)
    return app


# ---- before a route ------------------------------------------------------------------------------------------------


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    return request.app.state.service


async def limit_and_count(request: Request, call_next: Any) -> Response:
    """Refuse a POST while too many are in work, and count every request by route and status."""
    service = service_of(request)
    is_post = request.method == "POST"
    if is_post and service.posts_in_work >= service.settings.limits.max_queued:
        wait_s = service.batcher.retry_after_s(1)
        response = Response("the queue is full", 429, headers={"Retry-After": str(wait_s)})
    else:
        service.posts_in_work += is_post
        try:
            response = await call_next(request)
        finally:
            service.posts_in_work -= is_post
    # The route and not the raw path, which would let a caller create any number of labels.
    route = getattr(request.scope.get("route"), "path", "other")
    service.metrics.requests.labels(route, str(response.status_code)).inc()
    return response


def has_access(request: Request) -> bool:
    """Whether the caller sent the token, where the service demands one."""
    token = service_of(request).settings.token
    return token is None or token_matches(request.headers.get("Authorization"), token)


def check_token(request: Request) -> None:
    """Raise ``HTTPException`` 401 for a caller without the token."""
    if not has_access(request):
        raise HTTPException(401, "token missing or wrong", headers={"WWW-Authenticate": 'Basic realm="cac-align"'})


def token_matches(header: str | None, token: str) -> bool:
    """Whether an Authorization header carries the token, as Bearer or as the password of basic
    authentication.
    """
    kind, _, value = (header or "").partition(" ")
    if kind.lower() == "basic":
        try:
            value = b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    elif kind.lower() != "bearer":
        return False
    return hmac.compare_digest(value.encode(), token.encode())


async def read_body(request: Request) -> bytes:
    """The request's body.

    Raises ``HTTPException`` 401 without the token, 413 for a body that is too large.
    """
    check_token(request)
    limit = service_of(request).settings.limits.max_body_bytes
    too_large = HTTPException(413, f"request larger than {limit} bytes; send fewer videos at once")
    if int(request.headers.get("Content-Length", "0") or 0) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def read_typed(body: bytes, content_type: str) -> ScoreRequest:
    """Our own message, packed or as JSON."""
    return unpack(body, read_score_request) if content_type == PACKED else read_score_request(body)


async def read_message(request: Request, read: Callable[[bytes, str], M]) -> M:
    """The request's body as a message. read: makes it of the body and its content type.

    Raises ``HTTPException``: 408 when it does not arrive in time, 422 for a wrong message, and as
    ``read_body`` does.
    """
    timeout_s = service_of(request).settings.timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            body = await read_body(request)
        return await asyncio.to_thread(read, body, request.headers.get("Content-Type", ""))
    except TimeoutError as error:
        raise HTTPException(408, f"the request's body did not arrive within {timeout_s:g} s") from error
    except ValidationError as error:
        items = error.errors(include_input=False)[:5]
        raise HTTPException(422, [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in items]) from error
    except ValueError as error:
        raise HTTPException(422, [str(error)]) from error
    except ClientDisconnect as error:
        log.info("%s: the client went away before its request had arrived", request.url.path)
        raise HTTPException(499, "the client went away") from error


# ---- the routes ----------------------------------------------------------------------------------------------------


@router.post("/v1/score")
async def score_typed(request: Request) -> Response:
    """Our own format: one score per item, and the provenance that holds for all of them."""
    service = service_of(request)
    message = await read_message(request, read_typed)
    name = message.reward or service.default
    before = await service.provenance_of(name) if name in service.rewards else {}
    answers = await service.judge(name, [item.prompt for item in message.items], [item.video for item in message.items])
    after = await service.provenance_of(name)
    scores, provenance = scores_of_one_judge([score for score, _ in answers], before, after)
    results = [
        ScoreResult(**score.to_json(), missing_frames=missing)
        for score, (_, missing) in zip(scores, answers, strict=True)
    ]
    answer = ScoreResponse(scores=results, provenance=provenance)
    return Response(encode_message(answer), media_type="application/json")


@router.post("/score")
async def score_for_unirl(request: Request) -> dict[str, Any]:
    """UniRL's format: per item the rewards it requires, with the score first, which is what UniRL
    trains on.
    """
    service = service_of(request)
    message = await read_message(request, lambda body, _: UniRLRequest.model_validate_json(body))
    results: list[dict[str, Any]] = [{} for _ in message.requests]
    errors: list[dict[str, str]] = [{} for _ in message.requests]
    items_by_reward: dict[str, list[int]] = {}
    for index, item in enumerate(message.requests):
        for name in item.required_rewards:
            items_by_reward.setdefault(name, []).append(index)
    unknown = sorted(set(items_by_reward) - set(service.rewards))
    if unknown:
        raise HTTPException(400, f"unknown reward: {', '.join(unknown)}; available: {', '.join(service.rewards)}")
    for name, indices in items_by_reward.items():
        turns = [message.requests[index].history[-1] for index in indices]
        parts = [unirl_part(turn, service.settings.fps) for turn in turns]
        answers = await service.judge(name, [turn.text for turn in turns], parts)
        for index, (score, _) in zip(indices, answers, strict=True):
            if score.scored:
                finite = {part: value for part, value in score.parts.items() if math.isfinite(value)}
                results[index][name] = {"score": score.value, **finite}
            else:
                errors[index][name] = score.error or ""
    return {"results": results, "errors": errors}


@router.post("/compute")
@router.post("/reward/{name}/compute")
async def score_for_flow_factory(request: Request, name: str | None = None) -> dict[str, Any]:
    """Flow-Factory's format: one number per video.

    It has no place for a single missing score, so that one missing score fails the whole request;
    "error" makes its client raise at once.
    """
    service = service_of(request)
    message = await read_message(request, lambda body, _: FlowFactoryRequest.model_validate_json(body))
    if not message.video:
        return {
            "rewards": None,
            "error": "no video sent: list 'video' in required_fields; this reward judges video",
        }
    parts = [flow_factory_part(frames, service.settings.fps) for frames in message.video]
    answers = await service.judge(service.default if name is None else name, message.prompt, parts)
    failed = next((score.error for score, _ in answers if not score.scored), None)
    if failed is not None:
        return {"rewards": None, "error": f"policy raise: {failed}"}
    return {"rewards": [score.value for score, _ in answers]}


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether the service works, and with the token, what it offers.

    Status 503 when it is stopping or stuck, or a judge's server does not answer.
    """
    service = service_of(request)
    stuck = service.batcher.busy_s > service.settings.timeout_s
    unready = await asyncio.to_thread(service.unready)
    status = "stopping" if service.batcher.stopping else "stuck" if stuck else "unready" if unready else "ok"
    answer = Health(status=status, ready=status == "ok")
    if has_access(request):
        answer = Health(
            status=status,
            ready=status == "ok",
            unready=unready,
            rewards={name: ["unready" if name in unready else "ready"] for name in service.rewards},
            default=service.default,
            provenances={name: await service.provenance_of(name) for name in service.rewards},
            bounds={name: bounds_of(each) for name, each in service.rewards.items()},
            frame_plans=service.frame_plans,
            limits=service.settings.limits,
        )
    return Response(encode_message(answer), 200 if status == "ok" else 503, media_type="application/json")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """This page."""
    needs_token = service_of(request).settings.token is not None
    return HTMLResponse(docs_page(router.routes, str(request.base_url), needs_token=needs_token))


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The counters as Prometheus reads them."""
    check_token(request)
    return Response(generate_latest(service_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)
