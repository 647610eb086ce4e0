"""Skyra's findings: the tags in its text, its 23 categories, and which of our five types each is.

text → ``FINDING`` → label, time segment, box → ``anomaly_type`` → one of ``ANOMALY_TYPES`` or none

A finding is written <type>…</type> in <t>[start, end]</t> at <bbox>[x1, y1, x2, y2]</bbox>; of a region that was
cleared the type may be missing.

Source: Skyra (arXiv 2512.15693), repository JoeLeelyf/Skyra at 808e10d.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cac_align.core.judgement import ANOMALY_TYPES

OBJECT, HUMAN, MOTION, PHYSICS, CHARACTER = ANOMALY_TYPES
BY_REGION = "by region"
"""For labels that mean Human Distortion where the sentence names a person or a body part, else
Object Distortion.
"""

SKYRA_LABELS: Mapping[str, str | None] = {
    "Structure Anomaly": BY_REGION,
    "Texture Jittering": MOTION,
    "Unnatural Blur": None,
    "Color Over-saturation": None,
    "Lighting Inconsistency": None,
    "Camera Motion Inconsistency": MOTION,
    "Abnormal Object Disappearance": MOTION,
    "Abnormal Object Appearance": MOTION,
    "Person Identity Inconsistency": HUMAN,
    "General Object Identity Inconsistency": OBJECT,
    "Shape Distortion": BY_REGION,
    "Abnormal Rigid-Body Crossing": PHYSICS,
    "Abnormal Multi-Object Merging": PHYSICS,
    "Abnormal Object Splitting": PHYSICS,
    "General Interaction Anomaly": PHYSICS,
    "Unnatural Human Movement": MOTION,
    "Unnatural Animal Movement": MOTION,
    "Unnatural General Object Movement": MOTION,
    "Violation of Physical Law": PHYSICS,
    "Violation of General Causality Law": PHYSICS,
    "Abnormal Human Body Structure": HUMAN,
    "Abnormal General Object Structure": OBJECT,
    "Text Distortion": CHARACTER,
}
"""Skyra's 23 L3 categories → our five types; None: known, and no anomaly in CaC's sense."""

FINDING = re.compile(
    r"(?:<type>\s*+(?P<label>[^<\s]++(?:\s++[^<\s]++)*+)\s*</type>\s*in\s*)?"
    r"<t>\s*\[\s*(?P<start>[\d.]+)\s*,\s*(?P<end>[\d.]+)\s*\]\s*</t>"
    r"\s*at\s*<bbox>\s*\[(?P<box>[^\]]*)\]\s*</bbox>"
)
_TAGS = re.compile(r"</?(?:type|t|bbox|think|answer)>")
_PERSON = re.compile(
    r"\b(?:person|people|man|men|woman|women|boy|girl|child|children|human|body|hands?|fingers?|thumbs?|arms?"
    r"|wrists?|elbows?|"
    r"shoulders?|legs?|knees?|feet|foot|toes?|limbs?|torso|neck|head|face|facial|eyes?|mouth|lips?|teeth|nose|ears?"
    r"|hair)\b",
    re.IGNORECASE,
)


def anomaly_type(kind: str, sentence: str) -> str:
    """Our type of a mapped category: ``BY_REGION`` becomes Human Distortion where the sentence is about a person."""
    if kind != BY_REGION:
        return kind
    return HUMAN if _PERSON.search(sentence) else OBJECT


def finding_sentence(text: str, found: re.Match[str]) -> str:
    """The words about a finding, without tags: its sentence, and the one before it if it has no
    words of its own.
    """
    before, after = text[: found.start()], text[found.end() :]
    before = (
        before[before.rfind("</bbox>") + len("</bbox>") :] if "</bbox>" in before else before
    )  # the last finding's own words
    stops = [match.end() for match in re.finditer(r"[.!?]\s+|\n+", before)]
    lead = before[stops[-1] :] if stops else before
    if not _TAGS.sub("", lead).strip() and stops:
        lead = before[stops[-2] if len(stops) > 1 else 0 :]
    end = re.search(r"[.!?](?:\s|$)|\n|<type>|</think>", after)
    words = f"{lead} {found['label']} {after[: end.start()] if end else after}"
    return " ".join(_TAGS.sub(" ", words).split()).strip(" .,;:")
