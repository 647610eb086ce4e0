"""The rating page: a person judges videos blind, with keys or buttons, on a local address.

    GET  /              asks who rates       GET  /api/task     a rater's next task, or a numbered one
    GET  /rate          the page             POST /api/action   one action: checked, stored; returns the new state
    GET  /frame/…       one exact frame      GET  /annotate.js  the page's script

The page receives random ids only; no file name, folder, seed or score leaves the server. Frames are
decoded by source index and sent one by one, so that frame 37 does not depend on how a browser reads
the container. The server answers on loopback only, and only to its own pages. Every action is on
disk before it is answered; ``<database>.jsonl`` always holds the ratings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.evaluation.human.export import (
    RatingsExport,
    RatingsExporter,
    check_described,
    export_path,
    export_ratings,
)
from cac_align.evaluation.human.frame_images import FrameImages, is_lossless
from cac_align.evaluation.human.rating import TaskState
from cac_align.evaluation.human.store import AnnotationStore, Outdated
from cac_align.evaluation.human.tasks import RatingTask, Sources, TaskMember, gather_tasks, shuffle_tasks
from cac_align.evaluation.human.type_guide import NOT_ANOMALIES, TYPE_GUIDES
from cac_align.evaluation.human.uncertainty import uncertainty_first
from cac_align.evaluation.pages.page import environment
from cac_align.evaluation.pairing import Fault, Pairing

LOOPBACK = ("127.0.0.1", "localhost")
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class NewAction(BaseModel):
    """What the page sends for one key press; see ``AnnotationStore.add`` for the fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rater: str
    task: str
    clip: str
    kind: str
    detail: dict[str, Any] = Field(default_factory=dict)
    last_known: int
    client: str = Field(min_length=8, max_length=64)


def create_rating_app(
    sources: Sources,
    *,
    database: Path,
    rater: str | None = None,
    seed: int = 0,
    log_odds: Mapping[Path, float] | None = None,
) -> FastAPI:
    """The page's server.

    database: SQLite file, created or resumed; the export is beside it with the ending ``.jsonl``.
    rater: whose page opens at ``/``; None asks for a name.
    seed: of the order in which videos come; fixed when a database is first opened.
    log_odds: a judge's by the clip's resolved path; the videos then come by ``uncertainty_first``.

    ``app.state`` has ``tasks``, ``faults`` and ``export()``. Ratings of other folders in the same
    database stay in the export. Raises ``ValueError`` for folders that cannot be read, videos that
    changed since they were rated, or a database of an earlier release with ratings of other
    folders.
    """
    if rater is not None:
        rater = checked_name(rater)
    store = AnnotationStore(database)
    tasks, faults = _load_tasks(sources, store)
    exporter = RatingsExporter(store, tasks, database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        exporter.write()
        yield
        exporter.write()
        store.close()

    app = FastAPI(title="cac-align annotate", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    # A host name of another site that resolves to this address is refused.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.middleware("http")(_guard)
    app.state.tasks, app.state.faults, app.state.export = tasks, faults, exporter.write
    _add_pages(app, rater, sum(fault.kind == "unreadable video" for fault in faults))
    _add_frames(app, FrameImages({member.token: member.clip.video for task in tasks for member in task.members}))
    _add_api(app, store, tasks, exporter, store.setting("seed", str(seed)), log_odds)
    return app


def _load_tasks(sources: Sources, store: AnnotationStore) -> tuple[list[RatingTask], list[Fault]]:
    gathered, faults = gather_tasks(sources)
    clips = {f"{clip.path.resolve()}": clip for _, members in gathered for clip, _ in members}
    names = {path: f"{clip.group}/{clip.name}" for path, clip in clips.items()}
    clip_tokens = store.tokens("clip", {names[path]: clip.video.content_hash for path, clip in clips.items()})
    task_tokens = store.tokens("task", dict.fromkeys((name for name, _ in gathered), None))
    tasks = []
    for name, members in gathered:
        made = tuple(TaskMember(clip_tokens[names[f"{clip.path.resolve()}"]], clip, groups) for clip, groups in members)
        tasks.append(RatingTask(task_tokens[name], name, made))
    tasks = store.apart(tasks)
    store.describe(tasks)
    check_described(store)
    return tasks, faults


async def _guard(request: Request, call_next: Any) -> Response:
    """Refuse pages of other origins, and send the security headers with every response."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"detail": "a page of another origin may not rate"}, 403, headers=_HEADERS)
    response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _add_pages(app: FastAPI, rater: str | None, unreadable: int) -> None:
    """The page and its script. unreadable: number of videos that cannot be opened."""
    template = environment("cac_align.evaluation.human").get_template("annotate.html.jinja")

    @app.get("/")
    def who() -> Response:
        if rater is not None:
            return RedirectResponse("/rate")
        return HTMLResponse(template.render(rater=None))

    @app.get("/rate")
    def page(name: str | None = None) -> Response:
        who = name if name is not None else rater
        if who is None:
            return RedirectResponse("/")
        told = {"types": ANOMALY_TYPES, "guides": TYPE_GUIDES, "not_anomalies": NOT_ANOMALIES}
        return HTMLResponse(template.render(rater=_name_or_422(who), unreadable=unreadable, **told))

    @app.get("/annotate.js")
    def script() -> Response:
        text = Path(__file__).with_name("templates").joinpath("annotate.js").read_text(encoding="utf-8")
        return Response(text, media_type="text/javascript; charset=utf-8")


def _add_frames(app: FastAPI, images: FrameImages) -> None:
    @app.get("/frame/{token}/{index}")
    def frame(token: str, index: int) -> Response:
        video = images.clips.get(token)
        if video is None or not 0 <= index < len(video):
            raise HTTPException(404, "there is no such frame")
        try:
            content = images.image(token, index)
        except ValueError as error:
            print(f"annotate: {error}", file=sys.stderr)
            raise HTTPException(410, f"frame {index} cannot be decoded") from error
        kind = "image/png" if is_lossless(video) else "image/jpeg"
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})


def _add_api(
    app: FastAPI,
    store: AnnotationStore,
    tasks: Sequence[RatingTask],
    exporter: RatingsExporter,
    seed: str,
    log_odds: Mapping[Path, float] | None,
) -> None:
    """The two routes that the page's script calls. seed: of each rater's order of the tasks, which ``log_odds``
    goes before.
    """
    orders: dict[str, list[RatingTask]] = {}

    def order_of(rater: str) -> list[RatingTask]:
        if rater not in orders:
            shuffled = shuffle_tasks(tasks, rater, seed)
            orders[rater] = shuffled if log_odds is None else uncertainty_first(shuffled, log_odds)
        return orders[rater]

    @app.get("/api/task")
    def task(rater: str, number: int | None = None, after: int = 0) -> dict[str, Any]:
        who = _name_or_422(rater)
        arranged = order_of(who)
        finished = store.finished(who, tasks)
        if number is None:
            turn = [(after + offset) % len(arranged) for offset in range(len(arranged))]
            number = next((index + 1 for index in turn if arranged[index].token not in finished), None)
        elif not 1 <= number <= len(arranged):
            raise HTTPException(404, f"there are {len(arranged)} videos, and no number {number}")
        about = {"total": len(arranged), "finished": len(finished)}
        return about | ({"task": None} if number is None else _task_json(arranged[number - 1], number, store, who))

    @app.post("/api/action")
    def act(action: NewAction, later: BackgroundTasks) -> Any:
        who = _name_or_422(action.rater)
        # As this rater sees it: "video A" in a message must not tell which of the two stood first in the folders.
        task = next((each for each in order_of(who) if each.token == action.task), None)
        if task is None:
            raise HTTPException(404, "there is no such task")
        fields = {"rater": who, "task": task.token, "lengths": task.lengths}
        try:
            state = store.add(
                **fields,
                clip=action.clip,
                kind=action.kind,
                detail=action.detail,
                last_known=action.last_known,
                client=action.client,
            )
        except Outdated as error:
            state = store.state(**fields)
            return JSONResponse({"detail": str(error), "state": state_json(state)}, 409)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        if action.kind in ("done", "undo"):
            later.add_task(exporter.refresh)
        return {"state": state_json(state)}


def _task_json(task: RatingTask, number: int, store: AnnotationStore, rater: str) -> dict[str, Any]:
    """A task as the page may know it, without anything that tells where a clip comes from."""
    prompts = {member.clip.prompt for member in task.members} - {None}
    clips = [
        {
            "token": member.token,
            "times_s": member.clip.video.times_s,
            "fps": member.clip.video.fps,
            "width": member.clip.video.width,
            "height": member.clip.video.height,
        }
        for member in task.members
    ]
    state = store.state(rater, task.token, task.lengths)
    prompt = prompts.pop() if len(prompts) == 1 else None
    return {"task": task.token, "number": number, "prompt": prompt, "clips": clips, "state": state_json(state)}


def state_json(state: TaskState) -> dict[str, Any]:
    """A task's state as the page receives it."""
    ratings = {token: rating.to_json() for token, rating in state.ratings.items()}
    return {"ratings": ratings, "done": state.done, "last": state.last, "undoable": state.undoable is not None}


def checked_name(text: str) -> str:
    """A rater's name with single spaces. Raises ``ValueError`` unless it has 1 to 64 printable
    characters.
    """
    name = " ".join(text.split())
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise ValueError(f"a rater's name has 1 to 64 printable characters, received {text[:80]!r}")
    return name


def _name_or_422(text: str) -> str:
    try:
        return checked_name(text)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


# ---- the verb -----------------------------------------------------------------------------------------------------


def default_database(sources: Sources) -> Path:
    """``ratings.sqlite`` in the one rated folder, or in the common folder above several."""
    if isinstance(sources, Pairing):
        folders = [clip.path.parent for pair in sources.pairs for clip in (pair.before, pair.after)]
    else:
        folders = [Path(sources)] if isinstance(sources, (str, Path)) else [Path(folder) for folder in sources]
    return Path(os.path.commonpath([folder.resolve() for folder in folders])) / "ratings.sqlite"


def serve_rating_page(
    sources: Sources,
    *,
    rater: str | None = None,
    database: Path | None = None,
    host: Literal["127.0.0.1", "localhost"] | str = "127.0.0.1",
    port: int = 8017,
    seed: int = 0,
    log_odds: Mapping[Path, float] | None = None,
) -> RatingsExport:
    """Serve the rating page until interrupted (Ctrl-C), then return what has been rated. The same
    call resumes.

    sources: see ``tasks.Sources``.
    rater: whose page opens at ``/``; None asks for a name (several raters may use one server).
    database: default ``default_database``.
    port: 0 takes a free one.
    log_odds: see ``create_rating_app``.

    What could not be used is named on stderr. Raises ``ValueError`` for an address that is not
    loopback, and as ``create_rating_app`` does.
    """
    import uvicorn

    if host not in LOOPBACK:
        raise ValueError(
            f"host must be one of {', '.join(LOOPBACK)}, received {host!r}; from elsewhere use `ssh -L "
            f"{port}:127.0.0.1:{port}`"
        )
    database = Path(database) if database is not None else default_database(sources)
    app = create_rating_app(sources, database=database, rater=rater, seed=seed, log_odds=log_odds)
    for fault in app.state.faults:
        print(f"{fault.kind}: {fault.name}: {fault.why}", file=sys.stderr)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)
    socket = config.bind_socket()
    print(
        f"rate {len(app.state.tasks)} at http://{host}:{socket.getsockname()[1]}/ (Ctrl-C stops; ratings: {database})",
        file=sys.stderr,
        flush=True,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down in order
        uvicorn.Server(config).run(sockets=[socket])
    store = AnnotationStore(database)
    try:
        exported = export_ratings(store, app.state.tasks, export_path(database).parent)
    finally:
        store.close()
    for fault in exported.half_written:
        print(f"{fault.kind}: {fault.name}: {fault.why}", file=sys.stderr)
    print(
        f"{len(exported.records)} records in {export_path(database)}, {len(exported.half_written)} half-written",
        file=sys.stderr,
    )
    return exported
