"""A judge that starts from another one has its weights, and refuses one of another size."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from cac_align.miniature.models.judge import build_model, write_folder
from research.training.start_from import take_all
from tests.support.small_judge import SMALL


def test_a_start_is_the_other_judge_as_its_own_class_loads_it(tmp_path, tokenizer, processor):
    write_folder(tmp_path / "judge", build_model(tokenizer, SMALL, seed=3), processor)
    model = build_model(tokenizer, SMALL, seed=4)
    take_all(model, tmp_path / "judge")
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "judge", dtype=torch.float32).state_dict()
    mine = model.state_dict()
    assert mine.keys() == loaded.keys() and all(torch.equal(mine[name], loaded[name]) for name in loaded)
    with pytest.raises(ValueError, match="start: .*judge has another size than this recipe's"):
        take_all(build_model(tokenizer, replace(SMALL, patch_px=4)), tmp_path / "judge")
    with pytest.raises(ValueError, match="start: .* holds no judge"):
        take_all(model, tmp_path / "nothing")
