"""A step shared by two workers leaves the mean of their gradients."""

import pytest
import torch

from research.training.train_judge import JudgeTraining
from research.training.workers import Workers


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
        JudgeTraining(batch=6, encoder_batch=4, workers=2)
