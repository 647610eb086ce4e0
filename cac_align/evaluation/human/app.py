"""The rating page: a person judges videos blind, with the keyboard, on a local address; every action is on disk before the next key.

folders → tasks (a clip, or a pair side by side) → shuffled per rater → page (annotate.html.jinja, annotate.js) → actions → records

    GET  /              who rates            GET  /api/task     the next task of a rater, or a numbered one
    GET  /rate          the page             POST /api/action   one action: checked, stored, the new state comes back
    GET  /frame/…       one exact frame      GET  /annotate.js  the page's own script

Blind means: the page and everything it asks for carry random ids; no file name, folder, seed or score leaves the server. Frames are
decoded by source index and sent one by one, so that "frame 37" is frame 37 whatever a browser makes of the container's clock.
The server answers on loopback only and only to pages of its own; the ratings stand in ``<database>.jsonl`` at all times.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.data.records import write_records
from cac_align.evaluation.human.frame_images import FrameImages, exact
from cac_align.evaluation.human.rating import TaskState
from cac_align.evaluation.human.store import AnnotationStore, Export, Member, Outdated, Task, check_described, export
from cac_align.evaluation.pages.page import environment
from cac_align.evaluation.pairing import Fault, FolderClip, Pairing, pair_up, read_folder

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
    """What the page sends for one key press; ``cac_align.evaluation.human.store.add`` explains the fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rater: str
    task: str
    clip: str
    kind: str
    detail: dict[str, Any] = Field(default_factory=dict)
    seen: int
    client: str = Field(min_length=8, max_length=64)


# ---- what is rated ------------------------------------------------------------------------------------------------


Sources = str | Path | Sequence[str | Path] | Pairing
"""A folder (each video by itself), two folders (pairs: before, after), more folders (each a group), or a ready pairing."""


def gather(
    sources: Sources,
) -> tuple[list[tuple[str, tuple[tuple[FolderClip, dict[str, str | None]], ...]]], list[Fault]]:
    """What is to be rated, by task name: its clips, each with {group: id of the pair}; and everything that could not be used.

    Raises ``ValueError`` when a folder cannot be read or holds no readable video.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    if not isinstance(sources, Pairing):
        folders = [read_folder(folder, group) for folder, group in zip(sources, _group_names(sources), strict=True)]
        if len(folders) != 2:
            clips = [clip for folder in folders for clip in folder.clips]
            faults = [fault for folder in folders for fault in folder.faults]
            if not clips:
                raise ValueError(f"none of the {len(faults)} videos can be read; the first: {faults[0].why}")
            return [_alone(clip) for clip in clips], faults
        sources = pair_up(*folders)
    tasks = []
    for pair in sources.pairs:
        if pair.before.path == pair.after.path:
            groups = {pair.before.group: pair.id, pair.after.group: pair.id}
            tasks.append((f"pair/{pair.id}", ((pair.before, groups),)))
        else:
            members = tuple((clip, {clip.group: pair.id}) for clip in (pair.before, pair.after))
            tasks.append((f"pair/{pair.id}", members))
    return [*tasks, *map(_alone, sources.unpaired)], list(sources.faults)


def _alone(clip: FolderClip) -> tuple[str, tuple[tuple[FolderClip, dict[str, str | None]], ...]]:
    return f"clip/{clip.group}/{clip.name}", ((clip, {clip.group: None}),)


def _group_names(folders: Sequence[str | Path]) -> list[str]:
    """The folders' own names; with parents where these are equal (run1/videos, run2/videos)."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) != len(paths):
        raise ValueError(f"the same folder is given twice: {', '.join(map(str, folders))}")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different parts")


def _tasks(sources: Sources, store: AnnotationStore) -> tuple[list[Task], list[Fault]]:
    gathered, faults = gather(sources)
    clips = {f"{clip.path.resolve()}": clip for _, members in gathered for clip, _ in members}
    names = {path: f"{clip.group}/{clip.name}" for path, clip in clips.items()}
    clip_tokens = store.tokens("clip", {names[path]: clip.video.content_hash for path, clip in clips.items()})
    task_tokens = store.tokens("task", dict.fromkeys((name for name, _ in gathered), None))
    tasks = []
    for name, members in gathered:
        made = tuple(Member(clip_tokens[names[f"{clip.path.resolve()}"]], clip, groups) for clip, groups in members)
        tasks.append(Task(task_tokens[name], name, made))
    tasks = store.apart(tasks)
    store.describe(tasks)
    check_described(store)
    return tasks, faults


def order(tasks: Sequence[Task], rater: str, seed: str) -> list[Task]:
    """The tasks as this rater meets them: shuffled, and of each pair a random one on the left. The same for ever, per rater and seed."""
    shuffled = sorted(tasks, key=lambda task: task.name)
    random.Random(f"{seed}/{rater}").shuffle(shuffled)
    arranged = []
    for task in shuffled:
        members = list(task.members)
        random.Random(f"{seed}/{rater}/{task.name}").shuffle(members)
        arranged.append(Task(task.token, task.name, tuple(members)))
    return arranged


# ---- the application ----------------------------------------------------------------------------------------------


def create_app(sources: Sources, *, database: Path, rater: str | None = None, seed: int = 0) -> FastAPI:
    """The page's server. database: SQLite file, made or resumed; the export stands beside it with the ending ``.jsonl``.

    seed: of the order in which clips come; fixed by the first opening of a database. The application's state has ``tasks``,
    ``faults`` and ``export()``. Ratings of other folders in the same database stay in the export. Raises ``ValueError`` for folders that
    cannot be read, videos changed since they were rated, or a database of an earlier release with ratings of other folders.
    """
    if rater is not None:
        rater = _name(rater)
    store = AnnotationStore(database)
    tasks, faults = _tasks(sources, store)
    shuffle = store.setting("seed", str(seed))
    images = FrameImages({member.token: member.clip.video for task in tasks for member in task.members})
    writing, stale = threading.Lock(), threading.Event()
    met: dict[str, list[Task]] = {}

    def arranged_for(who: str) -> list[Task]:
        if who not in met:
            met[who] = order(tasks, who, shuffle)
        return met[who]

    def write_export() -> Export:
        with writing:
            stale.clear()
            return _write_export(store, tasks, database)

    def refresh_export() -> None:
        """Write what has changed. One at a time: what changes while a file is being written is all in the next one."""
        stale.set()
        while stale.is_set() and writing.acquire(blocking=False):  # else whoever writes now sees the flag and goes on
            stale.clear()
            try:
                _write_export(store, tasks, database)
            except BaseException:
                stale.set()
                raise
            finally:
                writing.release()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        write_export()
        yield
        write_export()
        store.close()

    app = FastAPI(title="cac-align annotate", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)
    )  # a name that points here is not a page of ours
    app.state.tasks, app.state.faults, app.state.export = tasks, faults, write_export

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return JSONResponse({"detail": "a page of another origin may not rate"}, 403, headers=_HEADERS)
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.get("/")
    def who() -> Response:
        if rater is not None:
            return RedirectResponse("/rate")
        return HTMLResponse(
            environment("cac_align.evaluation.human")
            .get_template("annotate.html.jinja")
            .render(rater=None, unreadable=0, types=ANOMALY_TYPES)
        )

    @app.get("/rate")
    def page(name: str | None = None) -> Response:
        who = name if name is not None else rater
        if who is None:
            return RedirectResponse("/")
        unreadable = sum(fault.kind == "unreadable video" for fault in faults)
        text = (
            environment("cac_align.evaluation.human")
            .get_template("annotate.html.jinja")
            .render(rater=_asked(who), unreadable=unreadable, types=ANOMALY_TYPES)
        )
        return HTMLResponse(text)

    @app.get("/annotate.js")
    def script() -> Response:
        text = Path(__file__).with_name("templates").joinpath("annotate.js").read_text(encoding="utf-8")
        return Response(text, media_type="text/javascript; charset=utf-8")

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
        kind = "image/png" if exact(video) else "image/jpeg"
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.get("/api/task")
    def task(rater: str, number: int | None = None, after: int = 0) -> dict[str, Any]:
        who = _asked(rater)
        arranged = arranged_for(who)
        finished = store.finished(who, tasks)
        if number is None:
            turn = [(after + offset) % len(arranged) for offset in range(len(arranged))]
            number = next((index + 1 for index in turn if arranged[index].token not in finished), None)
        elif not 1 <= number <= len(arranged):
            raise HTTPException(404, f"there are {len(arranged)} videos, and no number {number}")
        about = {"total": len(arranged), "finished": len(finished)}
        return about | ({"task": None} if number is None else _shown(arranged[number - 1], number, store, who))

    @app.post("/api/action")
    def act(action: NewAction, later: BackgroundTasks) -> Any:
        who = _asked(action.rater)
        # As this rater sees it: "video A" in a message must not tell which of the two stood first in the folders.
        task = next((each for each in arranged_for(who) if each.token == action.task), None)
        if task is None:
            raise HTTPException(404, "there is no such task")
        fields = {"rater": who, "task": task.token, "lengths": task.lengths}
        try:
            state = store.add(
                **fields,
                clip=action.clip,
                kind=action.kind,
                detail=action.detail,
                seen=action.seen,
                client=action.client,
            )
        except Outdated as error:
            state = store.state(**fields)
            return JSONResponse({"detail": str(error), "state": state_json(state)}, 409)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        if action.kind in ("done", "undo"):
            later.add_task(refresh_export)
        return {"state": state_json(state)}

    return app


def _shown(task: Task, number: int, store: AnnotationStore, rater: str) -> dict[str, Any]:
    """A task as the page may know it: nothing here tells where a clip comes from."""
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
    ratings = {token: rating.to_json() for token, rating in state.ratings.items()}
    return {"ratings": ratings, "done": state.done, "last": state.last, "undoable": state.undoable is not None}


def _write_export(store: AnnotationStore, tasks: Sequence[Task], database: Path) -> Export:
    target = export_path(database)
    exported = export(store, tasks, target.parent)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    write_records(part, exported.records)
    part.replace(target)
    return exported


def export_path(database: Path) -> Path:
    """Where the records of a database stand: beside it, ending in ``.jsonl``."""
    return Path(database).with_suffix(".jsonl")


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise ValueError(f"a rater's name has 1 to 64 printable characters, received {text[:80]!r}")
    return name


def _asked(text: str) -> str:
    try:
        return _name(text)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


# ---- the verb -----------------------------------------------------------------------------------------------------


def default_database(sources: Sources) -> Path:
    """``ratings.sqlite`` in the one folder that is rated, or in the folder above several."""
    if isinstance(sources, Pairing):
        folders = [clip.path.parent for pair in sources.pairs for clip in (pair.before, pair.after)]
    else:
        folders = [Path(sources)] if isinstance(sources, (str, Path)) else [Path(folder) for folder in sources]
    return Path(os.path.commonpath([folder.resolve() for folder in folders])) / "ratings.sqlite"


def annotate(
    sources: Sources,
    *,
    rater: str | None = None,
    database: Path | None = None,
    host: Literal["127.0.0.1", "localhost"] | str = "127.0.0.1",
    port: int = 8017,
    seed: int = 0,
) -> Export:
    """Serve the rating page until interrupted (Ctrl-C); returns what has been rated by then. The same call resumes.

    sources: see ``Sources``. rater: whose page opens at ``/``; None asks for a name (several raters may use one server).
    database: default ``default_database``. port: 0 takes a free one. What could not be used is named on stderr.
    Raises ``ValueError`` for an address that is not loopback, or what ``create_app`` refuses.
    """
    import uvicorn

    if host not in LOOPBACK:
        raise ValueError(
            f"host must be one of {', '.join(LOOPBACK)}, received {host!r}; from elsewhere use `ssh -L {port}:127.0.0.1:{port}`"
        )
    database = Path(database) if database is not None else default_database(sources)
    app = create_app(sources, database=database, rater=rater, seed=seed)
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
        exported = export(store, app.state.tasks, export_path(database).parent)
    finally:
        store.close()
    for fault in exported.half_written:
        print(f"{fault.kind}: {fault.name}: {fault.why}", file=sys.stderr)
    print(
        f"{len(exported.records)} records in {export_path(database)}, {len(exported.half_written)} half-written",
        file=sys.stderr,
    )
    return exported
