"""The notebook runs as it is stored: its cells print again what they printed, and what they found is true."""

import contextlib
import io
import json
import re

import matplotlib
import pytest

from tests.support.tracked import ROOT

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "examples" / "walkthrough.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def run():
    """What each code cell prints in a plain Python, and the names that they leave behind."""
    names, printed = {"__name__": "walkthrough"}, []
    with matplotlib.rc_context({"backend": "Agg"}):
        for cell in CELLS:
            with contextlib.redirect_stdout(io.StringIO()) as text:
                exec("".join(cell["source"]), names)
            printed.append(text.getvalue())
    return printed, names


def test_every_cell_prints_what_is_stored_with_it(run):
    """Words are equal; a number may differ by the rounding of another CPU."""
    for cell, text in zip(CELLS, run[0], strict=True):
        stored = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        assert NUMBER.sub("#", text) == NUMBER.sub("#", stored)
        assert [*map(float, NUMBER.findall(text))] == pytest.approx([*map(float, NUMBER.findall(stored))], abs=0.03)


def test_what_the_notebook_finds_is_true(run):
    names = run[1]
    truth, found = names["truth"].window, names["found"].window
    assert names["verdict"].evidence.status == "abnormal" and not names["refused"].scored
    assert found.start_s < truth.end_s and truth.start_s < found.end_s
    values, advantages = names["values"][0].tolist(), names["advantages"][0].tolist()
    mean = sum(values) / 4
    deviation = (sum((value - mean) ** 2 for value in values) / 4) ** 0.5
    assert advantages == pytest.approx([(value - mean) / deviation for value in values], abs=1e-3)
    assert sum(advantages) == pytest.approx(0, abs=1e-3)
    mended = [result for result in names["results"] if result.status == "mended"]
    assert mended and all(result.after > 0.5 > result.before for result in mended)


def test_the_cells_were_run_in_order_without_an_error_and_show_three_pictures():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


def test_the_file_is_small():
    assert NOTEBOOK.stat().st_size < 400_000
