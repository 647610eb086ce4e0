"""A step shared by two workers leaves the mean of their gradients; a judge with finer patches sees what the coarse one saw."""

from dataclasses import replace

import pytest
import torch
from small_judge import SMALL

from cac_align.miniature.judge import build_model, write_folder
from cac_align.miniature.start_from import take_finer
from cac_align.miniature.train_judge import JudgeTraining
from cac_align.miniature.workers import Workers


def test_two_workers_leave_the_mean_of_their_gradients():
    layer, table = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(2, 1)
    batches = torch.randn(2, 5, 3)
    workers = Workers((layer, table, "a tokenizer"), 2)

    def tell(part, net, unused, words):
        assert words == "a tokenizer"
        return net(batches[part]).square().mean(), part / 2, 10 + part

    for _ in range(2):  # the second step must not see the first one's gradients
        loss, share, length = workers.backward(tell)
        # by hand: d/dw mean((x w)²) = 2/5 xᵀ x w for each part, and half of their sum
        weight = layer.weight.detach()[0]
        each = [2 / 5 * x.T @ x @ weight for x in batches]
        assert layer.weight.grad[0].numpy() == pytest.approx(((each[0] + each[1]) / 2).numpy(), rel=1e-5)
        assert table.weight.grad is None
        assert loss == pytest.approx(sum((x @ weight).square().mean().item() for x in batches) / 2, rel=1e-5)
        assert (share, length) == (0.25, 11)
        with torch.no_grad():
            layer.weight.add_(1.0)  # what the optimizer does reaches both


def test_a_batch_that_two_workers_cannot_share_is_refused():
    with pytest.raises(ValueError, match="batch must be a multiple of 2 × workers = 4, received 6"):
        JudgeTraining(batch=6, see_batch=4, workers=2)


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
        (a, b) for (n, a), (_, b) in zip(coarse.named_parameters(), fine.named_parameters(), strict=True) if "embed" not in n
    ]
    assert all(torch.equal(a, b) for a, b in other)


def test_a_judge_of_another_patch_is_no_start(tmp_path, tokenizer, processor):
    write_folder(tmp_path / "coarse", build_model(tokenizer, SMALL), processor)
    with pytest.raises(ValueError, match="has patches of 8 px, expected 16 px"):
        take_finer(build_model(tokenizer, SMALL), tmp_path / "coarse")
    with pytest.raises(ValueError, match="holds no judge"):
        take_finer(build_model(tokenizer, SMALL), tmp_path / "nothing")
