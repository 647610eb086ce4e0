"""The LoRA: added, averaged, swapped and saved as diffusers loads it."""

import torch

from cac_align.align.lora import add_lora, copy_weights, ema_update, lora_parameters, save_lora, swapped, zero_lora
from cac_align.align.sampling.rollout import Flow, guided_velocity
from cac_align.generation.wan import Wan
from tests.support.tiny_flow import write_wan


def flow_of(wan):
    return Flow.of(wan, wan.pipeline.transformer, torch.device("cpu"))


def test_copies_of_the_lora(tmp_path):
    wan = Wan.load(write_wan(tmp_path), device="cpu")
    transformer = wan.pipeline.transformer
    flow = flow_of(wan)
    x = torch.randn(1, 4, 3, 4, 4)
    embeds = torch.randn(2, 6, 16)
    plain_v = guided_velocity(flow, x, 1, embeds)
    add_lora(transformer, rank=3, alpha=6, ffn=True, seed=0)
    parameters = lora_parameters(transformer)
    assert len(parameters) == 2 * (8 + 2), "q, k, v, o of self- and cross-attention, and the two feed-forward layers"
    assert {p for p in transformer.parameters() if p.requires_grad} == set(parameters.values())
    assert torch.equal(guided_velocity(flow, x, 1, embeds), plain_v), "a fresh LoRA does nothing"
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1)
    tuned = guided_velocity(flow, x, 1, embeds)
    assert not torch.allclose(tuned, plain_v)
    before = copy_weights(parameters)
    with swapped(parameters, zero_lora(parameters)):
        assert torch.equal(guided_velocity(flow, x, 1, embeds), plain_v), (
            "the reference of the KL is the model without LoRA"
        )
    assert all(torch.equal(before[name], parameters[name]) for name in before)
    average = {name: torch.zeros_like(value) for name, value in before.items()}
    ema_update(average, parameters, 0.75)
    torch.testing.assert_close(average, {name: 0.25 * value for name, value in before.items()})
    save_lora(tmp_path / "lora", before, transformer.peft_config["default"])
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "lora").iterdir()}
    assert modes == {"pytorch_lora_weights.safetensors": 0o644}  # safetensors leaves 0600
    fresh = Wan.load(tmp_path, device="cpu")
    fresh.pipeline.load_lora_weights(str(tmp_path / "lora"))
    torch.testing.assert_close(guided_velocity(flow_of(fresh), x, 1, embeds), tuned)
