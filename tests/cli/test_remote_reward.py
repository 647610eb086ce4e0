"""The URL of our service as a reward, for every verb that takes ``--reward``."""

import json

import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.rewards.build import load_reward
from cac_align.serving.client import RemoteReward
from tests.support.hosting import clip, scripted, serving


def test_a_url_is_a_reward_for_every_verb(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    for name, level in (("a", 240), ("b", 90)):
        write_mp4(tmp_path / "p" / f"{name}.mp4", clip(level, 81), fps=16)
    with serving(scripted()) as (url, _):
        assert isinstance(load_reward(url), RemoteReward)
        assert main(["score", str(tmp_path / "p"), "--prompt", "p", "--reward", url, "--json"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["score"] for row in rows] == [pytest.approx(0.825), pytest.approx(0.425)]
        (tmp_path / "p" / "prompt.txt").write_text("p")
        given = ["best-of-n", "--candidates", str(tmp_path), "--out", str(tmp_path / "out"), "--json"]
        assert main([*given, "--reward", url]) == 0
        assert json.loads(capsys.readouterr().out)["chosen"] == 0
        assert main(["score", str(tmp_path / "p"), "--prompt", "p", "--reward", url, "--set", "normalise=rank"]) == 2
    assert main(["score", str(tmp_path / "p"), "--prompt", "p", "--reward", url]) == 2  # the service is gone
    assert url in capsys.readouterr().err
