"""What planner and verifier are asked and must answer: JSON with a schema, read strictly.

task, steps so far, current frame → ``plan_conversation`` → answer → ``read_plan`` → ``Plan``
task, plan, clip → ``verify_conversation`` → answer → ``read_verdict`` → ``Verdict``

An answer that does not fit raises ``ValueError`` with the fault; it never becomes a default. The
schemas serve for constrained decoding; answers are checked all the same. Source: the two roles of
CollabVR (repository Joow0n-Kim/CollabVR); the words are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cac_align.core.video import Frames
from cac_align.vlm.protocol import Conversation, Message


@dataclass(frozen=True)
class Plan:
    """The next step: what happens in it, how the scene looks when it is done, and whether the task is done then."""

    action: str
    target_state: str
    last_step: bool


@dataclass(frozen=True)
class Verdict:
    """What the verifier says about a clip. good_fraction: the share of it from its start that may stay, in [0, 1]."""

    accept: bool
    diagnosis: str
    suggestion: str
    good_fraction: float
    task_complete: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_TEXT = {"type": "string", "minLength": 1, "maxLength": 600}
_ANY_TEXT = {"type": "string", "maxLength": 600}
_FLAG = {"type": "boolean"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


PLAN_SCHEMA: Mapping[str, Any] = _object(action=_TEXT, target_state=_TEXT, last_step=_FLAG)
"""The JSON schema of the planner's answer."""

CLIP_VERDICT_SCHEMA: Mapping[str, Any] = _object(
    diagnosis=_ANY_TEXT,
    accept=_FLAG,
    suggestion=_ANY_TEXT,
    good_fraction={"type": "number", "minimum": 0, "maximum": 1},
    task_complete=_FLAG,
)
"""The JSON schema of the verifier's answer; the diagnosis is written before the decision."""

_PLAN_TEXT = """You direct a video that is generated clip by clip. Plan the next clip only.
Task: {task}
Steps so far:
{steps}
This is step {number} of at most {limit}.{last}
{frame}
Answer with one JSON object with exactly these keys:
"action": one sentence that says what happens in the next clip, visible and doable in {seconds:.1f} seconds;
"target_state": one sentence that says how the scene looks at the end of the clip;
"last_step": true if the task is done at the end of this clip, else false."""

_VERIFY_TEXT = """You check one clip of a video that is generated step by step.
Task of the whole video: {task}
Planned action of this clip: {action}
State at its end: {target_state}
Compare what the clip shows with the plan. Reject a wrong action, direction or object, a thing that appears, vanishes or
deforms without cause, or a scene that breaks down. Do not reject for small artefacts.
Answer with one JSON object with exactly these keys:
"diagnosis": what is wrong and when, or an empty text;
"accept": true or false;
"suggestion": how to word the action so that the next try avoids this, or an empty text;
"good_fraction": the share of the clip from its start, 0 to 1, that is right and may stay;
"task_complete": true if the whole task is done at the end of this clip, else false."""

_AGAIN = """Your answer cannot be used: {fault}. Answer again with one JSON object and nothing else."""


def plan_conversation(
    task: str, steps: Sequence[tuple[str, bool]], number: int, limit: int, seconds: float, frame: Frames | None
) -> Conversation:
    """The planner's question. steps: (action, whether it was accepted). frame: the last one so far, None before the
    first clip.
    """
    told = "\n".join(
        f"{n}. {action} ({'accepted' if ok else 'not accepted'})" for n, (action, ok) in enumerate(steps, 1)
    )
    text = _PLAN_TEXT.format(
        task=task,
        steps=told or "none",
        number=number,
        limit=limit,
        last=" It is the last one: the task must be done at its end." if number == limit else "",
        frame="There is no picture yet." if frame is None else "The picture shows the scene as it is now.",
        seconds=seconds,
    )
    return (Message("user", text, frame, as_images=True),)


def verify_conversation(task: str, plan: Plan, clip: Frames) -> Conversation:
    """The verifier's question, with the clip's frames."""
    text = _VERIFY_TEXT.format(task=task, action=plan.action, target_state=plan.target_state)
    return (Message("user", text, clip),)


def again_conversation(asked: Conversation, answer: str, fault: str) -> Conversation:
    """The same question after an answer that could not be used, with its fault."""
    return (*asked, Message("assistant", answer), Message("user", _AGAIN.format(fault=fault)))


def read_plan(text: str) -> Plan:
    """Raises ``ValueError`` for anything but an object as ``PLAN_SCHEMA`` says."""
    return Plan(**_read(text, PLAN_SCHEMA))


def read_verdict(text: str) -> Verdict:
    """Raises ``ValueError`` for anything but an object as ``CLIP_VERDICT_SCHEMA`` says."""
    found = _read(text, CLIP_VERDICT_SCHEMA)
    return Verdict(**{**found, "good_fraction": float(found["good_fraction"])})


def _read(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The object in an answer, which may stand in a Markdown block, checked against the schema's keys and types."""
    bare = text.strip()
    if bare.startswith("```"):
        bare = bare.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        found = json.loads(bare, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object ({error})") from error
    if not isinstance(found, dict) or set(found) != set(schema["required"]):
        received = ", ".join(sorted(map(str, found))) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"expected exactly the keys {', '.join(schema['required'])}, received {received}")
    for name, rule in schema["properties"].items():
        value = found[name]
        if rule["type"] == "boolean":
            fits = isinstance(value, bool)
        elif rule["type"] == "number":
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
        else:
            fits = isinstance(value, str) and len(value.strip()) >= rule.get("minLength", 0)
        if not fits:
            raise ValueError(f"{name} must be a {rule['type']} as asked, received {value!r:.80}")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")
