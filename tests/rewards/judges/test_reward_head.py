"""VideoAlign and HPSv3 on random small checkpoints in the published layouts, against a forward pass written anew."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file

from cac_align.core.video import Video
from cac_align.rewards.build import JudgeRecipe, RewardRecipe, load_reward
from cac_align.rewards.cached import cached
from cac_align.rewards.combine import bounds_of
from cac_align.rewards.judges import hpsv3, videoalign
from cac_align.rewards.judges.hpsv3 import HpsV3, mean_of_best
from cac_align.rewards.judges.reward_head import plain_weights, split_head
from cac_align.rewards.judges.upstream_prompt import UpstreamPrompt, text_digest
from cac_align.rewards.judges.videoalign import VideoAlign, read_videoalign_config, videoalign_indices
from cac_align.rewards.ledger import Ledger, score_key
from tests.support import tiny_qwen2
from tests.support.tiny_qwen import small_tokenizer

QUESTION = "Rate {text_prompt}. Visual <|VQ_reward|> motion <|MQ_reward|> text <|TA_reward|>."
INSTRUCTION, LAST = "Rate the image of {text_prompt}.\n", "Overall: <|Reward|>\nEND\n"
NORMS = {"VQ_mean": 0.02, "VQ_std": 0.5, "MQ_mean": -0.01, "MQ_std": 0.25, "TA_mean": 0.0, "TA_std": 2.0}


def clip(seed: int, frames: int = 13, size: int = 56) -> Video:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), np.uint8)
    return Video.open(pixels, fps=8.0, name=str(seed), layout="THWC")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with the configuration and the processor of a small Qwen2-VL."""
    folder = tmp_path_factory.mktemp("base")
    tiny_qwen2.processor(small_tokenizer()).save_pretrained(folder)
    tiny_qwen2.qwen2_vl(small_tokenizer()).config.save_pretrained(folder)
    return folder


def with_tokens(*tokens):
    """The small tokenizer with these special tokens, and a random Qwen2-VL whose table has a row for each of its."""
    tokenizer = tiny_qwen2.tokenizer_with()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    net = tiny_qwen2.qwen2_vl(tokenizer, seed=3)
    net.resize_token_embeddings(len(tokenizer))
    return tokenizer, net


def old_names(state):
    """The names of transformers 4.45."""
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor.contiguous().clone()
        for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def video_checkpoint(tmp_path_factory, base):
    """A VideoAlign as upstream saves it (PEFT inside, old names), and its model."""
    folder = tmp_path_factory.mktemp("videoalign")
    tokenizer, net = with_tokens("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
    torch.manual_seed(5)
    net.rm_head = torch.nn.Linear(tiny_qwen2.HIDDEN, 3, bias=False)
    targets = [name for name, part in net.named_modules() if isinstance(part, torch.nn.Linear) and "layers" in name]
    wrapped = get_peft_model(net, LoraConfig(target_modules=targets, r=4, lora_alpha=8)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    (folder / "checkpoint-7").mkdir()
    torch.save(old_names(wrapped.state_dict()), folder / "checkpoint-7" / "model.pth")
    config = {
        "data_config": {
            "fps": 2.0,
            "num_frames": None,
            "max_frame_pixels": 200704,
            "sample_type": "uniform",
            "eval_dim": ["VQ", "MQ", "TA"],
            "prompt_template_type": "detailed_special",
        },
        "model_config": {"model_name_or_path": str(base), "output_dim": 3, "use_special_tokens": True},
        "peft_lora_config": {"lora_r": 4, "lora_alpha": 8, "use_rslora": False},
        "inference_config": NORMS,
    }
    (folder / "model_config.json").write_text(json.dumps(config))
    return folder, tokenizer, net


@pytest.fixture
def prompts(monkeypatch, tmp_path):
    """A file with texts of our own in the place of upstream's, whose hashes are taken for upstream's."""
    monkeypatch.setattr(
        videoalign, "_PROMPT", UpstreamPrompt("q", "a/b", "f.py", text_digest(QUESTION), ("{text_prompt}",))
    )
    known = [UpstreamPrompt(text, "a/b", "f.py", text_digest(text), ()) for text in (INSTRUCTION, LAST)]
    monkeypatch.setattr(hpsv3, "_PROMPTS", tuple(known))
    path = tmp_path / "f.py"
    path.write_text(f"A = {QUESTION!r}\nB = {INSTRUCTION!r}\nC = {LAST!r}\n")
    return path


def hidden_states(net, tokenizer, text, *, images=None, videos=None):
    """The last hidden states as upstream computes them: the language model is given embeddings and no positions."""
    reader = tiny_qwen2.processor(tokenizer)
    kind = "image" if images else "video"
    messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}]
    written = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    options = {"do_resize": False}
    media = (
        {"images": images, **options}
        if images
        else {"videos": videos, "videos_kwargs": {"do_sample_frames": False, **options}}
    )
    inputs = reader(text=[written], return_tensors="pt", **media)
    ids = inputs["input_ids"]
    with torch.no_grad():
        table = net.model.language_model.embed_tokens(ids)
        pixels, grid = ("pixel_values", "image_grid_thw") if images else ("pixel_values_videos", "video_grid_thw")
        seen = net.model.visual(inputs[pixels], grid_thw=inputs[grid]).pooler_output
        pad = tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>")
        table = table.masked_scatter((ids == pad)[..., None].expand_as(table), seen)
        return ids[0], net.model.language_model(inputs_embeds=table).last_hidden_state[0]


def test_videoalign_is_upstreams_forward_pass(video_checkpoint, prompts):
    folder, tokenizer, net = video_checkpoint
    judge = VideoAlign(folder, prompt_file=prompts)
    video = clip(1, frames=40)
    (score,) = judge(["a ball"], [video])
    # 40 frames at 8 fps are 5 s: 10 frames at 2 fps. 56 × 56 becomes 336 × 336, because 128 · 28² pixels are the least.
    pixels = torch.from_numpy(video.frames(np.linspace(0, 39, 10).round().astype(int)).pixels).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(pixels.float(), (336, 336), mode="bicubic", antialias=True)
    pixels = pixels.round().clamp(0, 255)
    ids, hidden = hidden_states(net, tokenizer, QUESTION.replace("{text_prompt}", "a ball"), videos=[pixels])
    for number, axis in enumerate(("VQ", "MQ", "TA")):
        (place,) = (ids == tokenizer.convert_tokens_to_ids(f"<|{axis}_reward|>")).nonzero().flatten().tolist()
        raw = float(hidden[place] @ net.rm_head.weight[number])
        assert score.parts[f"raw/{axis}"] == pytest.approx(raw, abs=2e-4)
        normed = (raw - NORMS[f"{axis}_mean"]) / NORMS[f"{axis}_std"]
        assert score.parts[axis] == pytest.approx(normed, abs=1e-3)
    assert score.value == pytest.approx(sum(score.parts[axis] for axis in ("VQ", "MQ", "TA")))
    # What transformers computes with positions in three dimensions is another number.
    reader = tiny_qwen2.processor(tokenizer)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    written = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = reader(
        text=[written.replace("{text_prompt}", "a ball")],
        videos=[pixels],
        videos_kwargs={"do_resize": False, "do_sample_frames": False},
        return_tensors="pt",
    )
    video_pads = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|video_pad|>")) * 2
    with torch.no_grad():
        other = net.model(**{**inputs, "mm_token_type_ids": video_pads}).last_hidden_state[0, place]
    assert abs(float(other @ net.rm_head.weight[2]) - score.parts["raw/TA"]) > 1e-3


@pytest.fixture(scope="module")
def image_model():
    """A random HPSv3: a head of three layers, whose weights have the published names."""
    tokenizer, net = with_tokens("<|Reward|>")
    torch.manual_seed(6)
    linear, relu, hidden = torch.nn.Linear, torch.nn.ReLU(), tiny_qwen2.HIDDEN
    net.rm_head = torch.nn.Sequential(
        linear(hidden, 32), relu, torch.nn.Dropout(0.05), linear(32, 16), relu, linear(16, 2)
    ).eval()
    return tokenizer, net


@pytest.mark.parametrize("names", ["old", "present"])
def test_hpsv3_is_upstreams_forward_pass(image_model, base, prompts, tmp_path, names):
    tokenizer, net = image_model
    state = net.state_dict() if names == "present" else old_names(net.state_dict())
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "HPSv3.safetensors")
    video = clip(2, frames=3, size=70)
    judge = HpsV3(tmp_path, base=str(base), prompt_file=prompts, batch_size=2, top_ratio=0.5)
    (score,) = judge(["a {ball}"], [video])
    # 70 × 70 becomes 448 × 448: 256 · 28² pixels.
    images = [
        Image.fromarray(frame).resize((448, 448), Image.Resampling.BICUBIC) for frame in video.frames((0, 1, 2)).pixels
    ]
    text = INSTRUCTION.replace("{text_prompt}", "a {ball}") + LAST
    values = []
    for image in images:
        ids, hidden = hidden_states(net, tokenizer, text, images=[image])
        (place,) = (ids == tokenizer.convert_tokens_to_ids("<|Reward|>")).nonzero().flatten().tolist()
        with torch.no_grad():
            values.append(float(net.rm_head(hidden[place])[0]))
    assert score.parts["mean"] == pytest.approx(sum(values) / 3, abs=1e-4)
    assert score.value == pytest.approx(sum(sorted(values)[1:]) / 2, abs=1e-4)
    assert (score.parts["lowest"], score.parts["highest"]) == pytest.approx((min(values), max(values)), abs=1e-4)
    copy = pickle.loads(pickle.dumps(judge))
    assert copy.provenance == judge.provenance and copy(["a {ball}"], [video])[0].value == pytest.approx(score.value)
    # One frame of the three.
    (first,) = HpsV3(tmp_path, base=str(base), prompt_file=prompts, frame_stride=3)(["a {ball}"], [video])
    assert first.value == pytest.approx(values[0], abs=1e-4) and first.parts["frames"] == 1


def test_mean_of_best_worked_by_hand():
    assert mean_of_best([1.0, -3.0, 2.0, 0.0], 0.5) == 1.5
    assert mean_of_best([1.0, -3.0], 1.0) == -1.0
    assert mean_of_best([1.0, -3.0], 0.01) == 1.0
    assert mean_of_best([float(n) for n in range(10)], 0.3) == 8.0  # 0.3 · 10 is a little more than 3 in floats
    with pytest.raises(ValueError):
        mean_of_best([], 1.0)


def test_videoalign_frames_worked_by_hand(video_checkpoint):
    config = read_videoalign_config(video_checkpoint[0])
    # 81 frames at 16 fps, 2 per second: 10.1, so 10 at steps of 80 / 9.
    assert videoalign_indices(81, 16.0, config) == (0, 9, 18, 27, 36, 44, 53, 62, 71, 80)
    assert videoalign_indices(9, 16.0, config) == (0, 3, 5, 8)  # at least 4
    assert videoalign_indices(3, 16.0, config) == (0, 2)
    assert videoalign_indices(81, 16.0, replace(config, num_frames=5.0)) == (0, 27, 53, 80)  # 2.5 rounds to 2 pairs
    with pytest.raises(ValueError):
        videoalign_indices(1, 16.0, config)


@pytest.fixture
def changed(video_checkpoint, tmp_path):
    """The VideoAlign checkpoint with another model_config.json."""

    def copy(**sections):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(video_checkpoint[0], folder)
        path = folder / "model_config.json"
        row = json.loads(path.read_text())
        for section, keys in sections.items():
            row[section] = None if keys is None else row[section] | keys
        path.write_text(json.dumps(row))
        return folder

    return copy


def test_two_settings_share_no_key_in_a_ledger(video_checkpoint, changed, prompts, tmp_path):
    folder = video_checkpoint[0]
    judges = [
        VideoAlign(folder, prompt_file=prompts),
        VideoAlign(folder, prompt_file=prompts, axes=["MQ"]),
        VideoAlign(changed(data_config={"fps": 4.0}), prompt_file=prompts),
        VideoAlign(changed(data_config={"num_frames": 4}), prompt_file=prompts),
        VideoAlign(changed(data_config={"max_frame_pixels": 150_000}), prompt_file=prompts),
        VideoAlign(changed(inference_config={"TA_mean": 1e-9}), prompt_file=prompts),
        VideoAlign(changed(inference_config=None), prompt_file=prompts),
        VideoAlign(changed(peft_lora_config={"use_rslora": True}), prompt_file=prompts),
    ]
    assert len({score_key("a", clip(1), judge.provenance) for judge in judges}) == len(judges)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    values = [cached(judge, ledger)(["a"], [clip(1, frames=4)])[0].value for judge in (*judges[:2], judges[0])]
    assert values[0] == values[2] != values[1] and ledger.num_scores == 2


def test_a_sum_of_some_axes_may_be_negative(video_checkpoint, prompts):
    judge = VideoAlign(video_checkpoint[0], prompt_file=prompts, axes=["TA", "VQ"])
    scores = judge(["a", "a <|VQ_reward|>", "a <|im_end|>"], [clip(1, frames=4)] * 3)
    assert scores[0].value == pytest.approx(scores[0].parts["VQ"] + scores[0].parts["TA"])
    assert not scores[1].scored and not scores[2].scored and "<|im_end|>" in str(scores[2].error)
    assert bounds_of(judge) is None
    (short, fine) = judge(["a"] * 2, [clip(1, frames=1), clip(1, frames=4)])
    assert not short.scored and fine.value == pytest.approx(scores[0].value)


def test_a_head_that_gives_no_number_gives_no_score(video_checkpoint, changed, prompts):
    folder = changed()
    state = torch.load(folder / "checkpoint-7" / "model.pth", weights_only=True)
    state["base_model.model.rm_head.weight"][1] = math.nan
    torch.save(state, folder / "checkpoint-7" / "model.pth")
    (score,) = VideoAlign(folder, prompt_file=prompts)(["a"], [clip(1, frames=4)])
    assert not score.scored


def test_lora_is_added_by_hand():
    base, a, b = torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]])
    name = "base_model.model.model.layers.0.mlp.up_proj"
    state = {f"{name}.base_layer.weight": base, f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}
    assert plain_weights(state, 0.5)["language_model.layers.0.mlp.up_proj.weight"].tolist() == [[2.5, 3.0], [0.0, 1.0]]
    del state[f"{name}.lora_B.default.weight"]
    with pytest.raises(ValueError, match="LoRA"):
        plain_weights(state, 0.5)
    for names in ({}, {"rm_head.output_layer.weight": base}, {"rm_head.0.bias": base}):
        with pytest.raises(ValueError, match="head"):
            split_head(names)


def load(**keys):
    return load_reward(
        RewardRecipe(components={"judge": JudgeRecipe(**{k: str(v) if k in PATHS else v for k, v in keys.items()})})
    )


PATHS = ("model", "prompt_file", "base_model")


def test_recipes_name_what_is_missing(video_checkpoint, changed, base, prompts, tmp_path, image_model):
    folder = video_checkpoint[0]
    reward = load(kind="videoalign", model=folder, prompt_file=prompts, axes=["MQ"], device="cpu")
    (score,) = reward(["a"], [clip(1, frames=4)])
    assert score.value == score.parts["MQ"]
    bare = changed()
    (bare / "checkpoint-7" / "model.pth").unlink()
    elsewhere = changed(model_config={"model_name_or_path": "/somewhere/on/their/disk"})
    (tmp_path / "none").mkdir()
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (other / "config.json").write_text(json.dumps(config))
    given = {"kind": "videoalign", "prompt_file": prompts}
    image = {"kind": "hpsv3", "prompt_file": prompts, "base_model": base}
    cases = [
        (
            {"kind": "videoalign", "model": folder},
            "fetch prompt_template.py from github.com/KwaiVGI/VideoAlign|fetch f.py",
        ),
        ({"kind": "videoalign", "model": folder, "prompt_file": folder / "model_config.json"}, "sha256"),
        ({**given, "model": "http://127.0.0.1:1/v1"}, "runs here"),
        ({**given, "model": "miniature"}, "no miniature"),
        ({**given, "model": tmp_path / "none"}, "model_config.json"),
        ({**given, "model": bare}, "no model.pth"),
        ({**given, "model": elsewhere}, "base_model must be"),
        ({**given, "model": folder, "base_model": other}, "does not fit"),
        ({**given, "model": folder, "axes": ["XQ"]}, "axes must be"),
        ({**given, "model": folder, "votes": 5}, "votes"),
        ({**given, "model": folder, "revision": "main"}, "revision"),
        ({**given, "model": changed(data_config={"prompt_template_type": "simple"})}, "prompt_template_type"),
        ({**image, "model": tmp_path / "none"}, "HPSv3.safetensors"),
        ({**image, "model": tmp_path / "absent.safetensors"}, "no such file"),
        ({**image, "model": folder / "checkpoint-7" / "model.pth", "top_ratio": 0.0}, "top_ratio"),
    ]
    for keys, message in cases:
        with pytest.raises(ValueError, match=message):
            load(**keys)
    assert load(**given, model=elsewhere, base_model=base).provenance == load(**given, model=folder).provenance
