"""The alignment loop on two gloo processes, whole and sharded: what one process gives."""

from dataclasses import replace

import pytest
import torch

from cac_align.align.recipe import EvalRecipe
from cac_align.align.trainer import align
from tests.support import sharded_cpu
from tests.support.tiny_flow import environment, lora, recipe, rows, write_recipe, write_wan
from tests.support.two_processes import run_two


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.mark.slow
def test_two_processes_have_the_same_curve_as_one(model, tmp_path):
    given = recipe(
        model,
        tmp_path / "two",
        micro_batch=2,
        steps=2,
        eval=EvalRecipe(every=2, prompts=3, source="tests.support.tiny_flow:prompts"),
    )
    done = run_two(["-m", "cac_align.cli", "align", write_recipe(given, tmp_path)], environment())
    assert done.returncode in (0, 1), done.stderr[-3000:]
    align(replace(given, out=str(tmp_path / "one")))
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one["videos"] == two["videos"] == 8 and one["prompts"] == two["prompts"]
        for name in ("score", "score_std", "normal_flow_speed", "grad_norm", "ratio"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    first, second = lora(tmp_path / "one"), lora(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=1e-2)
    assert len((tmp_path / "two" / "eval.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_sharded_over_two_processes_it_has_the_same_curve_as_one(model, tmp_path):
    """FSDP2 as recipes/align/accelerate/fsdp.yaml asks for it, on two gloo processes; stopped after a step, and resumed."""
    given = recipe(model, tmp_path / "two", micro_batch=2, steps=2, device=None)
    env = {**environment(), **sharded_cpu.FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": "WanTransformerBlock"}
    done = run_two([sharded_cpu.__file__, "cac_align.cli", "align", write_recipe(given, tmp_path)], env)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert "distributed type FSDP, 2 processes" in done.stdout
    align(replace(given, out=str(tmp_path / "one"), device="cpu"))
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("score", "normal_flow_speed", "grad_norm", "ratio"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name
    first, second = lora(tmp_path / "one"), lora(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=1e-2)
