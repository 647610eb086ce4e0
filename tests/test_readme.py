"""The README tells the truth: its blocks run and print what they say, its commands parse, its links and numbers exist."""

import math
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest

from cac_align import __version__
from cac_align.cli.main import build_parser
from tests.support.tracked import ROOT, tracked

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```$", README, re.M | re.S)
PLACES = {place for path in tracked(".") for place in (path, *path.parents)}
GENERATED = {
    ROOT / "docs" / page
    for maker in tracked("docs", "make_*.py")
    for page in re.findall(r'"((?:reference/)?\w+\.md)"', maker.read_text(encoding="utf-8"))
}
NUMBER = re.compile(r"-?\d+\.\d+")


def blocks_that_run(language):
    """Each block of this language that is not marked "not-run", with the text block that follows it, if one does."""
    following = [*BLOCKS, ("", "")]
    return [
        (block, printed if kind == "text" else None)
        for (name, block), (kind, printed) in pairwise(following)
        if name == language
    ]


def run(*command):
    """What a command prints, started in the checkout as the README says. ``cac-align`` is this package's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_python_block_prints_what_it_says():
    """Words are equal; a number may differ by the rounding of another CPU."""
    ((block, said),) = blocks_that_run("python")
    printed = run(sys.executable, "-c", block)
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", said)
    assert list(map(float, NUMBER.findall(printed))) == pytest.approx(list(map(float, NUMBER.findall(said))), abs=0.03)


def test_the_shell_blocks_run():
    blocks = blocks_that_run("bash")
    assert blocks
    for block, _ in blocks:
        assert run("bash", "-e", "-c", f'cac-align() {{ "$PYTHON" -m cac_align.cli "$@"; }}\n{block}')


def wilson(count, n):
    """The 95 % interval of a share by Wilson's formula, in per cent."""
    z, share = 1.959964, count / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * (middle - half), 100 * (middle + half)


def test_the_demos_intervals_are_those_of_its_counts():
    """The demo takes a minute and does not run here; what the README shows of it are shares of 40 clips and of 8."""
    (said,) = [text for name, text in BLOCKS if name == "text" and "prompts x" in text]
    shares = re.findall(r"anomalous ([\d.]+) % \[([\d.]+), ([\d.]+)\]", said)
    assert len(shares) == 3
    for (share, low, high), n in zip(shares, (40, 8, 8), strict=True):
        count = float(share) * n / 100
        assert count == pytest.approx(round(count), abs=1e-6)
        assert (float(low), float(high)) == pytest.approx(wilson(round(count), n), abs=0.051)


@pytest.mark.parametrize("page", ["README.md", "docs/full_size.md"])
def test_commands_of_a_page_parse_and_their_recipes_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"^\s*(?:\.venv/bin/)?cac-align ([^#\n]+)", text, re.M)
    if page == "README.md":
        commands += re.findall(r"`cac-align ([^`\n]+)`", text)
    assert len(commands) >= 4
    for command in commands:
        words = [word for word in shlex.split(command) if word not in ("&",)]
        build_parser().parse_args(words)
        assert [word for word in words if word.startswith("recipes/") and not (ROOT / word).is_file()] == []


def test_each_trainers_line_names_code_that_exists():
    modules = {path.stem for path in tracked("cac_align/plugins", "*.py")}
    named = set(re.findall(r"cac_align\.plugins\.(\w+)", README))
    assert len(named) == 12 and named <= modules


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 130
    assert len(README.split()) <= 900


@pytest.mark.parametrize("page", tracked(".", "*.md"), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_tracked_files(page):
    """Pages of the site, but not the README, may name those pages that are written when the site is built."""
    written = GENERATED if ROOT / "docs" in page.parents else set()
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            place = (page.parent / target.partition("#")[0]).resolve()
            assert place in PLACES | written, target


def test_numbers_of_the_results_stand_in_the_page_that_they_link_to():
    """Every number of the table, in per cent or as a share, is in the linked page."""
    rows = [line for line in README.splitlines() if line.startswith("|") and re.search(r"\d\.\d %", line)]
    assert len(rows) == 5
    for row in rows:
        what, result, _ = row.strip("|").split("|")
        (link,) = re.findall(r"\((docs/[^)]+)\)", what)
        page = (ROOT / link).read_text(encoding="utf-8")
        for number in re.findall(r"\d+\.\d", result):
            share = f"{float(number) / 100:.3f}"
            assert number in page or share in page or share.removeprefix("0") in page, (number, link)


def test_package_changelog_and_citation_name_one_version():
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    released = re.findall(r"^## (\d\S*) ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert __version__ == cited == released[0]


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z0-9-]+)`", README)) <= targets
