"""Which device a model runs on."""

import pytest
import torch

from cac_align.runs.device import pick_device


def test_a_device_is_what_was_asked_for():
    assert pick_device("cpu") == torch.device("cpu") == pick_device(torch.device("cpu"))
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_that_is_not_here_is_named_and_never_replaced():
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(ValueError, match=rf"device=cuda:{count}: torch .* sees {count} GPUs; leave device out"):
        pick_device(f"cuda:{count}")


def test_a_name_that_is_no_device():
    with pytest.raises(ValueError, match="device must be cpu, cuda or cuda:N, received 'gpu'"):
        pick_device("gpu")
