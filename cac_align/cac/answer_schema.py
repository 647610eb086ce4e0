"""The JSON schema of the judge's answer, for constrained decoding (optional).

Every answer is validated by ``read_answer``, constrained or not. The schema follows Eq. 2: a normal
answer has no anomalies, an abnormal one at least one. Integers are bounded, because an unbounded
number may never end. The order of the keys is the order of writing: reasoning first, then the
verdict.
"""

from __future__ import annotations

from typing import Any, Literal

from cac_align.core.judgement import ANOMALY_TYPES, BOX_MAX

MAX_ANOMALIES = 8


def answer_schema(number: Literal[1, 2], *, boxed: bool = False) -> dict[str, Any]:
    """The schema of turn ``number``'s answer: time regions in turn 1, boxes in turn 2.

    boxed: turn 1 has boxes as well (``cac.single_turn``).
    """
    text = {"type": "string", "maxLength": 600}
    corner = {"type": "integer", "minimum": 0, "maximum": BOX_MAX}
    box = {"type": "array", "items": corner, "minItems": 4, "maxItems": 4}
    region = {"type": "string", "pattern": "^Frame [0-9]{1,4}-[0-9]{1,4}$"}
    properties: dict[str, Any] = {
        "Attributed Time Region": region,
        "Attributed Label": {"enum": list(ANOMALY_TYPES)},
        "Reason for Anomaly": text,
        "Problem Region": text,
    }
    required = list(properties)
    if boxed or number == 2:
        properties["BBOX"] = {
            "type": "object",
            "patternProperties": {"^Frame [0-9]{1,4}$": box},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 64,
        }
        required = [*(name for name in required if boxed or name != "Attributed Time Region"), "BBOX"]
    anomaly = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def answer(status: str, anomalies: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"COT": {"type": "string"}, "status": {"const": status}, "anomalies": anomalies},
            "required": ["COT", "status", "anomalies"],
            "additionalProperties": False,
        }

    some = {"type": "array", "items": anomaly, "minItems": 1, "maxItems": MAX_ANOMALIES}
    none = {"type": "array", "items": anomaly, "maxItems": 0}
    return {"anyOf": [answer("normal", none), answer("abnormal", some)]}
