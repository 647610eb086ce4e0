"""ViF-CoT-4K (Skyra, arXiv 2512.15693) as records: the findings in its supervision text become
windows, boxes and types.

Findings have the form <type>…</type> in <t>[s, e]</t> at <bbox>[…]</bbox>. A real video is normal;
a fake one is abnormal with its mapped findings. A fake video whose findings are all of dropped
kinds (blur, colour, light: global quality) is left out, since nobody said that it is free of
anomalies. There are no prompts. The box holds for the whole segment, so it is placed on every
source frame of the window.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cac_align.core.judgement import Anomaly, Box, Window, shown_frames
from cac_align.core.skyra import FINDING, MOTION, OBJECT, PHYSICS, SKYRA_LABELS, anomaly_type, finding_sentence
from cac_align.core.video import Video
from cac_align.data.external import check_fields, map_label, open_or_reason, record_of
from cac_align.data.records import LoadedRecords, Record, loaded_records

BoxUnits = Literal["fraction", "thousandth", "pixel"]

_UNVERIFIED = (
    "The JSON itself was not seen. A public third-party loader reads `messages` (role, content) and `images`; "
    "`conversations` (from, "
    "value), LLaMA-Factory's other name for the same thing, is accepted too.",
    "Box units: fractions of the frame with [0, 0, 0, 0] for 'no box' are inferred from examples in the reward "
    "code; set box_units.",
    "Which text counts as 'about a person' for Structure Anomaly and Shape Distortion is our reading: the sentence "
    "of the finding.",
    "Where a source video lies beside its parsed frames is known for the Kinetics part only; other parts are looked "
    "for likewise.",
)

APPEARANCE = ("Abnormal Object Disappearance", "Abnormal Object Appearance")
LIGHTING = "Lighting Inconsistency"


def labels(
    *, appearance: Literal["motion", "object"] = "motion", lighting: Literal["drop", "physics"] = "drop"
) -> dict[str, str | None]:
    """The label table with its two open choices.

    appearance: objects that appear or vanish (CaC B.1.2: motion; A.2: object). lighting: drop, or
    physics.
    """
    table = dict(SKYRA_LABELS)
    for name in APPEARANCE:
        table[name] = MOTION if appearance == "motion" else OBJECT
    table[LIGHTING] = None if lighting == "drop" else PHYSICS
    return table


def load(
    path: str | Path,
    *,
    videos: str | Path,
    table: Mapping[str, str | None] = SKYRA_LABELS,
    box_units: BoxUnits = "fraction",
) -> LoadedRecords:
    """Read ``ladm_sft.json``. videos: the folder that holds
    ``<source>/{real|fake}/[generator]/<id>.mp4``.

    Raises ``ValueError`` for an unknown field, role or label, text without an answer, or a box
    outside its units.
    """
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a JSON list of conversations, received {type(rows).__name__}")
    records: list[Record] = []
    left_out: dict[str, str] = {}
    names: set[str] = set()
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        text, images = _conversation(row, where)
        place, truth = _place(images, where)
        name = str(place)
        if name in names:
            raise ValueError(f"{where}: {name} occurs twice; one record per video")
        names.add(name)
        answer = re.search(r"<answer>\s*(Fake|Real)\s*</answer>", text, re.IGNORECASE)
        if answer is None:
            raise ValueError(
                f"{where}: expected <answer>Fake</answer> or <answer>Real</answer> in the assistant's text, found "
                f"neither"
            )
        findings = [found for found in FINDING.finditer(text) if found["label"]]
        kinds = [(found, map_label(found["label"], table, where=where)) for found in findings]
        if answer[1].lower() != truth:
            left_out[name] = f"contradiction: the folder says {truth}, the text says {answer[1]}"
            continue
        video = open_or_reason(Path(videos) / f"{place}.mp4")
        if isinstance(video, str):
            left_out[name] = video
            continue
        kept = [(found, kind) for found, kind in kinds if kind is not None]
        if truth == "fake" and not kept:
            left_out[name] = f"no anomaly of ours: {sorted({found['label'] for found in findings})}"
            continue
        anomalies = (
            tuple(_anomaly(text, found, kind, video, box_units, where) for found, kind in kept)
            if truth == "fake"
            else ()
        )
        records.append(
            record_of(
                video,
                id=name,
                prompt="",
                anomalies=anomalies,
                annotator="ViF-CoT-4K",
                extra={
                    "labels": [found["label"] for found in findings],
                    "dropped": sum(kind is None for _, kind in kinds),
                    "generator": place.parts[-2] if len(place.parts) > 3 else "",
                },
            )
        )
    return loaded_records(records, left_out, str(path), _UNVERIFIED)


def _conversation(row: Any, where: str) -> tuple[str, list[str]]:
    """The assistant's last text and the image paths of a row, in either of LLaMA-Factory's two
    layouts.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, received {type(row).__name__}")
    key = "messages" if "messages" in row else "conversations"
    check_fields(row, required=(key, "images"), optional=("id", "system"), where=where)
    role, content, speaker = ("role", "content", "assistant") if key == "messages" else ("from", "value", "gpt")
    texts = []
    for turn in row[key]:
        check_fields(turn, required=(role, content), where=f"{where}.{key}")
        if turn[role] not in ("system", "user", "human", speaker):
            raise ValueError(f"{where}: unknown role {turn[role]!r}; expected system, user (human) or {speaker}")
        if turn[role] == speaker:
            texts.append(turn[content])
    if not texts or not row["images"]:
        raise ValueError(
            f"{where}: expected an assistant's text and at least one image, found {len(texts)} and {len(row['images'])}"
        )
    return texts[-1], row["images"]


def _place(images: list[str], where: str) -> tuple[PurePosixPath, str]:
    """``<source>/{real|fake}/[generator]/<id>`` of a row, from its first frame's path, and which of
    the two it is.
    """
    parts = PurePosixPath(images[0]).parts
    if "parsed_frames" not in parts:
        raise ValueError(
            f"{where}: expected an image under parsed_frames/<source>/{{real|fake}}/…, received {images[0]!r}"
        )
    last = len(parts) - 1 - parts[::-1].index("parsed_frames")
    place = PurePosixPath(*parts[last + 1 : -1])
    truths = {"real", "fake"} & {part.lower() for part in place.parts}
    if len(truths) != 1 or len(place.parts) < 3:
        raise ValueError(f"{where}: expected <source>/{{real|fake}}/[generator]/<id>, received {place}")
    return place, truths.pop()


def _anomaly(text: str, found: re.Match[str], kind: str, video: Video, units: BoxUnits, where: str) -> Anomaly:
    sentence = finding_sentence(text, found)
    kind = anomaly_type(kind, sentence)
    start, end = float(found["start"]), float(found["end"])
    last = video.times_s[-1]
    if end < start or start > last + 1:
        raise ValueError(
            f"{where}: time segment [{start}, {end}] s does not lie in a video of {video.duration_s:.2f} s"
        )
    window = Window(min(start, last), min(end, last))
    box = _box(found["box"], video, units, where)
    frames = shown_frames(window, video.times_s)
    return Anomaly(kind, window, sentence, "", dict.fromkeys(frames, (box,)) if box else {})


def _box(text: str, video: Video, units: BoxUnits, where: str) -> Box | None:
    """The box on our grid; None for [0, 0, 0, 0]. Raises ``ValueError`` where it is impossible in
    these units.
    """
    try:
        corners = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{where}: expected four numbers in <bbox>, received [{text}]") from error
    if len(corners) != 4:
        raise ValueError(f"{where}: expected four numbers in <bbox>, received [{text}]")
    if not any(corners):
        return None
    width, height = {"fraction": (1, 1), "thousandth": (1000, 1000), "pixel": (video.width, video.height)}[units]
    left, top, right, bottom = corners
    if not (0 <= left < right <= width * 1.001 and 0 <= top < bottom <= height * 1.001):
        raise ValueError(f"{where}: box [{text}] is empty or leaves the frame in units of {units}; is box_units right?")
    return Box.from_pixels(left, top, right, bottom, width, height)
