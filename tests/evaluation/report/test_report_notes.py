"""What a report says of its reward and of small gains: the domain, the three measures' names, ties."""

import html

import numpy as np
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.evaluation.report.report import write_report
from cac_align.rewards.combine import combine
from cac_align.rewards.normal_flow_speed import NormalFlowSpeed
from cac_align.rewards.reward import Score


class Toy:
    """Scores by brightness, in steps far smaller than a tie; states its domain."""

    name, bounds, provenance = "cac", (0.0, 1.0), {"domain": "toyland"}

    def __call__(self, prompts, videos):
        return [
            Score(0.5 + 1e-6 * float(video.frames([0]).pixels.mean()), {}, None, None, self.provenance)
            for video in videos
        ]


@pytest.fixture
def folders(tmp_path):
    for name, level in (("before", 40), ("after", 90)):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.full((8, 32, 32, 3), level + number, np.uint8)
            for index in range(8):
                pixels[index, 4:12, index * 2 : index * 2 + 8] = 250
            write_mp4(tmp_path / name / f"{number}.mp4", pixels, 8.0)
        rows = "".join(f'{{"video": "{number}.mp4", "prompt": "p{number}"}}\n' for number in range(2))
        (tmp_path / name / "prompts.jsonl").write_text(rows)
    return tmp_path / "before", tmp_path / "after"


def test_the_domain_is_named_and_a_tiny_gain_is_no_win(folders, tmp_path):
    write_report(*folders, tmp_path / "page.html", reward=Toy())
    text = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Domain: toyland" in text
    assert "Biggest wins" not in text and "Biggest losses" not in text
    assert text.count('<span class="gain ">tie</span>') == 2


def test_speed_and_luminance_change_have_names_and_units_of_their_own(folders, tmp_path):
    reward = combine({"cac": Toy(), "normal_flow_speed": NormalFlowSpeed()})
    made = write_report(*folders, tmp_path / "page.html", reward=reward)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    units = {measure["key"]: measure["unit"] for measure in made.to_json()["measures"]}
    assert units["luminance_change"] == "share of the full range per 1/8 s"
    assert units["normal_flow_speed"] == "share of full_speed" and units["reward"] == "score"
    labels = [measure.label for measure in made.measures]
    assert len(set(labels)) == len(labels) and not any("motion" in label.lower() for label in labels)
    for key in ("luminance_change", "normal_flow_speed"):
        assert made.measure(key).label in text


def test_folders_without_any_score_make_a_page_that_says_so(folders, tmp_path):
    write_report(*folders, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No verdict was found" in text and "--reward" in text and text.count('class="card pair"') == 2
