"""``/docs`` of the service: its request works when pasted into a shell, it names every route, and loads nothing."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from cac_align.core.encoding import write_mp4
from cac_align.serving.app import router
from cac_align.serving.docs_page import CURL_EXAMPLE
from cac_align.serving.service import ServiceSettings
from tests.support.hosting import Brightness, clip, serving


@pytest.mark.parametrize("token", [None, "secret"])
def test_the_pasted_request_gives_a_score(token, tmp_path, monkeypatch):
    if shutil.which("curl") is None:
        pytest.skip("the example is a curl command")
    write_mp4(tmp_path / "clip.mp4", clip(level=200), 8.0)
    monkeypatch.setenv("CAC_ALIGN_TOKEN", token or "")
    with serving(Brightness(), ServiceSettings(token=token)) as (url, _):
        page = httpx.get(f"{url}/docs")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        command = html.unescape(re.search(r"<pre>(.*?)</pre>", page.text, re.S).group(1))
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        (result,) = json.loads(done.stdout)["scores"]
        assert result["error"] is None and 0.6 < result["score"] < 0.9  # brightness of about 200 of 255
        for route in router.routes:
            assert f" {route.path}</code>" in page.text
        assert not re.search(r"(src|href)=\"(https?:|//)|@import|<script", page.text)


def test_the_page_about_hosts_has_the_same_request():
    page = Path(__file__).parents[2].joinpath("docs", "full_size.md").read_text(encoding="utf-8")
    shown = "\n".join(line.removeprefix("    ") for line in page.splitlines())
    assert CURL_EXAMPLE.format(url="http://127.0.0.1:8000") in shown
