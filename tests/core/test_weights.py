"""Shipped weights: present, whole and unchanged, or a message that says what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cac_align.core import weights
from tests.support.tracked import tracked


@pytest.fixture
def folder(tmp_path, monkeypatch):
    root = tmp_path / "weights"
    (root / "toy").mkdir(parents=True)
    (root / "toy" / "model.safetensors").write_bytes(b"abcdef")
    (root / "toy" / "config.json").write_text("{}")
    monkeypatch.setattr(weights, "weights_folder", lambda: root)
    weights.shipped.cache_clear()
    weights.write_manifest()
    yield root
    weights.shipped.cache_clear()


def test_the_manifest_holds_size_and_sha256(folder):
    row = weights.read_manifest()["toy"]["model.safetensors"]
    # sha256("abcdef"), from FIPS 180-4 implementations at large
    assert row == {"bytes": 6, "sha256": "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721"}
    assert weights.shipped("toy") == folder / "toy"


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda root: (root / "toy" / "model.safetensors").write_bytes(b"abc"), "truncated: expected 6 bytes, found 3"),
        (lambda root: (root / "toy" / "model.safetensors").write_bytes(b"abcdeX"), "was changed"),
        (lambda root: (root / "toy" / "model.safetensors").unlink(), "is missing"),
        (lambda root: shutil.rmtree(root / "toy"), "is missing"),
    ],
)
def test_damage_is_named_with_the_way_out(folder, damage, told):
    damage(folder)
    with pytest.raises(ValueError, match=told) as raised:
        weights.shipped("toy")
    assert "make weights" in str(raised.value)


def test_unknown_names_are_refused_with_the_known_ones(folder):
    with pytest.raises(ValueError, match="no shipped weights named 'other'; this package ships toy"):
        weights.shipped("other")


def test_what_really_ships_is_whole_and_small():
    manifest = json.loads((weights.weights_folder() / "manifest.json").read_text())
    assert set(manifest) == {"cac", "unified", "wan"}
    total = sum(int(row["bytes"]) for files in manifest.values() for row in files.values())
    assert total <= 20e6
    for name in manifest:
        weights.shipped.cache_clear()
        assert weights.shipped(name).is_dir()
    on_disk = set(tracked("cac_align/miniature/weights", "*.safetensors"))
    listed = {weights.weights_folder() / name / file for name, files in manifest.items() for file in files}
    assert on_disk <= listed


def test_a_judge_is_shipped_as_halves_of_its_numbers(folder, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    wide = torch.tensor([[1.0, 1 / 3, 1e-3]])
    save_file(
        {"weight": wide, "norm": wide[0].clone(), "count": torch.tensor([7])},
        made / "model.safetensors",
        metadata={"format": "pt"},
    )
    (made / "config.json").write_text('{"new": true}')
    assert weights.main(["toy", str(made)]) == 0
    stored = load_file(folder / "toy" / "model.safetensors")
    assert stored["weight"].dtype == torch.float16 and stored["count"].tolist() == [7]
    assert torch.equal(stored["norm"], wide[0]), "vectors are small and stay as they are"
    assert (stored["weight"].float() / wide - 1).abs().max() < 2**-11, "rounded to 11 bits"
    weights.shipped.cache_clear()
    assert json.loads((weights.shipped("toy") / "config.json").read_text()) == {"new": True}, (
        "the manifest knows what ships now"
    )
    assert weights.main(["toy"]) == 2
