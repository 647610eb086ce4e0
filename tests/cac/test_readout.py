"""Where the verdict stands in an answer."""

import pytest

from cac_align.cac.readout import status_offset


@pytest.mark.parametrize(
    "text, value",
    [
        ('{"COT": "x", "status": "abnormal", "anomalies": []}', "abnormal"),
        ('```json\n{"COT":"x","status":"normal","anomalies":[]}\n```', "normal"),
        ('{"COT": "he wrote \\"status\\": \\"normal\\" there", "status": "abnormal"}', "abnormal"),
        ('{"anomalies": [{"status": "normal"}], "COT": "status", "status" : "abnormal"}', "abnormal"),
        ('{"COT": "a brace } and a quote \\" inside", "status": "abnormal"}', "abnormal"),
        ('{"COT": "x", "status": "ab', "ab"),
        ('Sure! {"status": "normal"}', "normal"),
    ],
)
def test_the_outermost_status_value_is_found(text, value):
    offset = status_offset(text)
    assert text[offset:].startswith(value) and text[offset - 1] == '"'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "normal",
        '{"COT": "x"}',
        '{"status": ',
        '{"status": null}',
        '{"COT": "status: normal',
        '{"COT": {"status": "normal"}}',
        "[]",
    ],
)
def test_no_place_is_none(text):
    assert status_offset(text) is None
