"""The page of `score --html`, from the shipped judge on clips of its world: verdict, window, boxes over the video, and
no number where there is none.
"""

import json
import re

import pytest

from cac_align.cli.main import main
from cac_align.evaluation.pages import score_page
from tests.support.chromium import browser_page, check_phone, require_chromium


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(the page, the paths of the two whole clips) of a normal clip, an anomalous one and a broken file."""
    folder = tmp_path_factory.mktemp("clips")
    assert main(["world", "--n", "2", "--seed", "2000000", "--world", "playground", "--out", str(folder)]) == 0
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    videos = [str(folder / record["video"]) for record in records]
    broken = folder / "<b>broken.mp4"
    broken.write_bytes(b"no video")
    listing = [{"video": video, "prompt": record["prompt"]} for video, record in zip(videos, records, strict=True)]
    listing.append({"video": str(broken), "prompt": "a red ball falls on sand"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listing))
    command = [
        "score",
        *videos,
        str(broken),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--reward",
        "reward/miniature",
    ]
    page, ledger = folder / "sub" / "scores.html", folder / "ledger.jsonl"
    assert main([*command, "--html", str(page), "--ledger", str(ledger)]) == 1  # one video has no score
    return page, videos


def test_every_video_is_in_the_table_and_the_worst_card_comes_first(scored):
    require_chromium()
    with browser_page(offline=True) as page:
        page.goto(scored[0].as_uri())
        rows = page.locator("table").first.locator("tbody tr")
        assert [name.split("-")[-1] for name in rows.locator("a").all_text_contents()] == [
            "normal.mp4",
            "abnormal.mp4",
            "<b>broken.mp4",
        ]
        assert rows.nth(2).locator("td").all_text_contents()[1:4] == ["–", "–", "–"]
        assert "no score" in rows.nth(2).text_content() and "Object Distortion" in rows.nth(1).text_content()
        assert page.locator("section.card").evaluate_all("cards => cards.map(card => card.id)") == [
            "video-3",
            "video-2",
            "video-1",
        ]
        assert page.locator("section.card .badge").all_text_contents() == ["no verdict", "abnormal", "normal"]
        assert page.locator("#video-3 video").count() == 0 and "Not drawn" in page.text_content("#video-3")
        assert "Domain: miniature" in page.text_content(".warning")
        assert page.locator("b:has-text('broken')").count() == 0  # a file name is text
        assert page.complaints == []


def test_the_boxes_lie_over_the_playing_video_and_only_in_their_window(scored):
    require_chromium()
    with browser_page(offline=True) as page:
        page.goto(scored[0].as_uri())
        boxes = json.loads(page.locator("#video-2 [data-boxes]").get_attribute("data-boxes"))
        begin, end, xmin, _, xmax, *_ = boxes[0]
        page.evaluate("document.querySelector('#video-2 video').load()")
        seek = "at => new Promise(done => { const video = document.querySelector('#video-2 video'); video.pause();"
        seek += " video.onseeked = done; video.currentTime = at; })"
        page.wait_for_function("() => document.querySelector('#video-2 video').readyState > 1")
        page.evaluate(seek, (begin + min(end, begin + 0.0625)) / 2)
        box, screen = (page.locator(f"#video-2 .screen{part}").bounding_box() for part in (" .box", ""))
        assert (box["x"] - screen["x"]) / screen["width"] == pytest.approx(xmin / 1000, abs=0.01)
        assert box["width"] / screen["width"] == pytest.approx((xmax - xmin) / 1000, abs=0.01)
        page.evaluate(seek, 0.0)
        assert page.locator("#video-2 .screen .box").count() == 0 < begin
        assert page.complaints == []


def test_it_is_one_file_and_fits_a_phone(scored):
    require_chromium()
    text = scored[0].read_text(encoding="utf-8")
    sources = re.findall(r"(?:src|href)=\"([^\"]*)", text)
    assert "This page is one file" in text and all(source.startswith(("data:", "#video-")) for source in sources)
    with browser_page(width=390, height=844, offline=True) as page:
        check_phone(page, scored[0])


def test_cards_are_limited_and_the_table_is_not(scored, tmp_path, monkeypatch):
    _, videos = scored
    monkeypatch.setattr(score_page, "MAX_CARDS", 1)
    rows = [
        {"video": video, "prompt": "p", "fps": None, "score": value, "parts": {}, "judgement": None, "error": None}
        | {"provenance": {}}
        for video, value in zip(videos, (0.9, 0.2), strict=True)
    ]
    text = score_page.write_score_page(rows, tmp_path / "few.html", scales={"score": "0 to 1"}).read_text()
    assert text.count('<section class="card"') == 1 and 'id="video-2"' in text  # the lowest score
    assert text.count("<td><a ") == 2 and "1 more videos stand in the table" in text
    with pytest.raises(ValueError, match="no score to show"):
        score_page.write_score_page([], tmp_path / "none.html", scales={})
