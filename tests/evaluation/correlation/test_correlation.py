"""A reward against published human scores: the measures, the readers, and the command."""

import json
import random

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.evaluation.correlation.agreement import rank_agreement
from cac_align.evaluation.correlation.human_scores import find_videos, read_jsonl, read_tag, read_videoscience
from cac_align.rewards.reward import Score


class Brightness:
    name, provenance = "brightness", {"reward": "brightness"}

    def __call__(self, prompts, videos):
        return [Score(float(video.frames([0]).pixels.mean()) / 255) for video in videos]


def test_the_measures_are_those_of_scipy_and_of_counting():
    rng = random.Random(1)
    for _ in range(20):
        people = [rng.randrange(5) for _ in range(30)]
        judged = [value + rng.choice([-2, 0, 0, 1]) for value in people]
        prompts = [f"p{n % 12}" for n in range(30)]
        found = rank_agreement("a", people, judged, prompts, resamples=40)
        assert found.spearman.value == pytest.approx(spearmanr(people, judged).statistic)
        assert found.kendall.value == pytest.approx(kendalltau(people, judged).statistic)
        for within, estimate in ((False, found.pairs), (True, found.pairs_within_prompt)):
            points = []
            for i in range(30):
                for j in range(i):
                    if people[i] != people[j] and not (within and prompts[i] != prompts[j]):
                        side = (people[i] - people[j]) * (judged[i] - judged[j])
                        points.append(1.0 if side > 0 else 0.5 if side == 0 else 0.0)
            assert estimate.value == pytest.approx(sum(points) / len(points))
        assert found.resampled == "prompts" and found.spearman.low <= found.spearman.value <= found.spearman.high


def test_missing_scores_are_left_out_and_what_is_undefined_is_none():
    found = rank_agreement("a", [1, 2, None, 4], [1.0, None, 3.0, 2.0], ["p"] * 4)
    assert (found.n, found.left_out, found.pairs.value, found.resampled) == (2, 2, 1.0, "videos")
    flat = rank_agreement("a", [1, 2, 3], [5.0, 5.0, 5.0], ["p", "q", "r"])
    assert flat.spearman.value is None and flat.kendall.value is None and flat.pairs.value == 0.5
    assert flat.pairs_within_prompt.value is None  # no prompt has two videos
    assert rank_agreement("a", [None], [1.0], ["p"]).spearman.value is None


def test_a_reward_without_relation_has_zero_in_its_interval():
    rng = np.random.default_rng(0)
    found = rank_agreement("a", rng.normal(size=100), rng.normal(size=100), [f"p{n}" for n in range(100)])
    assert found.kendall.low < 0 < found.kendall.high and found.pairs.low < 0.5 < found.pairs.high


def test_tag_bench_zeros_are_missing_and_actions_are_told_by_the_name(tmp_path):
    path = tmp_path / "scores.json"
    rows = {
        "Opensora_768_Tennisswing_04_37e.mp4": {"ac": -1.4, "tc": 0.0},
        "Wan2.2_TennisSwing_02_g03_c01.mp4": {"ac": 1.5, "tc": 1.2},
    }
    path.write_text(json.dumps(rows))
    found, notes = read_tag(path)
    assert [row.scores for row in found] == [{"ac": -1.4, "tc": None}, {"ac": 1.5, "tc": 1.2}]
    assert found[0].prompt == found[1].prompt and "tennisswing" in found[0].prompt and len(notes) == 2
    for wrong in (
        {"a.mp4": {"ac": 1, "tc": 1}},
        {"W_Run_01_a.mp4": {"ac": 1}},
        {"W_Run_01_a.mp4": {"ac": "1", "tc": 1}},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"scores\.json"):
            read_tag(path)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_videoscience_raters_are_averaged_and_nulls_left_out(tmp_path, nested):
    answers = [{"PCS": 1, "STC": None}, {"PCS": 4, "STC": 3}, {"PCS": None, "STC": 2}]
    content = (
        {"sora-2": {"v1": {f"rater{n}": answer for n, answer in enumerate(answers)}}}
        if nested
        else [{"vid": "v1", "model": "sora-2", **answer} for answer in answers]
    )
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    (row,) = read_videoscience(path, {"v1": "a prompt"}, ["sora-2", "veo3"])
    assert (row.video, row.prompt) == ("sora-2/v1.mp4", "a prompt")
    assert row.scores == {"PCS": 2.5, "PCG": None, "CDN": None, "IMB": None, "STC": 2.5}
    with pytest.raises(ValueError, match="expected one prompt's id and one generator"):
        read_videoscience(path, {"v1": "a prompt"}, ["veo3"])
    path.write_text(json.dumps({"sora-2": {"v1": {"PCS": 0}}}))
    with pytest.raises(ValueError, match="its scale is 1 to 4"):
        read_videoscience(path, {"v1": "a prompt"}, ["sora-2"])
    path.write_text("{}")
    with pytest.raises(ValueError, match="no object with one of PCS"):
        read_videoscience(path, {}, [])


def test_the_command_scores_the_videos_that_are_there(tmp_path, capsys):
    rows = []
    for n in range(6):
        (tmp_path / "videos" / "deep").mkdir(parents=True, exist_ok=True)
        write_mp4(tmp_path / "videos" / "deep" / f"v{n}.mp4", np.full((4, 32, 32, 3), 30 * n + 20, np.uint8), 8)
        rows.append({"video": f"v{n}.mp4", "prompt": f"p{n % 2}", "scores": {"good": [n, None, n + 1]}})
    rows.append({"video": "gone.mp4", "prompt": "p0", "scores": {"good": 9}})
    human = tmp_path / "human.jsonl"
    human.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "correlation", "jsonl", str(human), "--videos", str(tmp_path / "videos"), "--json"]
    assert main([*command, "--reward", f"{__name__}:Brightness"]) == 1  # one video is not there, and that is told
    told = json.loads(capsys.readouterr().out)
    (axis,) = told["axes"]
    assert (axis["n"], told["videos_not_there"], told["videos_without_score"]) == (6, 1, 0)
    assert axis["spearman"]["value"] == pytest.approx(1) and axis["pairs_within_prompt"]["value"] == 1.0
    with pytest.raises(ValueError, match="none of the 1 scored videos"):
        find_videos(read_jsonl(human)[-1:], tmp_path / "videos")
