"""What a device cannot do is said and replaced; what makes no sense is refused."""

import pytest
import torch

from cac_align.vlm import loading
from cac_align.vlm.local import LocalVlm
from tests import tiny_qwen
from tests.tiny_qwen import ask, frames


def test_flash_attention_without_a_gpu_falls_back_to_sdpa_and_judges(tmp_path, caplog):
    net, processor = tiny_qwen.model(), tiny_qwen.processor()
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vlm = LocalVlm.load(tmp_path, device="cpu", attention="flash_attention_2")
    assert "flash_attention_2 cannot be used: it needs a CUDA device, this one is 'cpu'; going on with sdpa" in caplog.text
    (reply,) = vlm.answer([ask("look", frames(3))], max_new_tokens=4)
    (expected,) = LocalVlm(net, processor, name="x").answer([ask("look", frames(3))], max_new_tokens=4)
    assert reply.text == expected.text and vlm.model.config.vision_config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="attention must be one of sdpa, eager, .* received 'fast'"):
        loading.usable_attention("fast", "cpu")


def test_a_dtype_that_the_cpu_lacks_becomes_float32_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(loading, "_cpu_computes_in", lambda dtype: False)  # an older CPU than this one may be
    assert loading.usable_dtype("bfloat16", "cpu") == torch.float32
    assert "this CPU has no torch.bfloat16 arithmetic" in caplog.text and "computing in float32" in caplog.text
    monkeypatch.setattr(loading, "_cpu_computes_in", lambda dtype: True)
    assert loading.usable_dtype("bfloat16", "cpu") == torch.bfloat16
    assert loading.usable_dtype(None, "cpu") == torch.float32
    with pytest.raises(ValueError, match="must name a torch dtype such as bfloat16 or float32, received 'half-ish'"):
        loading.usable_dtype("half-ish", "cpu")
