"""A judge's settings file: how it is asked, its resolution, and the temperatures and thresholds fitted for it."""

import json
import shutil
import subprocess
import sys

import pytest

from cac_align.cac import judge_settings
from cac_align.cac.two_turn import TwoTurn
from cac_align.core.weights import shipped
from cac_align.rewards.cac import CaC


def test_a_folder_without_settings_file_is_asked_as_in_the_paper(tmp_path):
    assert judge_settings.read_two_turn(tmp_path) == TwoTurn() == judge_settings.read_two_turn("http://127.0.0.1:1/v1")
    assert judge_settings.read_temperature(tmp_path, ("as_is",)) == 1.0


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
from cac_align.cac import judge_settings

found = [judge_settings.read_two_turn(*at).wording for at in (("some/judge", "v2"), ("some/judge", None), ("nobody/here", None))]
found += [judge_settings.read_temperature("some/judge", ("as_is",), "v2"), judge_settings.read_max_pixels("some/judge", "v2")]
first = len(asked)
server.shutdown(), server.server_close()
found += [judge_settings.read_temperature("some/judge", ("as_is",), "v2"), judge_settings.read_settings_file("no id"), judge_settings.read_settings_file("http://127.0.0.1:1/v1")]
print(json.dumps([found, len(asked) - first]))
"""


def test_a_hub_repository_has_settings_too_and_they_are_fetched_once(tmp_path):
    """The real hub client against an HTTP server that answers as the hub does."""
    run = subprocess.run(
        [sys.executable, "-c", HUB], capture_output=True, text=True, timeout=240, cwd=tmp_path, check=True
    )
    paper = TwoTurn().wording
    assert json.loads(run.stdout) == [["brief", paper, paper, 9.0, None, 9.0, {}, {}], 0]


def test_an_unreachable_repository_is_reported(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert judge_settings.read_settings_file("away/judge") == {}
    assert "away/judge: no cac_align.json could be fetched, so it is asked as in the paper (" in capsys.readouterr().err


def test_settings_and_temperatures_are_read_back(tmp_path):
    asked = TwoTurn(wording="brief", max_new_tokens=640, margin_s=0.25)
    judge_settings.write_settings(tmp_path, asked)
    assert judge_settings.read_settings_file(tmp_path) == {
        "two_turn": {"wording": "brief", "max_new_tokens": 640, "margin_s": 0.25}
    }
    judge_settings.write_temperature(tmp_path, 7.0)
    judge_settings.write_temperature(tmp_path, 5.0, ("as_is", "reversed"))
    assert judge_settings.read_two_turn(tmp_path) == asked
    found = [
        judge_settings.read_temperature(tmp_path, tta) for tta in (("as_is",), ("as_is", "reversed"), ("mirrored",))
    ]
    assert found == [7.0, 5.0, 7.0]
    judge_settings.write_threshold(tmp_path, 8.5, ("as_is", "reversed"))
    judge_settings.write_threshold(tmp_path, 2.0, ("as_is", "later"))
    found = [
        judge_settings.read_threshold(tmp_path, tta) for tta in (("as_is", "reversed"), ("as_is", "later"), ("as_is",))
    ]
    assert found == [8.5, 2.0, 0.0]
    judge_settings.write_temperature(tmp_path, 6.0)
    judge_settings.write_temperature(tmp_path, 4.0, ("reversed+later", "as_is"))
    judge_settings.write_threshold(
        tmp_path, 3.0, ("later", "as_is")
    )  # neither the order of augmentations nor that of steps matters
    content = judge_settings.read_settings_file(tmp_path)
    assert content["tta_thresholds"] == {"as_is, reversed": 8.5, "later, as_is": 3.0} and content["temperature"] == 6.0
    assert judge_settings.read_temperature(tmp_path, ("as_is", "later+reversed")) == 4.0
    assert [judge_settings.read_threshold(tmp_path, tta) for tta in (("reversed", "as_is"), ("as_is", "later"))] == [
        8.5,
        3.0,
    ]
    judge_settings.write_settings(tmp_path, asked)  # new weights: what was fitted belonged to the former ones
    assert judge_settings.read_settings_file(tmp_path).keys() == {"two_turn"}
    judge_settings.write_temperature(tmp_path, 6.0)
    judge_settings.write_settings(tmp_path, TwoTurn())
    assert (
        judge_settings.read_settings_file(tmp_path) == {"two_turn": {}}
        and judge_settings.read_max_pixels(tmp_path) is None
    )
    judge_settings.write_settings(tmp_path, TwoTurn(), 50_176)
    judge_settings.write_temperature(tmp_path, 6.0)
    assert judge_settings.read_settings_file(tmp_path) == {"two_turn": {}, "max_pixels": 50_176, "temperature": 6.0}


def test_a_judge_gets_the_resolution_of_its_training(tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(shipped("cac"), judge)
    judge_settings.write_settings(judge, judge_settings.read_two_turn(judge), 17 * 32 * 32)

    assert CaC.load(str(judge), device="cpu").vlm.provenance["max_pixels"] == "17408"
    assert CaC.load(str(judge), device="cpu", max_pixels=69_632).vlm.provenance["max_pixels"] == "69632"
    assert "max_pixels" not in CaC.miniature(device="cpu").vlm.provenance


@pytest.mark.parametrize(
    ("text", "what"),
    [("{", "is not JSON"), ("[1]", "holds a list"), ('{"two_turn": {"margin": 1}}', "expected some of scan_fps")],
)
def test_an_unreadable_settings_file_is_refused(tmp_path, text, what):
    (tmp_path / judge_settings.FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=what):
        judge_settings.read_two_turn(tmp_path)
