"""The page of an alignment, from files written as the trainer writes them: curves first, then alarms, settings and
clips, the latest step first and four to a row.
"""

import math
import shutil

import numpy as np
import pytest

from cac_align.align.monitoring.alarms import EvalResult
from cac_align.align.recipe import AlignRecipe
from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.evaluation.pages.run_record import Chart, Curve, read_run
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger, score_key
from cac_align.runs.checkpoint import write_claim
from cac_align.runs.metrics_log import JsonlLog
from tests.cli.test_cli import Brightness
from tests.support.chromium import browser_page, require_chromium


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps with five clips each, one evaluation without a held-out reward and an alarm."""
    out = tmp_path_factory.mktemp("align")
    log, evaluations = JsonlLog(out / "log.jsonl"), JsonlLog(out / "eval.jsonl", digits=None)
    judge, ledger = cached(Brightness(), Ledger(out / "ledger.jsonl")), Ledger(out / "ledger.jsonl")
    for step, (score, speed, unscored) in enumerate([(0.4, 0.10, 0), (0.6, 0.08, 1)]):
        row = {"step": step, "videos": 5, "unscored": unscored, "score": score, "normal_flow_speed": speed}
        log.add(row | {"components": {"cac": score / 2, "normal_flow_speed": 0.5}})
        for number in range(5):
            file = out / "samples" / f"step-{step:06d}" / f"{number:04d}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(file, np.full((8, 32, 48, 3), 40 * number + 5 * step + 20, np.uint8), 8.0)
            video = Video.open(file)
            judge(["a ball"], [video])
            key = score_key("a ball", video, Brightness().provenance)
            ledger.annotate(key, step=step, advantage=number - 2.0, group=0)
    for step, held_out, alarms in ((0, math.nan, []), (1, 0.3, []), (2, 0.2, ["Step 2: the held-out reward fell <b>"])):
        evaluations.add({**EvalResult(step, 0.5, 0.09, held_out).to_json(), "alarms": alarms})
    write_claim(out, "align", AlignRecipe(out=str(out)), {})
    return out


def test_curves_have_only_what_was_measured(run):
    record = read_run(run)
    charts = {chart.title: chart for chart in record.charts}
    assert list(charts)[:3] == ["Reward", "Normal-flow speed", "Held-out reward"]
    assert charts["Reward"].curves == (
        Curve("training", ((0, 0.4), (1, 0.6))),
        Curve("evaluation", ((0, 0.5), (1, 0.5), (2, 0.5))),
    )
    assert charts["Held-out reward"].curves == (Curve("evaluation", ((1, 0.3), (2, 0.2))),)  # NaN is no point
    assert charts["CaC score"].curves == (Curve("training", ((0, 0.2), (1, 0.3))),)
    assert charts["Without a score"].curves == (Curve("training", ((0, 0.0), (1, 0.2))),)
    assert charts["Normal-flow speed"].unit == "frame heights per second"
    assert len([title for title in charts if title == "Normal-flow speed"]) == 1
    assert dict(record.settings)["eval.every"] == "10" and record.alarms == ("Step 2: the held-out reward fell <b>",)


def test_a_curve_rises_to_the_top_and_a_single_point_lies_in_the_middle():
    chart = Chart("t", "u", (Curve("training", ((0, 1.0), (5, 3.0), (10, 2.0))),))
    assert [chart.position(*point) for point in chart.curves[0].points] == [(8.0, 122.0), (180.0, 8.0), (352.0, 65.0)]
    one = Chart("t", "u", (Curve("evaluation", ((7, 0.5),)),))
    assert one.position(7, 0.5) == (180.0, 65.0) and one.steps == (7, 7)


def test_a_folder_without_logs_tells_nothing(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0, "sco')  # torn by a kill
    record = read_run(tmp_path)
    assert (record.charts, record.alarms, record.settings, record.skipped) == ((), (), (), 0)


def test_a_run_without_an_evaluation_is_not_said_to_have_raised_no_alarm(run, tmp_path):
    said = {}
    for alarms in (None, []):
        folder = tmp_path / str(alarms)
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("eval.jsonl", "page.html"))
        if alarms is not None:
            JsonlLog(folder / "eval.jsonl").add({"step": 0, "total": 0.5, "alarms": alarms})
        assert main(["report", str(folder), "--out", str(folder / "page.html")]) == 0
        said[alarms is None] = '<p class="fine">' in (folder / "page.html").read_text()
    assert said == {True: False, False: True}


def test_the_page_has_curves_alarms_settings_and_then_clips_four_to_a_row(run):
    require_chromium()
    page_file = run / "page.html"
    assert main(["report", str(run), "--out", str(page_file)]) == 0
    with browser_page(width=1400, offline=True) as page:
        page.goto(page_file.as_uri())
        titles = page.locator("h2").all_text_contents()
        assert titles == ["Curves", "Alarms", "Settings", "Steps", "Clips", "step 1", "step 0"]
        assert "<b>" in page.text_content("h2:has-text('Alarms') + .warning")
        tops = (
            page.locator(".grid")
            .first.locator(".card")
            .evaluate_all("cards => cards.map(card => card.getBoundingClientRect().top)")
        )
        assert len(tops) == 4 and len(set(tops)) == 1
        circles = page.locator(".chart:has-text('Held-out') circle")
        assert circles.locator("title").all_text_contents() == ["evaluation, step 1: 0.3", "evaluation, step 2: 0.2"]
        assert page.locator("video").first.get_attribute("src").startswith("data:video/mp4")
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.complaints == []
