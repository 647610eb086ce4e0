"""The lab's pages: each answers one question in the same form, the index names every one, and no link leads nowhere."""

import re
from pathlib import Path

import pytest

from tests.support.tracked import tracked

ROOT = Path(__file__).parents[2]
LAB = ROOT / "docs" / "lab"
PAGES = [path for path in tracked("docs/lab", "*.md") if path.name != "index.md"]


def links(page):
    """The files that a page links to."""
    return [(page.parent / link).resolve() for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_a_question_a_setup_one_bold_result_a_verdict_and_what_superseded_it(page):
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# .+\?\n", text)
    parts = [block.split(":")[0] for block in text.split("\n\n")[1:5]]
    assert parts == ["Setup", "Result", "Verdict", "Superseded by"]
    assert re.fullmatch(r"Result: \*\*[^*]+\*\*", text.split("\n\n")[2])
    assert all(len(line) <= 120 for line in text.splitlines())


def test_the_index_names_every_page_and_is_short():
    assert len(PAGES) > 10
    assert set(links(LAB / "index.md")) == {page.resolve() for page in PAGES}
    assert len((LAB / "index.md").read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("page", [*PAGES, LAB / "index.md"], ids=lambda page: page.stem)
def test_every_link_of_a_page_is_there(page):
    assert [link for link in links(page) if not link.is_file()] == []
