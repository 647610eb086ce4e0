"""The ground-truth teacher as a ``Vlm``: it finds the sample in the records and answers from its
annotations.

conversation of a synthesis (names its sample) → Record → ``teacher.answer`` for the frames shown →
Reply

The chain of thought says where the main entity is if the record knows it (``extra["places"]``, one
per source frame) or if its clip can be rendered again from its seed. A mistaken scan suspects what
the conversation says (<found>), about an entity that the prompt names; for prompts outside the
miniature world it keeps the words of the conversation.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from cac_align.core.answer import read_answer
from cac_align.core.judgement import Anomaly
from cac_align.core.video import Frames
from cac_align.data.records import Record
from cac_align.miniature.teacher import teacher
from cac_align.miniature.world.scene import Scene
from cac_align.miniature.world.settings import FULL, PLAYGROUND, STUDIO
from cac_align.miniature.world.world import make_clip
from cac_align.vlm.protocol import Conversation, Readout, Reply

_SAMPLE = re.compile(r"\(sample (.*), (scan|alarm|look|frame|single)\)")
_FOUND = re.compile(r"<found>(.*)</found>", re.DOTALL)


class GroundTruth:
    """A ``Vlm`` that answers the questions of ``data.synthesis`` about these records. Raises
    ``ValueError`` without records.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = {record.id: record for record in records}
        if not self._records:
            raise ValueError("the ground-truth teacher needs records, received none")
        self._lock = threading.Lock()
        self._scene = lru_cache(maxsize=64)(self._drawn_scene)

    @property
    def provenance(self) -> Mapping[str, str]:
        return {"model": "miniature ground truth", "decoding": "exact"}

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """The exact answers, in order (see ``Vlm.answer``); a conversation that names no sample of
        the records gets an error.
        """
        return [self._reply(conversation) for conversation in conversations]

    def _reply(self, conversation: Conversation) -> Reply:
        tokens = sum(len(message.text) for message in conversation) // 4
        if (
            len(conversation) == 1 and '"consistent"' in conversation[0].text
        ):  # asked to review a chain that was verified against the same records
            return Reply(
                '{"consistent": true, "why": "it is what the records say"}', num_prompt_tokens=tokens, num_tokens=12
            )
        sample = next((found for message in conversation if (found := _SAMPLE.search(message.text))), None)
        frames = next((message.frames for message in reversed(conversation) if message.frames is not None), None)
        record = None if sample is None else self._records.get(sample[1])
        if sample is None or record is None or frames is None:
            return Reply("", error="the ground-truth teacher answers questions about its own records only")
        anomalies = _suspected(sample.string, record, frames) if sample[2] == "alarm" else record.anomalies
        places = record.extra.get("places")
        if places is None:
            with self._lock:
                scene = self._scene(record.id)
            places = None if scene is None else teacher.places(scene, anomalies)
        text = teacher.answer(
            anomalies,
            number=1 if sample[2] in ("scan", "alarm", "single") else 2,
            frames=frames.indices,
            times_s=frames.times_s,
            boxed=sample[2] not in ("scan", "alarm"),
            places=None if places is None else [places[index] for index in frames.indices],
        )
        return Reply(text, num_prompt_tokens=tokens, num_tokens=len(text) // 4 + 1)

    def _drawn_scene(self, name: str) -> Scene | None:
        """The scene of the clip drawn again; None where the seed gives another clip."""
        record = self._records[name]
        seed = record.extra.get("seed")
        if not isinstance(seed, int) or seed < 0:
            return None
        for world in (FULL, STUDIO, PLAYGROUND):
            clip = make_clip(seed, world, anomalous=record.status == "abnormal")
            same_windows = [anomaly.window for anomaly in clip.anomalies] == [
                anomaly.window for anomaly in record.anomalies
            ]
            if same_windows and clip.prompt == record.prompt and len(clip.pixels) == record.num_frames:
                return clip.scene
        return None


def _suspected(text: str, record: Record, frames: Frames) -> list[Anomaly]:
    """The suspicion of a mistaken scan, about an entity that the prompt names: one of the same kind
    if there is one.
    """
    match = _FOUND.search(text)
    assert match is not None  # the conversation of every alarm says it
    anomalies = read_answer(match[1], number=1, frames=frames.indices, times_s=frames.times_s).anomalies
    try:
        return [
            teacher.about_entity(anomaly, *teacher.matching_entities(anomaly, record.prompt)[0])
            for anomaly in anomalies
        ]
    except ValueError:  # the prompt is not the small world's
        return list(anomalies)
