"""The report: one file, opened offline in Chromium without a complaint, hostile text inert,
everything left out named.
"""

import hashlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from cac_align.cli.main import build_parser
from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.data.records import Record, write_records
from cac_align.evaluation.human.app import create_rating_app, default_database
from cac_align.evaluation.report import report as module
from cac_align.evaluation.report.report import write_report, write_selection_report
from cac_align.generation.best_of_n import best_of_n
from cac_align.rewards.combine import combine
from cac_align.rewards.reward import Score
from tests.support.chromium import browser_page, check_phone, require_chromium

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"


class Dark:
    """A judge of darkness: what is darker than middle grey has an anomaly in its first second,
    boxed, with a hostile reason.
    """

    bounds = (0.0, 1.0)

    def __init__(self, name):
        self.name = name
        self.provenance = {"reward": name, "note": HOSTILE}

    def __call__(self, prompts, videos):
        scores = []
        for video in videos:
            light = float(video.frames([0]).pixels.mean()) / 255
            boxes = {2: (Box(100, 100, 600, 600),)}
            defect = Anomaly("Human Distortion", Window(0.0, 0.5), HOSTILE, HOSTILE, boxes)
            judgement = Judgement("normal") if light > 0.5 else Judgement("abnormal", (defect,))
            scores.append(Score(light, evidence=judgement if self.name == "cac" else None))
        return scores


REWARD = combine({"cac": Dark("cac"), "unified": Dark("unified")})


def video(level, count=8, side=32):
    pixels = np.full((count, side, side, 3), level, np.uint8)
    pixels[::2, : side // 4] = 255 - level  # something moves
    return pixels


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(page, comparison) of four pairs: two get better, one worse, one stays; one video more is
    broken, one alone.
    """
    root = tmp_path_factory.mktemp("run")
    for group, levels in (("before", (60, 70, 200, 90)), ("after", (180, 220, 40, 90))):
        folder = root / group
        folder.mkdir()
        for number, level in enumerate(levels):
            write_mp4(folder / f"{number}.mp4", video(level), 8.0)
        rows = [{"video": f"{n}.mp4", "prompt": f"{HOSTILE} {n}", "seed": n} for n in range(4)]
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "before" / "<b>broken.mp4").write_bytes(b"no video")
    write_mp4(root / "after" / "alone.mp4", video(120), 8.0)
    ratings = [
        Record(f"{group}{n}", f"{group}/{n}.mp4", "p", 8.0, 8, 32, 32, "normal", annotator="ann", review="draft")
        for group in ("before", "after")
        for n in range(4)
    ]
    write_records(root / "ratings.jsonl", ratings)
    page = root / "out" / "report.html"
    return page, write_report(root / "before", root / "after", page, reward=REWARD)


def test_the_numbers(made):
    _, comparison = made
    rate = comparison.measure("cac_rate")
    assert (rate.before.value, rate.after.value, rate.difference.n) == (0.75, 0.5, 4)
    assert comparison.measure("experts").difference.value == 0.0
    assert any("experts did not agree" in sentence for sentence in comparison.warnings)
    assert 0.1 < comparison.measure("luminance_change").before.value < 0.3
    assert json.loads(json.dumps(comparison.to_json()))["pairs"] == 4


def test_what_is_left_out_is_named_on_the_page(made):
    page, comparison = made
    text = page.read_text(encoding="utf-8")
    assert {fault.kind for fault in comparison.faults} == {"unreadable video", "unpaired video"}
    assert "before/&lt;b&gt;broken.mp4" in text and "after/alone.mp4" in text


def test_the_page_asks_for_nothing_and_lets_nothing_run(made):
    text = made[0].read_text(encoding="utf-8")
    for found in re.findall(r"""(?:src|href|data|action|poster)\s*=\s*["']([^"']*)""", text):
        assert found.startswith("data:"), found[:80]
    assert "url(" not in text and "@import" not in text and "<img src=x" not in text
    assert len(re.findall(r"<script", text)) == 1 and "default-src 'none'" in text


def test_it_opens_in_chromium_offline_without_complaints_and_plays_with_boxes(made):
    require_chromium()
    page_file, _ = made
    with browser_page(offline=True) as page:
        page.goto(page_file.as_uri())
        assert (
            HOSTILE in page.text_content(".pair .prompt")
            and page.locator(".prompt img, .finding img, h1 img").count() == 0
        )
        assert [page.locator(f"h2:has-text('{name}')").count() for name in ("Biggest wins", "Biggest losses")] == [1, 1]
        page.locator(".pair").first.scroll_into_view_if_needed()
        page.wait_for_function(
            "() => [...document.querySelectorAll('.pair:first-of-type video, .pair video')].slice(0, 2).every(v => "
            "v.currentTime > 0.2)"
        )
        page.locator(".pair").first.locator("button.play").click()  # pause; then go to 0.36 s: boxed from 0.25 s on
        page.locator(".pair").first.locator(".side.before .timeline").click(position={"x": 200, "y": 4})
        page.wait_for_selector(".pair >> nth=0 >> .side.before .screen .box")
        box = page.locator(".pair").first.locator(".side.before .screen .box").bounding_box()
        screen = page.locator(".pair").first.locator(".side.before .screen").bounding_box()
        assert (box["x"] - screen["x"]) / screen["width"] == pytest.approx(0.1, abs=0.01)
        assert box["width"] / screen["width"] == pytest.approx(0.5, abs=0.01)
        check_phone(page, page_file)


def test_a_video_that_does_not_fit_is_shown_as_frames_and_said(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    for group in ("before", "after"):
        (tmp_path / group).mkdir()
        write_mp4(tmp_path / group / "a.mp4", noise, 8.0)
    monkeypatch.setattr(module, "MAX_BYTES", 60_000)
    write_report(tmp_path / "before", tmp_path / "after", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "2 videos are too large for this page and shown as frames only" in text and "data:video" not in text
    assert "no prompt" in text and text.count("data:image/jpeg") == 12


def test_a_selection_is_reported_against_a_random_candidate(tmp_path):
    def generate(prompt, seed):
        return Video.open(video(40 + 50 * seed), fps=8.0)

    best_of_n(["a cat", "a dog"], generate, REWARD, n=4, out=tmp_path)
    comparison = write_selection_report(tmp_path, tmp_path / "against_chance.html", seed=1)
    assert (comparison.before, comparison.after) == ("random candidate", "chosen")
    assert [row.after.clip.seed for row in comparison.pairs] == [3, 3]
    assert comparison.measure("reward").after.value == pytest.approx(comparison.pairs[0].after.values["reward"])
    assert comparison.shares.keys() == {"cac", "unified"} and not comparison.shares_of_change


def test_many_pairs_are_all_counted_and_both_ends_are_shown(tmp_path):
    for group, gain in (("before", 0), ("after", 10)):
        (tmp_path / group).mkdir()
        for number in range(6):
            write_mp4(tmp_path / group / f"{number}.mp4", video(90 + gain * number), 8.0)
        rows = [{"video": f"{n}.mp4", "prompt": f"prompt-{n}."} for n in range(6)]
        (tmp_path / group / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = write_report(tmp_path / "before", tmp_path / "after", tmp_path / "r.html", reward=REWARD, max_pairs=3)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert comparison.measure("reward").difference.n == 6 and "3 more pairs are counted" in text
    assert [f"prompt-{n}." in text for n in range(6)] == [True, False, False, False, True, True]


def test_wrong_input_is_an_error_with_the_way_out(tmp_path):
    (tmp_path / "a").mkdir()
    write_mp4(tmp_path / "a" / "x.mp4", video(50), 8.0)
    with pytest.raises(ValueError, match="the same folder.*give two folders, or one of Best-of-N by itself"):
        write_report(tmp_path / "a", tmp_path / "a", tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"neither selection\.jsonl \(Best-of-N\) nor ledger\.jsonl \(a run\) in it"):
        write_selection_report(tmp_path / "a", tmp_path / "r.html")


# ---- the documented way ---------------------------------------------------------------------------------------------


def documented():
    """The commands of docs/full_size.md, section 4, as the command line reads them."""
    text = (Path(__file__).parents[3] / "docs" / "full_size.md").read_text(encoding="utf-8")
    section = text.split("## 4. Before and after")[1].split("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    cac-align ")]
    return [build_parser().parse_args(shlex.split(line)[1:]) for line in lines]


def rate_everything(client):
    """One rater's whole session over the page's own interface: what is dark has an anomaly."""
    lights = {m.token: m.clip.video.frames([1]).pixels.mean() for task in client.app.state.tasks for m in task.members}
    prompts = []
    while (shown := client.get("/api/task", params={"rater": "ada"}).json())["task"]:
        prompts.append(shown["prompt"])
        last_known = 0
        for clip in (one["token"] for one in shown["clips"]):
            defect = [("start", {"frame": 0}), ("end", {"frame": 2}), ("type", {"type": "Object Distortion"})]
            defect += [("box", {"frame": 1, "box": [100, 100, 300, 300]}), ("reason", {"text": "too dark"})]
            for kind, detail in [("normal", {})] if lights[clip] > 127 else defect:
                detail = {"anomaly": 0, **detail} if detail else {}
                last_known = act(client, shown, clip, kind, detail, last_known)
        act(client, shown, clip, "done", {}, last_known)
    return prompts


def act(client, shown, clip, kind, detail, last_known):
    body = {
        "rater": "ada",
        "task": shown["task"],
        "clip": clip,
        "kind": kind,
        "detail": detail,
        "last_known": last_known,
    }
    answer = client.post("/api/action", json={**body, "client": f"{shown['task']}-{clip}-{kind}-{last_known}"})
    assert answer.status_code == 200, answer.text
    return answer.json()["state"]["last"]


def test_the_documented_commands_end_in_a_report_with_vbench_and_the_experts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verbs, comparison = [], None
    for options in documented():
        verbs.append(options.verb)
        if options.verb == "best-of-n":
            low = 60 if options.out.name == "before" else 150
            generate = lambda prompt, seed, low=low: Video.open(video(low + 10 * len(prompt)), fps=8.0)  # noqa: E731
            best_of_n(["a cat", "a horse"], generate, REWARD, n=options.n, out=options.out)
        elif options.verb == "evaluate":  # what vbench_runner.py writes, where the command writes it
            for path in sorted(options.folder.glob("*.mp4")):
                row = {"path": str(path.absolute()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                row |= {
                    "dimension": "imaging_quality",
                    "raw": 64.0,
                    "error": None,
                    "version": "0.1.5",
                    "imaging_mode": "longer",
                }
                with open(options.folder / "vbench.jsonl", "a") as lines:
                    lines.write(json.dumps(row) + "\n")
        elif options.verb == "annotate":
            app = create_rating_app(options.folders, database=options.database or default_database(options.folders))
            with TestClient(app, base_url="http://127.0.0.1") as client:
                assert sorted(rate_everything(client)) == ["a cat", "a horse"]
        elif options.verb == "report":
            comparison = write_report(options.before, options.after, options.out, ratings=options.ratings)
    assert verbs == ["best-of-n", "best-of-n", "vbench-env", "evaluate", "evaluate", "annotate", "report"]
    assert {measure.key for measure in comparison.measures} >= {
        "experts",
        "cac_rate",
        "vbench/imaging_quality",
        "reward",
    }
    assert (comparison.measure("experts").before.value, comparison.measure("experts").after.value) == (0.5, 0.0)
    ratings = [one for row in comparison.pairs for side in (row.before, row.after) for one in side.ratings]
    assert sorted(rating.prompt for rating in ratings) == ["a cat", "a cat", "a horse", "a horse"]
    assert comparison.faults == () and not any("no expert" in sentence for sentence in comparison.warnings)
    # From the folders of the videos themselves it is the same.
    again = write_report("out/before/videos", "out/after/videos", "again.html")
    assert again.faults == () and [m.to_json() for m in again.measures] == [m.to_json() for m in comparison.measures]
