"""The teacher who knows the miniature's truth, as a Vlm: it looks the sample up in the records and answers without a mistake.

conversation of a synthesis (names its sample) → Record → ``teacher.answer`` for the frames shown → Reply

Where the record's clip can be drawn again from its seed, the chain of thought also says where the main entity is, as a small judge
needs it; other records get the chain without places.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from cac_align.data.records import Record
from cac_align.miniature import teacher
from cac_align.miniature.world import FULL, PLAYGROUND, STUDIO, make_clip
from cac_align.vlm.protocol import Conversation, Readout, Reply

_SAMPLE = re.compile(r"\(sample (.*), (scan|look|frame|single)\)")


class GroundTruth:
    """A ``Vlm`` that answers the questions of ``data.synthesise`` about these records. Raises ``ValueError`` without records."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = {record.id: record for record in records}
        if not self._records:
            raise ValueError("the ground-truth teacher needs records, received none")
        self._lock = threading.Lock()
        self._places = lru_cache(maxsize=64)(self._drawn_places)

    @property
    def passport(self) -> Mapping[str, str]:
        return {"model": "miniature ground truth", "decoding": "exact"}

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """The exact answers, in order (see ``Vlm.answer``); a conversation that names no sample of the records gets an error."""
        return [self._reply(conversation) for conversation in conversations]

    def _reply(self, conversation: Conversation) -> Reply:
        tokens = sum(len(message.text) for message in conversation) // 4
        if (
            len(conversation) == 1 and '"consistent"' in conversation[0].text
        ):  # asked to review a chain that was verified against the same records
            return Reply('{"consistent": true, "why": "it is what the records say"}', num_prompt_tokens=tokens, num_tokens=12)
        sample = next((found for message in conversation if (found := _SAMPLE.search(message.text))), None)
        record = None if sample is None else self._records.get(sample[1])
        frames = next((message.frames for message in reversed(conversation) if message.frames is not None), None)
        if record is None or frames is None:
            return Reply("", error="the ground-truth teacher answers questions about its own records only")
        with self._lock:
            places = self._places(record.id)
        text = teacher.answer(
            record.anomalies,
            number=1 if sample[2] in ("scan", "single") else 2,
            frames=frames.indices,
            times_s=frames.times_s,
            boxed=sample[2] != "scan",
            places=None if places is None else [places[index] for index in frames.indices],
        )
        return Reply(text, num_prompt_tokens=tokens, num_tokens=len(text) // 4 + 1)

    def _drawn_places(self, name: str) -> tuple[str, ...] | None:
        """Where the main entity is on every source frame, from the clip drawn again; None where the seed gives another clip."""
        record = self._records[name]
        seed = record.extra.get("seed")
        if not isinstance(seed, int) or seed < 0:
            return None
        for world in (FULL, STUDIO, PLAYGROUND):
            clip = make_clip(seed, world, anomalous=record.status == "abnormal")
            told = [anomaly.window for anomaly in clip.anomalies] == [anomaly.window for anomaly in record.anomalies]
            if told and clip.prompt == record.prompt and len(clip.pixels) == record.num_frames:
                return tuple(teacher.places(clip.scene, clip.anomalies))
        return None
