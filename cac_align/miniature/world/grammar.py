"""The prompts of the miniature world: a small closed grammar, read and written without loss.

Spec (actors, place, camera) → ``Spec.prompt`` → "a red ball rolls to the right on grass" →
``parse_prompt`` → the same Spec

prompt  := clause (" and " clause)* " " place [" as the camera drifts"]
clause  := a COLOUR KIND ["saying" WORD] VERB          a red ball rolls to the right
         | a COLOUR KIND "rolls into" a COLOUR KIND    two solids that meet
place   := "on grass" | "on sand" | "in a room" | "at night" | "on a street" | "by the sea"
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 46, 44),
    "green": (40, 164, 64),
    "blue": (44, 82, 216),
    "yellow": (234, 206, 44),
    "purple": (152, 60, 192),
    "cyan": (48, 198, 208),
    "orange": (232, 128, 36),
    "pink": (236, 128, 176),
    "white": (234, 234, 234),
    "black": (30, 30, 36),
}
"""Colour words and their RGB values. The first six are the Studio's: they stay apart under blur and
a slight tint.
"""

OBJECTS = ("ball", "box", "star", "triangle")
KINDS = (*OBJECTS, "figure", "sign", "lamp")

PLACES: dict[str, tuple[RGB, RGB, RGB]] = {
    "on grass": ((188, 206, 220), (206, 216, 222), (126, 148, 116)),
    "on sand": ((206, 200, 194), (218, 212, 204), (196, 178, 150)),
    "in a room": ((196, 192, 202), (206, 202, 208), (146, 142, 148)),
    "at night": ((34, 38, 56), (48, 52, 68), (62, 64, 72)),
    "on a street": ((172, 178, 186), (192, 194, 198), (112, 112, 116)),
    "by the sea": ((182, 204, 216), (212, 220, 222), (104, 138, 156)),
}
"""Places, with the colours of the top of the sky (or wall), of the horizon and of the ground."""

WORDS = ("GO", "UP", "OK", "HI", "TO", "BE", "BUS", "CAT", "SKY", "TEA", "STOP", "EXIT", "CAFE", "SALE")
"""Texts of signs; the first six are the Studio's."""

GLYPHS: dict[str, tuple[str, ...]] = {
    "A": ("010", "101", "111", "101", "101"),
    "B": ("110", "101", "110", "101", "110"),
    "C": ("111", "100", "100", "100", "111"),
    "E": ("111", "100", "110", "100", "111"),
    "F": ("111", "100", "110", "100", "100"),
    "G": ("111", "100", "101", "101", "111"),
    "H": ("101", "101", "111", "101", "101"),
    "I": ("111", "010", "010", "010", "111"),
    "K": ("101", "101", "110", "101", "101"),
    "L": ("100", "100", "100", "100", "111"),
    "O": ("111", "101", "101", "101", "111"),
    "P": ("111", "101", "111", "100", "100"),
    "S": ("111", "100", "111", "001", "111"),
    "T": ("111", "010", "010", "010", "010"),
    "U": ("101", "101", "101", "101", "111"),
    "X": ("101", "101", "010", "101", "101"),
    "Y": ("101", "101", "111", "010", "010"),
}
"""Letters on a grid of 3 × 5 cells, one string per row."""

_GO = {
    "ball": "rolls",
    "box": "slides",
    "star": "spins",
    "triangle": "slides",
    "figure": "walks",
    "sign": "moves",
    "lamp": "moves",
}
_REST = {"figure": "stands still", "sign": "stands still", "lamp": "stays lit"}


def verb(kind: str, motion: str) -> str:
    """The words for a motion, as in ("ball", "right") → "rolls to the right".

    Raises ``ValueError`` when an entity of this kind cannot move so.
    """
    if motion not in MOTIONS[kind]:
        raise ValueError(f"a {kind} cannot do {motion!r}; it can do {', '.join(MOTIONS[kind])}")
    if motion in ("left", "right"):
        return f"{_GO[kind]} to the {motion}"
    return {
        "up": "rises",
        "down": "falls",
        "bounce": "bounces",
        "turn": "turns around",
        "wave": "waves",
        "blink": "blinks",
        "still": _REST.get(kind, "rests"),
        "into": "rolls into",
    }[motion]


MOTIONS: dict[str, tuple[str, ...]] = {
    "ball": ("left", "right", "up", "down", "bounce", "turn", "still", "into"),
    "box": ("left", "right", "up", "down", "bounce", "turn", "still"),
    "star": ("left", "right", "up", "down", "bounce", "turn", "still"),
    "triangle": ("left", "right", "up", "down", "turn", "still"),
    "figure": ("left", "right", "turn", "wave", "still"),
    "sign": ("left", "right", "still"),
    "lamp": ("blink", "still"),
}
"""The motions of each kind of entity."""


@dataclass(frozen=True)
class Actor:
    """One entity of a prompt. ``text`` is what a sign says, and empty for others."""

    kind: str
    colour: str
    motion: str
    text: str = ""


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for. The first actor is the main one: ``kind``, ``colour``, ``motion`` and
    ``text`` are its own.
    """

    actors: tuple[Actor, ...]
    place: str
    drift: bool = False

    @property
    def kind(self) -> str:
        return self.actors[0].kind

    @property
    def colour(self) -> str:
        return self.actors[0].colour

    @property
    def motion(self) -> str:
        return self.actors[0].motion

    @property
    def text(self) -> str:
        return self.actors[0].text

    @property
    def prompt(self) -> str:
        """The prompt in words; ``parse_prompt`` turns it back into an equal Spec."""
        clauses: list[str] = []
        for actor in self.actors:
            name = f"{'an' if actor.colour[0] in 'aeiou' else 'a'} {actor.colour} {actor.kind}"
            saying = f" saying {actor.text}" if actor.text else ""
            if clauses and clauses[-1].endswith("into"):
                clauses[-1] += f" {name}"
            else:
                clauses.append(f"{name}{saying} {verb(actor.kind, actor.motion)}")
        return " and ".join(clauses) + f" {self.place}" + (" as the camera drifts" if self.drift else "")


def parse_prompt(text: str) -> Spec:
    """Read a prompt of the miniature's grammar.

    Raises ``ValueError`` naming the word that is unknown and the words that are allowed in its
    place.
    """
    words = text.strip().rstrip(".").split()
    rest = " ".join(word if word in WORDS else word.lower() for word in words)
    drift = rest.endswith(" as the camera drifts")
    rest = rest.removesuffix(" as the camera drifts")
    place = next((place for place in PLACES if rest.endswith(f" {place}")), None)
    if place is None:
        raise ValueError(f"unknown place at the end of the prompt {text!r}; expected one of {', '.join(PLACES)}")
    actors: list[Actor] = []
    for clause in rest.removesuffix(f" {place}").split(" and "):
        main, met, other = clause.partition(" rolls into ")
        if met:
            actors.append(_actor(main + " rolls into", text))
            kind = other.split()[-1] if other.split() else ""
            actors.append(_actor(f"{other} {_REST.get(kind, 'rests')}", text))
        else:
            actors.append(_actor(clause, text))
    return Spec(tuple(actors), place, drift)


def _actor(clause: str, text: str) -> Actor:
    match = re.fullmatch(r"an? (\S+) (\S+)(?: saying (\S+))? (.+)", clause)
    if match is None:
        raise ValueError(
            f"cannot read {clause!r} in the prompt {text!r}; expected 'a COLOUR ENTITY VERB', e.g. 'a red ball bounces'"
        )
    colour, kind, said, action = match.groups()
    if colour not in COLOURS:
        raise ValueError(f"unknown colour {colour!r} in the prompt {text!r}; expected one of {', '.join(COLOURS)}")
    if kind not in KINDS:
        raise ValueError(f"unknown entity {kind!r} in the prompt {text!r}; expected one of {', '.join(KINDS)}")
    if (kind == "sign") != (said is not None):
        raise ValueError(
            f"a sign, and only a sign, says something; received {clause!r} in the prompt {text!r}, "
            f"expected e.g. 'a red sign saying GO'"
        )
    if said is not None and said not in WORDS:
        raise ValueError(f"unknown sign text {said!r} in the prompt {text!r}; expected one of {', '.join(WORDS)}")
    motions = {verb(kind, motion): motion for motion in MOTIONS[kind]}
    if action not in motions:
        raise ValueError(
            f"unknown motion {action!r} of a {kind} in the prompt {text!r}; expected one of {', '.join(motions)}"
        )
    return Actor(kind, colour, motions[action], said or "")


def _vocabulary() -> tuple[str, ...]:
    words = {"a", "an", "and", "saying", "as", "the", "camera", "drifts"}
    words.update(COLOURS, KINDS, WORDS)
    words.update(word for place in PLACES for word in place.split())
    words.update(word for kind in KINDS for motion in MOTIONS[kind] for word in verb(kind, motion).split())
    return tuple(sorted(words))


VOCABULARY: tuple[str, ...] = _vocabulary()
"""Every word of the grammar, sorted: the vocabulary of the small Wan's tokenizer."""
