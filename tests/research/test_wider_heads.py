"""A judge with wider heads computes what it computed before."""

import json

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from cac_align.miniature.models.judge import (
    JudgeSize,
    build_judge_tokenizer,
    build_model,
    build_processor,
    write_folder,
)
from research.build.wider_heads import main, widen_heads


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A random judge with heads of 24 numbers, with random norms, stored in half precision like those that ship."""
    tokenizer = build_judge_tokenizer(["normal abnormal"], num_merges=20)
    size = JudgeSize(patch_px=4)
    model = build_model(tokenizer, size, seed=3)
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.data.uniform_(0.5, 2.0, generator=generator)
    folder = tmp_path_factory.mktemp("judges") / "narrow"
    write_folder(folder, model, build_processor(tokenizer, size))
    return folder


def logits(folder, ids):
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    side = 8  # patches: a frame pair of 32 × 32 px, two by two of which become one token
    pixels = torch.randn(side * side, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(1))
    video = torch.tensor([[1, side, side]])
    types = torch.where(ids == model.config.video_token_id, 2, 0)
    with torch.no_grad():
        return model(input_ids=ids, pixel_values_videos=pixels, video_grid_thw=video, mm_token_type_ids=types).logits


def test_text_and_video_give_the_same_logits(narrow, tmp_path):
    wide = widen_heads(narrow, tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    assert config["text_config"]["head_dim"] == 32
    video = config["video_token_id"]
    start, end = config["vision_start_token_id"], config["vision_end_token_id"]
    words = torch.randint(0, 200, (40,), generator=torch.Generator().manual_seed(2)).tolist()
    ids = torch.tensor([[*words[:20], start, *[video] * 16, end, *words[20:]]])
    before, after = logits(narrow, ids), logits(wide, ids)
    assert before.std() > 0.1, "a model that says something"
    assert (after - before).abs().max() < 1e-4 * before.abs().max()


def test_heads_do_not_become_smaller_or_odd(narrow, tmp_path):
    for size in (24, 16, 33):
        with pytest.raises(ValueError, match="24 numbers"):
            widen_heads(narrow, tmp_path / "never", size)
    assert not (tmp_path / "never").exists()


def test_the_command_writes_a_judge_that_loads(narrow, tmp_path, capsys):
    assert main([str(narrow), str(tmp_path / "wide"), "48"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "wide")
    model = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "wide")
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.shape == (4 * 48, 96)
    assert main([]) == 2
