"""The mean of several judges' weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from research.training.averaging import average, main


def folder(path, **tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(f'{{"of": "{path.name}"}}')
    return path


def test_the_mean_by_hand_and_the_rest_from_the_first(tmp_path):
    parts = [
        folder(tmp_path / name, w=torch.tensor([[a, 2.0]]), b=torch.tensor([a], dtype=torch.bfloat16))
        for name, a in (("x", 1.0), ("y", 2.0), ("z", 6.0))
    ]
    out = average(parts, tmp_path / "out")
    mean = load_file(out / "model.safetensors")
    assert mean["w"].tolist() == [[3.0, 2.0]] and mean["b"].tolist() == [3.0] and mean["b"].dtype == torch.bfloat16
    assert (out / "config.json").read_text() == '{"of": "x"}'


def test_other_models_and_a_single_one_are_refused(tmp_path):
    one = folder(tmp_path / "one", w=torch.zeros(2))
    wide, named = folder(tmp_path / "wide", w=torch.zeros(3)), folder(tmp_path / "named", v=torch.zeros(2))
    with pytest.raises(ValueError, match="at least two"):
        average([one], tmp_path / "out")
    for other, name in ((wide, "w"), (named, "v")):
        with pytest.raises(ValueError, match=f"{other.name} and .*one are not the same model: {name} differs"):
            average([one, other], tmp_path / "out")
    assert not (tmp_path / "out").exists() and main([]) == 2
