"""UniRL itself: its remote client against our service, its schema over both directions, our backend inside its types."""

import json

import pytest

from tests.support.hosting import scripted, serving
from tests.upstream.hosts import PYTHON, REPOSITORY, checkout, need, run

pytestmark = [pytest.mark.upstream, pytest.mark.timeout(1800)]


def test_its_client_talks_to_our_service_and_its_types_to_our_backend(tmp_path):
    home = checkout("UNIRL_DIR", "Tencent-Hunyuan/UniRL", "unirl/reward/remote.py")
    need("ray", "tensordict", "hydra", "requests", "imageio")
    ledger = tmp_path / "ledger.jsonl"
    with serving(scripted()) as (url, _):
        program = REPOSITORY / "tests" / "upstream" / "unirl_client.py"
        output = run([PYTHON, str(program), url, str(home / "unirl-reward-service"), str(ledger)], tmp_path, [home])
    result = json.loads(
        next(line for line in output.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT ")
    )
    assert result["available"] is True and "not served" in result["unknown"]
    # bright: cac 0.9, unified 0.75; dark: cac 0.1: its "weighted_sum" is the mean
    assert result["rewards"] == pytest.approx([0.825, 0.425]) and result["successes"] == [True, True]
    assert result["components"]["cac"] == pytest.approx([0.9, 0.1]) and result["components"][
        "unified"
    ] == pytest.approx([0.75, 0.75])
    assert result["local"] == pytest.approx([0.825, 0.425]) and "normalised/cac" in result["local_components"]
    nan, successes, reason = result["bad"]
    assert nan and successes == [True, False] and "must lie in [0, 1]" in reason
    kinds = [json.loads(line)["kind"] for line in ledger.read_text().splitlines()]
    assert kinds.count("combined") >= 2
