"""What a device cannot do is said and replaced; what makes no sense is refused."""

import json

import pytest
import torch

from cac_align.vlm import loading
from cac_align.vlm.checkpoint_hash import hash_files
from cac_align.vlm.local import LocalVlm
from tests.support import tiny_qwen
from tests.support.tiny_qwen import ask, frames


def test_flash_attention_without_a_gpu_falls_back_to_sdpa_and_judges(tmp_path, caplog):
    net, processor = tiny_qwen.model(), tiny_qwen.processor()
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vlm = LocalVlm.load(tmp_path, device="cpu", attention="flash_attention_2")
    assert "flash_attention_2 cannot be used: it needs a CUDA device, this one is 'cpu'; using sdpa" in caplog.text
    (reply,) = vlm.answer([ask("look", frames(3))], max_new_tokens=4)
    (expected,) = LocalVlm(net, processor, name="x").answer([ask("look", frames(3))], max_new_tokens=4)
    assert reply.text == expected.text and vlm.model.config.vision_config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="attention must be one of sdpa, eager, .* received 'fast'"):
        loading.usable_attention("fast", "cpu")


def test_the_identity_of_a_folder_holds_all_that_decides_what_the_judge_sees(tmp_path):
    tiny_qwen.model().save_pretrained(tmp_path)
    tiny_qwen.processor().save_pretrained(tmp_path)
    before = LocalVlm.load(tmp_path, device="cpu").provenance["weights"]
    told = tmp_path / "processor_config.json"
    config = json.loads(told.read_text())
    for half in ("image_processor", "video_processor"):
        config[half]["size"]["longest_edge"] //= 2
        told.write_text(json.dumps(config))
        after = LocalVlm.load(tmp_path, device="cpu").provenance["weights"]
        assert after != before
        before = after


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    ],
)
def test_every_file_that_a_judge_reads_is_in_its_hash(tmp_path, name):
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    hashes = {hash_files(tmp_path)}
    for content in ("one", "two"):
        (tmp_path / name).write_text(content)
        hashes.add(hash_files(tmp_path))
    assert len(hashes) == 3


def test_how_a_judge_is_asked_is_no_part_of_its_hash(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    before = hash_files(tmp_path)
    for name in ("cac_align.json", "README.md", "trainer_state.json"):
        (tmp_path / name).write_text("{}")
    assert hash_files(tmp_path) == before


def test_a_dtype_that_the_cpu_lacks_becomes_float32_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(loading, "_cpu_computes_in", lambda dtype: False)  # an older CPU than this one may be
    assert loading.usable_dtype("bfloat16", "cpu") == torch.float32
    assert "this CPU has no torch.bfloat16 arithmetic" in caplog.text and "computing in float32" in caplog.text
    monkeypatch.setattr(loading, "_cpu_computes_in", lambda dtype: True)
    assert loading.usable_dtype("bfloat16", "cpu") == torch.bfloat16
    assert loading.usable_dtype(None, "cpu") == torch.float32
    with pytest.raises(ValueError, match="must name a torch dtype such as bfloat16 or float32, received 'half-ish'"):
        loading.usable_dtype("half-ish", "cpu")
