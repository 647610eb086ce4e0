"""What is rated: tasks of one clip or of a pair, gathered from folders and shuffled for each rater."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_align.core.video import Video
from cac_align.evaluation.human.rating import Action, fold
from cac_align.evaluation.pairing import Fault, FolderClip, Pairing, pair_up, read_folder


@dataclass(frozen=True)
class TaskMember:
    """A clip of a task, and its groups: group → id of its pair there, None without one. A clip may
    be in two groups.
    """

    token: str
    clip: FolderClip
    groups: Mapping[str, str | None]


@dataclass(frozen=True)
class RatingTask:
    """What is judged in one go: a clip, or the two clips of a pair. name: stable over restarts.
    token: what the page sees.
    """

    token: str
    name: str
    members: tuple[TaskMember, ...]

    @property
    def lengths(self) -> dict[str, int]:
        return {member.token: len(member.clip.video) for member in self.members}

    def fits(self, actions: Sequence[Action]) -> bool:
        """Whether these actions could have been done on these clips."""
        try:
            fold(actions, self.lengths)
        except ValueError:
            return False
        return True

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Everything that the task's records need, with paths relative to ``folder``."""
        members = []
        for member in self.members:
            clip, video = member.clip, member.clip.video
            about = {"token": member.token, "groups": dict(member.groups), "path": os.path.relpath(clip.path, folder)}
            about |= {"name": clip.name, "group": clip.group, "prompt": clip.prompt, "fps": video.fps}
            members.append({**about, "times_s": video.times_s, "height": video.height, "width": video.width})
        return {"name": self.name, "members": members}

    @classmethod
    def from_json(cls, token: str, about: Mapping[str, Any], folder: Path) -> RatingTask:
        members = []
        for row in about["members"]:
            video = Video(row["fps"], tuple(row["times_s"]), row["height"], row["width"], row["name"], None)
            clip = FolderClip(folder / row["path"], row["name"], row["group"], video, row["prompt"])
            members.append(TaskMember(row["token"], clip, row["groups"]))
        return cls(token, about["name"], tuple(members))


Sources = str | Path | Sequence[str | Path] | Pairing
"""A folder (single videos), two folders (pairs: before, after), more folders (each a group), or a
ready pairing.
"""


def gather_tasks(
    sources: Sources,
) -> tuple[list[tuple[str, tuple[tuple[FolderClip, dict[str, str | None]], ...]]], list[Fault]]:
    """What is to be rated, by task name: the clips, each with {group: id of the pair}; and what
    could not be used.

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
    """The folders' names, with as many parents as they need to differ."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) != len(paths):
        raise ValueError(f"the same folder is given twice: {', '.join(map(str, folders))}")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different parts")


def shuffle_tasks(tasks: Sequence[RatingTask], rater: str, seed: str) -> list[RatingTask]:
    """The tasks in this rater's order, and each pair in this rater's left-right order; fixed by
    rater and seed.
    """
    shuffled = sorted(tasks, key=lambda task: task.name)
    random.Random(f"{seed}/{rater}").shuffle(shuffled)
    arranged = []
    for task in shuffled:
        members = list(task.members)
        random.Random(f"{seed}/{rater}/{task.name}").shuffle(members)
        arranged.append(RatingTask(task.token, task.name, tuple(members)))
    return arranged
