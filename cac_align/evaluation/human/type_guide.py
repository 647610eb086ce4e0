"""What raters are told of the five anomaly types: a definition and an example of each.

The definitions follow CaC (arXiv 2605.11723) Appendix B.1.2; the examples are ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TypeGuide:
    """One anomaly type. type: one of ``ANOMALY_TYPES``."""

    type: str
    definition: str
    example: str


TYPE_GUIDES = (
    TypeGuide(
        "Object Distortion",
        "An inanimate object is deformed, melts, merges with another, or has parts cut off or added. "
        "One frame shows it.",
        "The handle of a cup grows into the table.",
    ),
    TypeGuide(
        "Human Distortion",
        "A body is wrong: limbs or fingers are missing, doubled or bent the wrong way, or a face or body splits. "
        "One frame shows it.",
        "A hand on a railing has six fingers for four frames.",
    ),
    TypeGuide(
        "Motion Anomalies",
        "Something jumps, jitters, flickers, moves in a way nothing moves, or appears or vanishes without cause. "
        "Only a comparison of frames shows it.",
        "A ball that rolls to the right is gone for three frames and comes back.",
    ),
    TypeGuide(
        "Physical Violations",
        "Things act against physics: they float without support, pass through each other, run backwards, or ignore "
        "a collision. Their shape is right; what they do to each other is not.",
        "A glass falls through the table top and stands on the floor.",
    ),
    TypeGuide(
        "Character Anomalies",
        "Writing cannot be read, is broken or laid out oddly, or changes while it should stay. Changing writing "
        "lasts over all frames in which it changes.",
        "A shop's sign reads BAKERY, then BAKFRV.",
    ),
)
"""In the order of ``ANOMALY_TYPES`` and of the page's keys 1 to 5."""

NOT_ANOMALIES = (
    "Bounces, turns, occlusions, cuts by the frame's edge, shadows, motion blur, blinking lights, and a video that "
    "does not fit its prompt are no anomalies."
)
