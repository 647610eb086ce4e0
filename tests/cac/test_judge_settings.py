"""What a judge's folder says of itself: how it has learnt to be asked, and the temperatures fitted for it."""

import json
import shutil
import subprocess
import sys

import pytest

from cac_align.cac import judge_settings as folder
from cac_align.cac.two_turn import TwoTurn
from cac_align.core.weights import shipped
from cac_align.rewards.cac import CaC


def test_a_folder_that_says_nothing_is_asked_as_in_the_paper(tmp_path):
    assert folder.settings_of(tmp_path) == TwoTurn() == folder.settings_of("http://127.0.0.1:1/v1")
    assert folder.temperature_of(tmp_path, ("as_is",)) == 1.0


HUB = """
import http.server, json, os, sys, tempfile, threading

said, asked = json.dumps({"two_turn": {"wording": "brief"}, "temperature": 9.0}).encode(), []

class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        asked.append((self.command, self.path))
        there = self.path == "/some/judge/resolve/v2/cac_align.json"
        self.send_response(200 if there else 404)
        for name, value in {"X-Repo-Commit": "c" * 40, "ETag": '"e"', "Content-Length": str(len(said) if there else 0)}.items():
            self.send_header(name, value)
        if not there:
            self.send_header("X-Error-Code", "RepoNotFound" if "nobody" in self.path else "EntryNotFound")
        self.end_headers()
        return there
    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(said)
    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": tempfile.mkdtemp(), "HF_HUB_DISABLE_XET": "1"}
os.environ["HF_HUB_OFFLINE"] = "0"
from cac_align.cac import judge_settings as folder

found = [folder.settings_of(*at).wording for at in (("some/judge", "v2"), ("some/judge", None), ("nobody/here", None))]
found += [folder.temperature_of("some/judge", ("as_is",), "v2"), folder.max_pixels_of("some/judge", "v2")]
first = len(asked)
server.shutdown(), server.server_close()
found += [folder.temperature_of("some/judge", ("as_is",), "v2"), folder.read("no id"), folder.read("http://127.0.0.1:1/v1")]
print(json.dumps([found, len(asked) - first]))
"""


def test_a_hub_repository_says_it_too_and_is_asked_once(tmp_path):
    """The real hub client against an HTTP server that answers as the hub does."""
    run = subprocess.run(
        [sys.executable, "-c", HUB], capture_output=True, text=True, timeout=240, cwd=tmp_path, check=True
    )
    paper = TwoTurn().wording
    assert json.loads(run.stdout) == [["brief", paper, paper, 9.0, None, 9.0, {}, {}], 0]


def test_a_repository_that_cannot_be_asked_is_said(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert folder.read("away/judge") == {}
    assert "away/judge: no cac_align.json could be fetched, so it is asked as in the paper (" in capsys.readouterr().err


def test_settings_and_temperatures_are_read_back(tmp_path):
    asked = TwoTurn(wording="brief", max_new_tokens=640, margin_s=0.25)
    folder.write_settings(tmp_path, asked)
    assert folder.read(tmp_path) == {"two_turn": {"wording": "brief", "max_new_tokens": 640, "margin_s": 0.25}}
    folder.write_temperature(tmp_path, 7.0)
    folder.write_temperature(tmp_path, 5.0, ("as_is", "reversed"))
    assert folder.settings_of(tmp_path) == asked
    found = [folder.temperature_of(tmp_path, views) for views in (("as_is",), ("as_is", "reversed"), ("mirrored",))]
    assert found == [7.0, 5.0, 7.0]
    folder.write_threshold(tmp_path, 8.5, ("as_is", "reversed"))
    folder.write_threshold(tmp_path, 2.0, ("as_is", "later"))
    found = [folder.threshold_of(tmp_path, views) for views in (("as_is", "reversed"), ("as_is", "later"), ("as_is",))]
    assert found == [8.5, 2.0, 0.0]
    folder.write_temperature(tmp_path, 6.0)
    folder.write_temperature(tmp_path, 4.0, ("reversed+later", "as_is"))
    folder.write_threshold(tmp_path, 3.0, ("later", "as_is"))  # the mean knows no order, nor do a view's steps
    said = folder.read(tmp_path)
    assert said["thresholds"] == {"as_is, reversed": 8.5, "later, as_is": 3.0} and said["temperature"] == 6.0
    assert folder.temperature_of(tmp_path, ("as_is", "later+reversed")) == 4.0
    assert [folder.threshold_of(tmp_path, views) for views in (("reversed", "as_is"), ("as_is", "later"))] == [8.5, 3.0]
    folder.write_settings(tmp_path, asked)  # weights that learnt anew: what was fitted belonged to the former ones
    assert folder.read(tmp_path).keys() == {"two_turn"}
    folder.write_temperature(tmp_path, 6.0)
    folder.write_settings(tmp_path, TwoTurn())
    assert folder.read(tmp_path) == {"two_turn": {}} and folder.max_pixels_of(tmp_path) is None
    folder.write_settings(tmp_path, TwoTurn(), 50_176)
    folder.write_temperature(tmp_path, 6.0)
    assert folder.read(tmp_path) == {"two_turn": {}, "max_pixels": 50_176, "temperature": 6.0}


def test_a_judge_sees_the_resolution_that_it_has_learnt_with(tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(shipped("cac"), judge)
    folder.write_settings(judge, folder.settings_of(judge), 17 * 32 * 32)

    assert CaC.load(str(judge), device="cpu").vlm.provenance["max_pixels"] == "17408"
    assert CaC.load(str(judge), device="cpu", max_pixels=69_632).vlm.provenance["max_pixels"] == "69632"
    assert "max_pixels" not in CaC.miniature(device="cpu").vlm.provenance


@pytest.mark.parametrize(
    ("text", "what"),
    [("{", "is not JSON"), ("[1]", "holds a list"), ('{"two_turn": {"margin": 1}}', "expected some of scan_fps")],
)
def test_what_cannot_be_read_is_named(tmp_path, text, what):
    (tmp_path / folder.NAME).write_text(text)
    with pytest.raises(ValueError, match=what):
        folder.settings_of(tmp_path)
