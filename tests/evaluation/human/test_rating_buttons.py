"""The rating page without a keyboard, at the width of a phone, and its focus with one."""

import threading
import time

import numpy as np
import pytest
import uvicorn

from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import ANOMALY_TYPES
from cac_align.data.records import read_records
from cac_align.evaluation.human.app import create_rating_app
from cac_align.evaluation.human.export import export_path
from tests.support.chromium import browser_page, require_chromium


@pytest.fixture
def served(tmp_path):
    """(address, database) of a page for one clip of eight frames."""
    require_chromium()
    write_mp4(tmp_path / "clip.mp4", np.full((8, 48, 64, 3), 90, np.uint8), 8.0)
    database = tmp_path / "ratings.sqlite"
    app = create_rating_app(tmp_path, database=database, rater="ada")
    config = uvicorn.Config(app, port=0, log_level="error")
    server, listener = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/", database
    server.should_exit = True
    thread.join()


def press(page, words):
    page.locator(f".actions button:visible:has-text('{words}')").first.click()


def test_a_clip_is_rated_with_buttons_alone_at_the_width_of_a_phone(served):
    address, database = served
    with browser_page(width=390, height=844) as page:
        page.goto(address)
        page.wait_for_selector("canvas[data-frame='0']")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        for words in ("frame on", "begins here", "frame on", "frame on", "ends here", "Motion Anomalies", "box"):
            press(page, words)
        page.wait_for_selector(".box.draft")
        assert page.locator("#moving").is_hidden()
        for words in ("right", "wider", "keep the box"):
            press(page, words)
        page.wait_for_selector(".box.chosen")
        press(page, "reason")
        page.locator("#ratings input").fill("it vanishes")
        press(page, "salient")  # keeps what is being written, too
        page.wait_for_function("() => document.querySelector('[data-key=s]').getAttribute('aria-pressed') === 'true'")
        assert page.get_attribute("[data-key='3']", "aria-pressed") == "true"
        press(page, "next")
        page.wait_for_selector("#finish:not([hidden])")
        assert page.complaints == []
    (record,) = read_records(export_path(database))
    (anomaly,) = record.anomalies
    assert (anomaly.type, anomaly.reason, anomaly.saliency) == ("Motion Anomalies", "it vanishes", "salient")
    assert (anomaly.window.start_s, anomaly.window.end_s) == (0.125, 0.375)
    assert {frame: [box.to_json() for box in boxes] for frame, boxes in anomaly.boxes.items()} == {
        3: [[310, 300, 720, 700]]
    }


def test_every_type_has_a_definition_and_an_example(served):
    with browser_page() as page:
        page.goto(served[0])
        page.wait_for_selector("canvas[data-frame='0']")
        page.locator("#guide summary").click()
        names, texts = (page.locator(f"#guide {tag}").all_text_contents() for tag in ("dt", "dd"))
        assert [name[2:] for name in names] == list(ANOMALY_TYPES)
        assert all(len(text.split("For example:")) == 2 for text in texts) and len(set(texts)) == 5


def test_the_focus_reaches_the_buttons_and_enter_presses_the_one_that_has_it(served):
    with browser_page() as page:
        page.goto(served[0])
        page.wait_for_selector("canvas[data-frame='0']")
        focused = "document.activeElement.dataset.key"
        for _ in range(3):
            page.keyboard.press("Tab")
        assert page.evaluate(focused) == "ArrowRight"
        page.keyboard.press("Enter")
        page.wait_for_selector("canvas[data-frame='1']")
        page.keyboard.press("ArrowRight")  # keys still mean what they mean
        page.wait_for_selector("canvas[data-frame='2']")
        page.locator("[data-key='i']").click()  # a click leaves no focus behind, so that Space plays
        page.wait_for_selector(".mark.chosen")
        page.keyboard.press("Space")
        page.wait_for_function("() => Number(document.querySelector('canvas').dataset.frame) > 2")
        assert page.locator(".mark").count() == 1 and page.complaints == []
