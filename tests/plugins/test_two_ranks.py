"""Whether ranks train one model: real DDP and unwrapped models on two gloo processes, and our own loop."""

import pytest
import torch
from safetensors.torch import save_file

from cac_align.cli.main import main
from cac_align.plugins.doctor.two_ranks import check_own_loop, compare_ranks
from tests.support.tiny_flow import environment
from tests.support.two_processes import run_two

SCRIPT = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from cac_align.plugins.doctor.two_ranks import save_rank

torch.distributed.init_process_group("gloo")
for name in ("wrapped", "copies"):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model = DistributedDataParallel(model) if name == "wrapped" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.full((4, 3), float(1 + torch.distributed.get_rank()))).pow(2).sum().backward()  # each rank its own data
    save_rank(model, f"{sys.argv[1]}/{name}")
    optimizer.step()
    save_rank(model, f"{sys.argv[1]}/{name}-after")
"""


@pytest.mark.slow
def test_a_model_that_no_rank_shares_is_found(tmp_path, capsys):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_two([str(tmp_path / "script.py"), str(tmp_path)], environment())
    assert done.returncode == 0, done.stderr[-3000:]

    def files(name):
        return sorted((tmp_path / name).glob("rank-*.safetensors"))

    assert [check.ok for check in compare_ranks(files("wrapped"))] == [True]
    assert [check.ok for check in compare_ranks(files("wrapped-after"))] == [True]
    (check,) = compare_ranks(files("copies"))  # equal weights before the first step, other gradients
    assert check.ok is False and "differ in 2 of 4 tensors, most in gradient" in check.text and "DDP" in check.fix
    assert main(["doctor", "--ranks", *map(str, files("copies-after"))]) == 1
    assert "WRONG  ranks: rank-0.safetensors and rank-1.safetensors differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    "one, other, words",
    [
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "hold other tensors: a"),
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}, "differ in 1 of 1 tensors"),
        ({"a": torch.ones(2)}, {"a": torch.tensor([1.0, torch.nan])}, "differ in 1 of 1 tensors"),
        ({"a": torch.ones(2), "b": torch.zeros(2)}, {"a": torch.ones(2), "b": torch.ones(2)}, "most in b"),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2)}, "nothing was trained"),
    ],
)
def test_what_is_not_the_same(tmp_path, one, other, words):
    save_file(one, tmp_path / "one.safetensors")
    save_file(other, tmp_path / "other.safetensors")
    (check,) = compare_ranks([tmp_path / "one.safetensors", tmp_path / "other.safetensors"])
    assert check.ok is False and words in check.text


def test_half_precision_of_two_ranks(tmp_path):
    for name, value in (("one", 1.0), ("other", 1.0), ("third", 1.01)):
        save_file({"a": torch.full((9,), value, dtype=torch.bfloat16)}, tmp_path / f"{name}.safetensors")
    checks = compare_ranks([tmp_path / f"{name}.safetensors" for name in ("one", "other", "third")])
    assert [check.ok for check in checks] == [True, False]


def test_files_that_are_no_ranks(tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="at least two ranks, received 1"):
        list(compare_ranks([tmp_path / "text.safetensors"]))
    with pytest.raises(ValueError, match="not safetensors"):
        list(compare_ranks([tmp_path / "text.safetensors", tmp_path / "none.safetensors"]))


@pytest.mark.slow
def test_our_own_loop_trains_one_model():
    checks = list(check_own_loop())
    assert [(check.name, check.ok) for check in checks] == [("gradient", True), ("ranks", True)]
