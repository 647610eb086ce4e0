"""A deferred model: what a ledger holds needs no model, and a model that has changed files nothing under its former name."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.vlm.deferred import DeferredVlm, deferred_vlm
from cac_align.vlm.protocol import Message
from cac_align.vlm.scripted import ScriptedVlm

QUESTION = (Message("user", "is it normal?"),)


def test_it_is_loaded_when_it_is_first_asked_and_once():
    loads = []

    def load():
        loads.append(1)
        return ScriptedVlm(lambda conversation: "normal")

    vlm = DeferredVlm(ScriptedVlm(["x"]).provenance, load)
    assert vlm.provenance["model"] == "scripted" and loads == []
    assert [vlm.answer([QUESTION], max_new_tokens=4)[0].text for _ in range(2)] == ["normal", "normal"] and loads == [1]


def test_another_model_than_the_remembered_one_is_refused_and_forgotten():
    forgotten = []
    vlm = DeferredVlm({"model": "before"}, lambda: ScriptedVlm(["normal"]), lambda: forgotten.append(1))
    with pytest.raises(ValueError, match="confidence, decoding, model differ"):
        vlm.answer([QUESTION], max_new_tokens=4)
    assert forgotten == [1]


def test_a_change_of_files_or_arguments_loads_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    loads = []

    def load():
        loads.append(1)
        return ScriptedVlm(["normal"])

    def deferred(**arguments):
        return isinstance(deferred_vlm(str(folder), load, arguments), DeferredVlm)

    assert [deferred(), deferred(), deferred(dtype="bfloat16"), deferred(dtype="bfloat16")] == [False, True] * 2
    (folder / "model.safetensors").write_bytes(b"two, longer")
    assert [deferred(), deferred()] == [False, True] and len(loads) == 3


def test_a_score_from_the_ledger_loads_no_torch_and_equals_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_mp4(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (17, 64, 64, 3), np.uint8), 16)
    recipe = "components: {cac: {kind: cac, mode: readout, min_mass: 0.0}}\nallow_out_of_domain: true\n"
    (tmp_path / "reward.yaml").write_text(recipe)
    names = ["score", str(tmp_path / "a.mp4"), "--prompt", "noise", "--reward", str(tmp_path / "reward.yaml")]
    command = [*names, "--ledger", str(tmp_path / "ledger.jsonl"), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    code = f"import sys\nfrom cac_align.cli.main import main\nstatus = main({command!r})\nassert status == 0\n"
    code += "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    row, loaded = done.stdout.splitlines()
    assert json.loads(row) == first and first["score"] is not None and loaded == "[]"
