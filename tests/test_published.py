"""The full-size configurations have exactly the published numbers of parameters (built without memory, on the meta device)."""

import importlib.util
from pathlib import Path

import pytest
import torch

SPEC = importlib.util.spec_from_file_location("published", Path(__file__).parents[1] / "benchmarks" / "published.py")
published = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(published)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_qwen3_vl_8b_has_the_published_number_of_parameters():
    from transformers import Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(published.qwen3vl_8b())
    assert count(model) == published.PARAMETERS["Qwen3-VL-8B-Instruct"]
    # by hand: embeddings and head; per layer q, k, v, o, MLP, two norms and the two head norms; the last norm
    text = (
        2 * 151_936 * 4096
        + 36 * (4096 * (4096 + 1024 + 1024) + 4096 * 4096 + 3 * 4096 * 12_288 + 2 * 4096 + 2 * 128)
        + 4096
    )
    assert count(model.model.language_model) + count(model.lm_head) == text


def test_wan_1_3b_has_the_published_number_of_parameters():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(**published.wan_1_3b())
    assert count(model) == published.PARAMETERS["Wan2.1-T2V-1.3B transformer"]


def test_an_optimiser_step_at_wans_shape_runs(monkeypatch):
    """benchmarks/wan_step.py, one of the 30 blocks and a small video; at full size it needs a GPU, where it also measures memory."""
    monkeypatch.syspath_prepend(str(Path(SPEC.origin).parent))
    import wan_step

    seconds, peak = wan_step.optimiser_step(layers=1, frames=5, height=32, width=32, guidance=5.0)
    assert seconds > 0 and (peak is None) == (not torch.cuda.is_available())
