"""The Best-of-N page: chosen beside rejected, every candidate in the table, undecided and unscored
ones said, hostile text inert.
"""

import json

import numpy as np
import pytest

from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.evaluation.pages.selection_page import write_selection_page
from cac_align.generation.best_of_n import best_of_n
from cac_align.rewards.reward import Score
from tests.support.chromium import browser_page, check_phone, require_chromium

HOSTILE = "<img src=x onerror=alert(1)>"


class Judge:
    """Scores by brightness; candidate 3 cannot be scored, and a prompt that says so has no score at
    all.
    """

    name = "judge"

    @property
    def provenance(self):
        return {"reward": HOSTILE}

    def __call__(self, prompts, videos):
        scores = []
        for prompt, video in zip(prompts, videos, strict=True):
            light = float(video.frames([0]).pixels.mean()) / 255
            defect = Anomaly("Human Distortion", Window(0.25, 0.5), HOSTILE, "hand", {2: (Box(100, 100, 400, 400),)})
            judgement = Judgement("normal") if light > 0.5 else Judgement("abnormal", (defect,))
            failed = light > 0.8 or "hopeless" in prompt
            scores.append(Score.missing(f"broke {HOSTILE}") if failed else Score(light, {"p_normal": light}, judgement))
        return scores


def generate(prompt, seed):
    return Video.open(np.full((8, 32, 32, 3), 60 + 50 * seed, np.uint8), fps=8.0)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    selections = best_of_n([f"a cat {HOSTILE}", "hopeless"], generate, Judge(), n=4, out=out)
    return write_selection_page(selections, out / "report.html", tiles=[("12 %", "anomalous")])


def test_the_page_says_what_was_chosen_and_what_was_not_scored(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert "Chosen: candidate 2" in text and "Rejected: candidate 0" in text
    assert "5 candidates have no score" in text and "Undecided" in text
    assert text.count("no score: broke &lt;img") == 5
    assert HOSTILE not in text and 'src="videos/' in text


def test_it_opens_in_chromium_without_complaints(page_file):
    require_chromium()
    with browser_page(offline=True) as page:
        page.goto(page_file.as_uri())
        assert HOSTILE in page.text_content(".prompt") and page.locator(".prompt img").count() == 0
        assert page.locator(".side.rejected .frame .box").count() == 1
        page.locator(".side.rejected").scroll_into_view_if_needed()  # what is in view plays by itself
        page.wait_for_function("() => document.querySelector('video').currentTime > 0.2")
        check_phone(page, page_file)


class Toy(Judge):
    """States its domain, and finds candidates nearly equal."""

    @property
    def provenance(self):
        return {"cac/domain": "toyland"}

    def __call__(self, prompts, videos):
        defect = Anomaly("Motion Anomalies", Window(0.25, 0.25), "it jumps")
        judgement = Judgement("abnormal", (defect,))
        lights = [float(video.frames([0]).pixels.mean()) for video in videos]
        return [Score(0.5 + light * 1e-7, {}, judgement, provenance=self.provenance) for light in lights]


def test_the_page_names_the_domain_calls_a_tiny_lead_a_tie_and_shows_no_empty_window(tmp_path):
    selections = best_of_n(["a ball"], generate, Toy(), n=3, out=tmp_path)
    page = write_selection_page(selections, tmp_path / "report.html").read_text()
    assert "Domain: toyland" in page
    assert 'class="side tied"' in page and 'class="side chosen"' not in page
    assert "0.25–0.25 s" not in page and "it jumps" in page
    assert json.loads((tmp_path / "selection.jsonl").read_text())["domain"] == "toyland"
