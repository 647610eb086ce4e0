"""The page of a training run: the boxed clip beside its advantage, from a real ledger; what is
missing is said; hostile text inert.
"""

import json
import re

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.evaluation.pages.evidence_page import write_evidence_page
from cac_align.rewards.cached import cached
from cac_align.rewards.ledger import Ledger, score_key
from cac_align.rewards.reward import Score
from tests.support.chromium import browser_page, check_phone, require_chromium

HOSTILE = "<img src=x onerror=alert(1)>"


class Judge:
    """Mean brightness; what is darker than middle grey is abnormal, with a box on frame 2; one
    prompt cannot be scored.
    """

    name, bounds, provenance = "judge", (0.0, 1.0), {"reward": HOSTILE}

    def __call__(self, prompts, videos):
        scores = []
        for prompt, video in zip(prompts, videos, strict=True):
            light = float(video.frames([0]).pixels.mean()) / 255
            defect = Anomaly("Human Distortion", Window(0.25, 0.5), HOSTILE, "hand", {2: (Box(100, 100, 400, 400),)})
            judged = Judgement("normal") if light > 0.5 else Judgement("abnormal", (defect,))
            failed = prompt == "hopeless"
            scores.append(Score.missing(f"broke {HOSTILE}") if failed else Score(light, {"p_normal": light}, judged))
        return scores


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps: a dark and a bright clip of one prompt; a clip in memory only and one without a
    score. Written as hosts write it.
    """
    folder = tmp_path_factory.mktemp("run")
    ledger = Ledger(folder / "ledger.jsonl")
    judge = cached(Judge(), ledger)
    rows = (
        (f"a cat {HOSTILE}", 60, {"step": 3, "group": "g0", "advantage": -1.25}),
        (f"a cat {HOSTILE}", 200, {"step": 3, "group": "g0", "advantage": 0.75}),
        ("in memory", 180, {"step": 4, "group": "g1", "advantage": 0.5}),
        ("hopeless", 120, {"step": 4, "group": "g1", "advantage": 0.0}),
    )
    for number, (prompt, level, facts) in enumerate(rows):
        pixels = np.full((8, 32, 32, 3), level, np.uint8)
        if prompt == "in memory":
            video = Video.open(pixels, fps=8, name="flow-factory video 0")
        else:
            write_mp4(folder / f"{number}.mp4", pixels, 8)
            video = Video.open(folder / f"{number}.mp4")
        judge([prompt], [video])
        ledger.annotate(score_key(prompt, video, Judge.provenance), host="flow-factory", **facts)
    return folder


@pytest.fixture(scope="module")
def page_file(run):
    assert main(["report", str(run), "--out", str(run / "page.html")]) == 0  # a folder with a ledger and no selection
    return run / "page.html"


def test_the_boxed_clip_stands_beside_its_advantage(page_file):
    text = page_file.read_text(encoding="utf-8")
    step4, step3 = text.split("<h2>step 3</h2>")[0], text.split("<h2>step 3</h2>")[1]  # the latest step stands first
    assert step4.index("<h2>step 4</h2>") > 0
    dark, bright = step3.split('<section class="card" data-players>')[1:3]  # lowest advantage first
    assert (
        "advantage −1.250" in dark and 'class="box"' in dark and 'src="data:video/mp4' in dark and "0.25–0.50 s" in dark
    )
    assert "advantage +0.750" in bright and 'class="box"' not in bright and "Judged normal" in bright
    # the bar's half width is the largest advantage of the run, 1.25: 0.75 is 30 % to the right of the middle
    assert "left:0.00%;width:50.00%" in dark and "left:50.00%;width:30.00%" in bright
    assert "group g0" in dark and "host flow-factory" in dark


def test_what_is_missing_is_said_and_never_a_number(page_file):
    step4 = page_file.read_text(encoding="utf-8").split("<h2>step 3</h2>")[0]
    unscored, memory = step4.split('<section class="card" data-players>')[1:3]
    assert "No score: broke &lt;img" in unscored and "<em>–</em>" in unscored
    assert "Not drawn: flow-factory video 0: no such file" in memory and "advantage +0.500" in memory


def test_every_step_is_in_the_table(page_file):
    rows = re.findall(r"<tr><td>(step \d)</td>(.*?)</tr>", page_file.read_text(encoding="utf-8"))
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows}
    # (60 + 200) / 2 / 255, compression aside; one of two abnormal
    assert cells["step 3"][:2] == ["2", "0"] and float(cells["step 3"][2]) == pytest.approx(130 / 255, abs=0.01)
    assert cells["step 3"][3:] == ["0.500", "-1.250", "0.750"]
    assert cells["step 4"][:2] == ["2", "1"] and cells["step 4"][3:] == ["0.000", "0.000", "0.500"]


def test_fewer_cards_are_said_and_the_table_stays_whole(run, tmp_path, capsys):
    out = tmp_path / "sub" / "few.html"
    command = [
        "report",
        "--ledger",
        str(run / "ledger.jsonl"),
        "--out",
        str(out),
        "--clips-per-step",
        "1",
        "--max-steps",
        "1",
    ]
    assert main(command) == 0 and capsys.readouterr().out.strip() == str(out)
    text = out.read_text(encoding="utf-8")
    assert (
        text.count('<section class="card" data-players>') == 1 and "<h2>step 4</h2>" in text
    )  # the last step is always shown
    assert "3 more videos are counted in the table" in text and text.count("<tr><td>step") == 2


def test_a_ledger_without_host_facts_is_ranked_by_score(tmp_path):
    judge = cached(Judge(), Ledger(tmp_path / "ledger.jsonl"))
    judge(["p", "p"], [Video.open(np.full((8, 32, 32, 3), level, np.uint8), fps=8) for level in (200, 20)])
    assert main(["report", str(tmp_path / "ledger.jsonl"), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The host gave no advantage" in text and "no step given" in text and "advantage not given" in text
    assert text.index("0.0784") < text.index("0.7843")


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "pass the folders BEFORE and AFTER, one Best-of-N or run folder, or --ledger"),
        (["--ledger", "nowhere.jsonl"], "nowhere.jsonl: no such ledger"),
        (["folder", "--ledger", "nowhere.jsonl"], "--ledger reports one run by itself"),
        (["--ledger", "empty.jsonl"], "the ledger holds no score"),
        (["--ledger", "empty.jsonl", "--max-steps", "0"], "--max-steps of at least 1"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["report", *arguments, "--out", "page.html"]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_hostile_text_is_inert_and_the_page_opens_in_chromium(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert HOSTILE not in text and json.dumps(HOSTILE)[1:-1] not in text
    require_chromium()
    with browser_page(offline=True) as page:
        page.goto(page_file.as_uri())
        assert page.locator(".frame .box").count() == 1 and page.locator("section.card").count() == 4
        box = page.locator(".frame .box").bounding_box()
        frame = page.locator(".frame:has(.box) img").bounding_box()
        assert box["x"] - frame["x"] == pytest.approx(0.1 * frame["width"], abs=3)
        check_phone(page, page_file)


def test_the_page_names_the_domain_of_the_reward(tmp_path):
    class Toy(Judge):
        name, provenance = "toy", {"cac/domain": "toyland"}

        def __call__(self, prompts, videos):
            return [Score(0.5, {}, provenance=self.provenance) for _ in videos]

    judge = cached(Toy(), Ledger(tmp_path / "ledger.jsonl"))
    judge(["p"], [Video.open(np.full((8, 32, 32, 3), 9, np.uint8), fps=8)])
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "Domain: toyland" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no score"):
        write_evidence_page([], tmp_path / "page.html", root=tmp_path)
