"""The answer's JSON schema, for constrained decoding (a switch; whatever comes out is validated by ``read_answer`` all the same).

Status-conditioned, as Eq. 2 asks: a normal answer has no anomalies, an abnormal one at least one. Integers are bounded, because an
unbounded number may run away. Key order is the order in which the judge must write: thought first, verdict after it.
"""

from __future__ import annotations

from typing import Any, Literal

from cac_align.core.judgement import ANOMALY_TYPES, BOX_MAX

MAX_ANOMALIES = 8


def answer_schema(number: Literal[1, 2], *, boxed: bool = False) -> dict[str, Any]:
    """JSON schema of turn 1's (time regions; ``boxed``: and boxes) or turn 2's (boxes) answer."""
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
