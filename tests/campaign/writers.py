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
    import cac_align.data.convert
    import cac_align.evaluation.bench.bench
    import cac_align.evaluation.human.app
    import cac_align.evaluation.report.report
    import cac_align.miniature.demo
    import cac_align.training.grpo  # noqa: F401
    from tests.data.test_splits import make

    resumable = kills.verbs(folder)
    for stage, text in ((1, "stage: 1\n"), (3, "{}\n")):
        (folder / f"stage{stage}.yaml").write_text(text)
    world = folder / "world" / "records.jsonl"
    videos = _videos(folder / "some")
    others = _videos(folder / "others")[0].parent
    _rate(folder / "rated")
    chains = make(folder / "chains")
    level = ["--reward", f"{kills.__name__}:Level"]
    recipe = ["recipes", "copy", "reward/miniature"]

    def verb(name: str, *words: Any, prints_to: str = "", serves: bool = False) -> Verb:
        """The verb with these words; ``{out}`` in them is its folder."""
        return Verb(
            name,
            lambda out, tmp: [*name.split(), *(str(word).replace("{out}", str(out)) for word in words)],
            _names,
            prints_to,
            serves,
        )

    coco = folder / "coco.json"
    coco.write_text(_coco(world))
    return [
        *resumable,
        verb("demo", "--out", "{out}", "--prompts", 1, "--n", 2),
        verb("score", *videos, "--prompt", "p", "--json", *level, "--ledger", "{out}/ledger.jsonl"),
        *(
            Verb(f"train stage{stage}", lambda out, tmp, stage=stage: kills.train_command(folder, stage, out), _names)
            for stage in (1, 3)
        ),
        verb("data split", chains, "--out", "{out}"),
        verb("data import", "coco", coco, "{out}/records.jsonl", "--videos", world.parent),
        verb("data import", "rating", folder / "rated" / "ratings.sqlite", "{out}/rated.jsonl"),
        verb("data export", "coco", world, "{out}/coco.json"),
        verb("data validate", world, "--json", prints_to="report.json"),
        verb("evaluate bench", world, *level, "--out", "{out}"),
        verb("report", videos[0].parent, others, *level, "--out", "{out}/report.html"),
        verb("annotate", videos[0].parent, "--database", "{out}/r.sqlite", "--port", 0, serves=True),
        verb("world", "--n", 2, "--world", "playground", "--out", "{out}"),
        Verb("recipes copy", lambda out, tmp: [*recipe, str(out / "mine.yaml")], _names),
    ]


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
