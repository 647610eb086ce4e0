"""How the pages look, as far as that can be measured: contrast, one colour per meaning, code as code, phones, keys."""

import re
from pathlib import Path

import numpy as np
import pytest

import cac_align.evaluation.pages as pages
from cac_align.core.encoding import write_mp4
from cac_align.evaluation.pages.page import TYPE_COLOURS, environment
from cac_align.evaluation.pages.repair_page import write_repair_page
from cac_align.generation.repair.attempts import Costs
from cac_align.generation.repair.one_video import RepairResult
from tests.support.chromium import browser_page, require_chromium

STYLE = (Path(pages.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
SCHEMES = dict(
    zip(
        ("light", "dark"),
        (dict(re.findall(r"--([\w-]+): (#\w{6})", root)) for root in re.findall(r":root \{([^}]*)\}", STYLE)),
        strict=True,
    )
)


def luminance(colour):
    """WCAG 2: relative luminance of an sRGB colour."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_ground_it_stands_on(scheme):
    colours = SCHEMES[scheme]
    grounds = {
        "ink": ("paper", "back", "track", "good-back", "bad-back", "warn-back", "accent-back"),
        "soft": ("paper", "back", "good-back", "bad-back", "warn-back"),
        "good": ("paper", "back", "good-back"),
        "bad": ("paper", "back", "bad-back"),
        "warn": ("paper", "back", "warn-back"),
        "accent": ("paper", "back"),
    }
    pairs = [(text, ground) for text, all_of_it in grounds.items() for ground in all_of_it]
    assert {
        pair: contrast(*(colours[name] for name in pair))
        for pair in pairs
        if contrast(*(colours[name] for name in pair)) < 4.5
    } == {}
    assert {name: colour for name, colour in TYPE_COLOURS.items() if contrast(colour, colours["paper"]) < 3} == {}
    meanings = {colours[name] for name in ("good", "bad", "warn", "accent")}
    assert len(meanings) == 4 and not meanings & set(TYPE_COLOURS.values())


def test_what_stands_between_backticks_is_code_and_stays_text():
    made = environment().from_string("{{ text | code }}").render(text="run `cac-align <b>` or ` alone")
    assert made == "run <code>cac-align &lt;b&gt;</code> or ` alone"


def test_no_curve_stands_alone_in_the_last_row():
    template = "{% import 'parts.html.jinja' as parts with context %}{{ parts.columns_of(count) }}"
    columns = [int(environment().from_string(template).render(count=count)) for count in range(2, 25)]
    assert all(count % wide != 1 and wide <= 5 for count, wide in zip(range(2, 25), columns, strict=True))


@pytest.fixture
def repairs(tmp_path):
    """A page of two videos: one judged normal, one whose only attempt was not kept."""
    long = "a red ball " * 60 + "`cac-align repair`" + "x" * 300
    for name in ("fine", "broken"):
        write_mp4(tmp_path / f"{name}.mp4", np.full((17, 64, 64, 3), 128, np.uint8), 16)
    fine, broken = (str(tmp_path / f"{name}.mp4") for name in ("fine", "broken"))
    attempt = {
        "key": "1", "video": broken, "prompt": long, "attempt": 1, "accepted": False, "seed": 3, "strength": 0.6,
        "mask_share": 0.25, "path": None, "mask": None, "reason": long, "costs": Costs().to_json(),
    }  # fmt: skip
    results = [
        RepairResult(fine, "a blue box", "normal", "nothing to repair", fine, 0.9, 0.9, 0, Costs()),
        RepairResult(broken, long, "kept", long, broken, 0.2, 0.2, 1, Costs()),
    ]
    return write_repair_page(results, [attempt], tmp_path / "repair.html", provenances=[{"cac/domain": "toyland"}])


def test_a_repair_page_fits_and_is_played_by_keys(repairs):
    require_chromium()
    with browser_page(width=390, height=844, offline=True) as page:
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")  # nothing plays by itself
        page.goto(repairs.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
        for width in (390, 1400):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        assert "No repair was good enough" in page.text_content("main") and "`" not in page.text_content(".warning")
        at = "document.querySelector('video').currentTime"
        page.locator("button.play").first.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.wait_for_function(f"() => Math.abs({at} - 3 / 16) < 1e-3")
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(f"() => Math.abs({at} - 2 / 16) < 1e-3")
        page.keyboard.press("Tab")  # to the video itself
        page.keyboard.press("Home")
        page.wait_for_function(f"() => {at} === 0")
        page.keyboard.press("Space")
        page.wait_for_function(f"() => {at} > 0.2")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.complaints == []


def test_an_empty_page_says_what_to_do(tmp_path):
    page = write_repair_page([], [], tmp_path / "repair.html").read_text(encoding="utf-8")
    assert "<code>cac-align repair" in page and "<section" not in page
