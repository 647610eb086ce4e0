"""The FastVideo judge against its contract: a group's mp4 files in, one {"composite"} each out."""

import pytest

from cac_align.core.encoding import write_mp4
from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import MissingScoreError
from cac_align.plugins.fastvideo import CaCJudge
from tests.support.hosting import clip


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")
    return CaCJudge()


@pytest.fixture
def mp4(tmp_path):
    def write(level):
        write_mp4(tmp_path / "x.mp4", clip(level), 16)
        return (tmp_path / "x.mp4").read_bytes()

    return write


def test_a_group_of_uploads_is_scored_in_order(judge, mp4):
    rows = judge.score_batch([mp4(240), mp4(90)], ["a", "a"], fps=16)
    assert rows == [{"composite": pytest.approx(0.825)}, {"composite": pytest.approx(0.425)}]


def test_a_broken_upload_is_neutral_in_its_group_and_an_error_alone(judge, mp4):
    rows = judge.score_batch([mp4(240), mp4(90), b"no video"], ["a"] * 3, fps=16)
    assert rows[2]["composite"] == pytest.approx(0.625)
    with pytest.raises(MissingScoreError, match="group"):
        judge.score_batch([b"no video", b"nor this"], ["a"] * 2, fps=16)


def test_another_frame_rate_than_the_trainers_is_refused(judge, mp4):
    with pytest.raises(ValueError, match="CAC_ALIGN_FPS=24"):
        judge.score_batch([mp4(240)], ["a"], fps=24)
