"""Every verb that writes, on small inputs of its own: what meets a full disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cac_align.core.encoding import write_mp4
from tests.campaign import kills
from tests.campaign.kills import Verb


def writers(folder: Path) -> list[Verb]:
    """The verbs that write, on inputs in ``folder``; loads what their processes need."""
    import cac_align.evaluation.bench.bench
    import cac_align.evaluation.report.report
    import cac_align.miniature.demo
    import cac_align.training.grpo  # noqa: F401

    resumable = kills.verbs(folder)
    for stage, text in ((1, "stage: 1\n"), (3, "{}\n")):
        (folder / f"stage{stage}.yaml").write_text(text)
    return [
        *resumable,
        *quick_writers(folder),
        _verb("demo", "--out", "{out}", "--prompts", 1, "--n", 2),
        *(
            Verb(f"train stage{stage}", lambda out, tmp, stage=stage: kills.train_command(folder, stage, out), _names)
            for stage in (1, 3)
        ),
        _verb("report", folder / "some", _videos(folder / "others")[0].parent, *_LEVEL, "--out", "{out}/report.html"),
        _verb("evaluate bench", folder / "clips" / "records.jsonl", *_LEVEL, "--out", "{out}"),
    ]


def quick_writers(folder: Path) -> list[Verb]:
    """The verbs that write, run no model and draw no plots."""
    import cac_align.data.convert
    import cac_align.evaluation.human.app  # noqa: F401
    from cac_align.miniature.world.settings import PLAYGROUND
    from cac_align.miniature.world.world import write_world
    from tests.data.test_splits import make

    records = write_world(2, 1_430_004, folder / "clips", PLAYGROUND)
    videos = _videos(folder / "some")
    _rate(folder / "rated")
    (folder / "coco.json").write_text(_coco(records))
    return [
        _verb("score", *videos, "--prompt", "p", "--json", *_LEVEL, "--ledger", "{out}/ledger.jsonl"),
        _verb("data split", make(folder / "chains"), "--out", "{out}"),
        _verb("data import", "coco", folder / "coco.json", "{out}/records.jsonl", "--videos", records.parent),
        _verb("data import", "rating", folder / "rated" / "ratings.sqlite", "{out}/rated.jsonl"),
        _verb("data export", "coco", records, "{out}/coco.json"),
        _verb("data validate", records, "--json", prints_to="report.json"),
        _verb("annotate", videos[0].parent, "--database", "{out}/r.sqlite", "--port", 0, serves=True),
        _verb("world", "--n", 2, "--world", "playground", "--out", "{out}"),
        _verb("recipes copy", "reward/miniature", "{out}/mine.yaml"),
    ]


_LEVEL = ["--reward", f"{kills.__name__}:Level"]


def _verb(name: str, *words: Any, prints_to: str = "", serves: bool = False) -> Verb:
    """The verb with these words; ``{out}`` in them is its folder."""
    return Verb(
        name,
        lambda out, tmp: [*name.split(), *(str(word).replace("{out}", str(out)) for word in words)],
        _names,
        prints_to=prints_to,
        serves=serves,
    )


def _names(out: Path) -> list[str]:
    """The files that are not hidden, and not sqlite's own."""
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if path.name[0] != "." and not path.name.endswith(("-wal", "-shm")))


def _videos(folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.mp4" for number in range(2)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (9, 32, 32, 3), np.uint8)
        write_mp4(path, noise, 16)
    return paths


def _coco(records: Path) -> str:
    from cac_align.data.convert import to_coco
    from cac_align.data.records import read_records

    return json.dumps(to_coco(read_records(records)))


def _rate(folder: Path) -> None:
    """A database with one whole rating of a clip of ten frames."""
    from cac_align.evaluation.human.store import AnnotationStore
    from cac_align.evaluation.human.tasks import RatingTask, TaskMember
    from cac_align.evaluation.pairing import read_folder
    from tests.support.rating_actions import add, complete

    (folder / "videos").mkdir(parents=True)
    write_mp4(folder / "videos" / "a.mp4", np.zeros((10, 32, 32, 3), np.uint8), 8.0)
    (clip,) = read_folder(folder / "videos").clips
    store = AnnotationStore(folder / "ratings.sqlite")
    store.describe([RatingTask("t", clip.name, (TaskMember("c", clip, {"videos": None}),))])
    for number, (kind, detail) in enumerate([*complete(), ("done", {})]):
        add(store, kind, detail, last_known=number, client=f"action-{number}-----")
    store.close()
