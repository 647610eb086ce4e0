"""A judge that starts from another one: with finer patches it sees what the coarse one saw."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from cac_align.miniature.models.judge import build_model, write_folder
from research.training.start_from import take_all, take_finer
from tests.support.small_judge import SMALL


def test_finer_patches_start_with_what_the_coarse_ones_had_learnt(tmp_path, tokenizer, processor):
    coarse = build_model(tokenizer, SMALL, seed=3)
    write_folder(tmp_path / "coarse", coarse, processor, dtype=torch.float32)
    fine = build_model(tokenizer, replace(SMALL, patch_px=4), seed=4)
    take_finer(fine, tmp_path / "coarse")
    # A picture magnified twice is to the coarse kernel what the picture is to the finer one.
    picture = torch.rand(1, 3, 2, 4, 4)
    magnified = picture.repeat_interleave(2, 3).repeat_interleave(2, 4)
    with torch.no_grad():
        seen = [net.model.visual.patch_embed(x.flatten(1)) for net, x in ((coarse, magnified), (fine, picture))]
    assert seen[1].numpy() == pytest.approx(seen[0].numpy(), abs=1e-5)
    tables = [net.model.visual.pos_embed.weight.T.detach() for net in (coarse, fine)]
    grids = tables[0].reshape(-1, 8, 8), tables[1].reshape(-1, 16, 16)
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    assert torch.equal(grids[0][:, corners[0], corners[1]], grids[1][:, corners[0], corners[1]])
    other = [
        (a, b)
        for (n, a), (_, b) in zip(coarse.named_parameters(), fine.named_parameters(), strict=True)
        if "embed" not in n
    ]
    assert all(torch.equal(a, b) for a, b in other)


def test_a_judge_of_another_patch_is_no_start(tmp_path, tokenizer, processor):
    write_folder(tmp_path / "coarse", build_model(tokenizer, SMALL), processor)
    with pytest.raises(ValueError, match="has patches of 8 px, expected 16 px"):
        take_finer(build_model(tokenizer, SMALL), tmp_path / "coarse")
    with pytest.raises(ValueError, match="holds no judge"):
        take_finer(build_model(tokenizer, SMALL), tmp_path / "nothing")


def test_a_start_is_the_other_judge_as_its_own_class_loads_it(tmp_path, tokenizer, processor):
    write_folder(tmp_path / "judge", build_model(tokenizer, SMALL, seed=3), processor)
    model = build_model(tokenizer, SMALL, seed=4)
    take_all(model, tmp_path / "judge")
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "judge", dtype=torch.float32).state_dict()
    mine = model.state_dict()
    assert mine.keys() == loaded.keys() and all(torch.equal(mine[name], loaded[name]) for name in loaded)
    with pytest.raises(ValueError, match="start: .*judge has another size than this recipe's"):
        take_all(build_model(tokenizer, replace(SMALL, patch_px=4)), tmp_path / "judge")
