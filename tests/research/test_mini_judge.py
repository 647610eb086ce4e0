"""The small judge is a real Qwen3-VL: its tokenizer's facts, its folder, its examples, its training that survives a kill."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from cac_align.cac.prompts import turn_one_conversation
from cac_align.core.video import Frames
from cac_align.miniature.models.judge import (
    build_judge_tokenizer,
    build_model,
    train_merges,
    write_folder,
)
from cac_align.runs.checkpoint import read_state
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import CONTROL_TOKENS
from research.training.examples import cac_examples, unified_examples
from research.training.judge_loss import answer_loss, batch_vision_attention, collate
from research.training.pool import MixtureConfig
from research.training.token_labels import ProbeHeads
from research.training.train_judge import PROBE_HEADS, JudgeTraining, train
from tests.support.small_judge import SMALL

ROOT = Path(__file__).parents[2]


# ---- tokenizer ----


def test_merges_are_the_most_frequent_pairs():
    # "xyxy" twice, "xyz" once: x+y stands 5 times, xy+xy 2 times, xy+z once (and once is not enough).
    merges = train_merges(["xyxy", "xyxy", "xyz"], 100)
    assert merges[6:] == [("x", "y"), ("xy", "xy")]


def test_abnormal_ends_in_the_very_token_of_normal(tokenizer):
    for quoted in ('"status": "{}", "anomalies"', '"status":"{}"'):
        pieces = {word: tokenizer.tokenize(quoted.format(word)) for word in ("normal", "abnormal")}
        at = pieces["normal"].index("normal")
        assert pieces["abnormal"][: at + 2] == [*pieces["normal"][:at], "ab", "normal"]
        assert pieces["abnormal"][at + 2 :] == pieces["normal"][at + 1 :]
    assert "abnormal" not in tokenizer.get_vocab()


def test_marks_numbers_and_stamps_are_cheap(tokenizer):
    assert tokenizer.tokenize("<0.6 seconds>") == ["<0.6Ġseconds>"]
    assert tokenizer.tokenize(" Frame 2: fine. Frame 3: fine. ")[:4] == ["ĠFrameĠ2:", "Ġfine.", "ĠFrameĠ3:", "Ġfine."]
    assert len(tokenizer.tokenize(', "status": "')) <= 3
    assert sum(len(tokenizer.tokenize(str(number))) <= 3 for number in range(1000)) == 1000
    assert len(tokenizer.tokenize("1000")) <= 4


@pytest.mark.parametrize(
    "text", ["a naïve 日本 “quote” 🎬", 'tab\tand "quote": [1, 2]', "   two  spaces\n\n\nlines ", "<|im_end|> stays"]
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_qwens_and_single(tokenizer):
    for token in CONTROL_TOKENS:
        assert len(tokenizer(token).input_ids) == 1
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.padding_side == "left"


def test_the_same_texts_give_the_same_tokenizer(texts, tokenizer):
    again = build_judge_tokenizer(list(reversed(texts)), 600)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_answers_stay_short(texts, tokenizer):
    scans = [text for text in texts if text.startswith('{"COT"') and "BBOX" not in text and "Frame 9" not in text]
    assert np.mean([len(tokenizer(text).input_ids) for text in scans]) < 80


# ---- processor, template, folder ----


def test_template_is_chatml_with_vision_marks(processor):
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "Is it broken?"}]
    chat = [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "No."},
    ]
    pair = "<|vision_start|><|{}_pad|><|vision_end|>"
    text = processor.apply_chat_template(
        [*chat, {"role": "user", "content": "Sure?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\n"
        + pair.format("video")
        + pair.format("image")
        + "Is it broken?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_folder_loads_through_the_public_classes(tmp_path, processor, tokenizer):
    model = build_model(tokenizer, SMALL, seed=3)
    write_folder(tmp_path, model, processor)
    found = AutoProcessor.from_pretrained(tmp_path)
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(found) is Qwen3VLProcessor
    assert found.video_processor.patch_size == loaded.config.vision_config.patch_size == 8
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert set(loaded.generation_config.suppress_tokens) >= {loaded.config.video_token_id, loaded.config.image_token_id}
    for (name, one), (_, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(one.half().float(), other), name
    frames = Frames(
        np.full((9, 64, 64, 3), 90, np.uint8), tuple(range(0, 33, 4)), tuple(n / 4 for n in range(9)), 4.0, 33
    )
    vlm = LocalVlm.load(tmp_path, device="cpu")
    reply = vlm.answer([turn_one_conversation("a red ball rests on grass", frames, wording="brief")], max_new_tokens=3)[
        0
    ]
    assert reply.error is None
    # 5 temporal patches of 4 x 4 tokens each: 64 px is 64 px to the judge
    ids = processor.tokenizer("x").input_ids
    assert ids and reply.num_prompt_tokens > 5 * 16


def test_a_weight_that_does_not_fit_is_refused(tmp_path, processor, tokenizer):
    model = build_model(tokenizer, SMALL)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        write_folder(tmp_path, model, processor)


# ---- training ----


def test_labels_are_the_answers_and_nothing_else(processor, pool):
    examples = cac_examples(pool, MixtureConfig(), 4, seed=(0, 1), pairs=False)
    batch = collate(processor, examples)
    for row, example in enumerate(examples):
        kept = batch["labels"][row] != -100
        assert processor.tokenizer.decode(batch["labels"][row][kept]) == example.answer + "<|im_end|>"
        assert torch.equal(batch["input_ids"][row][kept], batch["labels"][row][kept])
        prompt = batch["input_ids"][row][batch["attention_mask"][row].bool() & ~kept]
        assert processor.tokenizer.decode(prompt).endswith("<|im_end|>\n<|im_start|>assistant\n")
    pads = int((batch["input_ids"] == processor.video_token_id).sum())
    assert pads * 4 == batch["pixel_values_videos"].shape[0]


def test_deciding_tokens_weigh_more(processor, pool):
    example = cac_examples(pool, MixtureConfig(turn_two=0.0, pair=0.0), 2, seed=(0, 2), pairs=False)[1]
    plain, heavy = collate(processor, [example]), collate(processor, [example], 8.0)
    assert set(plain["weights"].flatten().tolist()) == {1.0}
    kept = heavy["weights"][0] == 8.0
    pieces = [processor.tokenizer.decode([token]) for token in heavy["input_ids"][0][kept].tolist()]
    frames = len(example.conversation[0].frames)
    assert len(pieces) == 2 * frames + 1  # a place and a verdict per frame, and the status
    assert pieces[-1] in ("normal", "ab") and all(piece.startswith(" ") for piece in pieces[:-1])
    tokens = heavy["labels"][0][1:] != -100
    model = build_model(processor.tokenizer, SMALL, seed=2)
    inputs = {name: tensor for name, tensor in heavy.items() if name not in ("labels", "weights")}
    with torch.no_grad():
        logits = model(**inputs).logits[0, :-1][tokens]
        loss = answer_loss(model, heavy)[0].item()
    each = torch.nn.functional.cross_entropy(logits, heavy["labels"][0][1:][tokens], reduction="none")
    weight = 1 + 7 * kept[1:][tokens].float()
    assert loss == pytest.approx(float((each * weight).sum() / weight.sum()), abs=2e-5)


def test_loss_is_that_of_the_whole_model_and_fast_attention_changes_nothing(processor, tokenizer, pool):
    model = build_model(tokenizer, SMALL, seed=1)
    for examples in (
        cac_examples(pool, MixtureConfig(), 4, seed=(0, 3), pairs=False),
        unified_examples(pool, MixtureConfig(), 2, seed=(0, 0)),
    ):
        batch = collate(processor, examples)
        with torch.no_grad():
            naive = (
                model(**{name: tensor for name, tensor in batch.items() if name not in ("labels", "weights")})
                .logits[:, :-1]
                .log_softmax(-1)
            )
        wanted = batch["labels"][:, 1:]
        rows, places = torch.nonzero(wanted != -100, as_tuple=True)
        expected = -naive[rows, places, wanted[rows, places]].mean()
        fast = build_model(tokenizer, SMALL, seed=1)
        batch_vision_attention(fast)
        for judge in (model, fast):
            with torch.no_grad():
                assert answer_loss(judge, batch)[0].item() == pytest.approx(expected.item(), abs=2e-5)


def recipe_of(folder: Path, pool: Path, **changes) -> JudgeTraining:
    settings = {
        "clips": 40,
        "text_clips": 4,
        "encoder_steps": 1,
        "encoder_batch": 4,
        "auxiliary_steps": 1,
        "pair_steps": 1,
        "steps": 2,
        "batch": 4,
    }
    settings |= {"save_every": 2, "log_every": 1, "eval_clips": 0, "seed": 7}
    return JudgeTraining(out=str(folder), pool=str(pool), size=SMALL, **{**settings, **changes})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, workers):
    recipe_for = partial(recipe_of, workers=workers)
    whole, killed, clips = tmp_path / "whole", tmp_path / "killed", tmp_path / "clips"
    train(recipe_for(whole, clips))
    train(recipe_for(killed, clips), until=3)  # step 3 is lost: the last checkpoint is step 2's
    assert read_state(killed)["step"] == 2
    with open(killed / "log.jsonl", "a") as lines:
        lines.write('{"step": 3, "lo')
    train(recipe_for(killed, clips))
    one, two = (read_state(folder)["model"] for folder in (whole, killed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [json.loads(line) for line in (killed / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in steps] == [
        json.loads(line)["loss"] for line in (whole / "log.jsonl").read_text().splitlines()
    ]
    assert Qwen3VLForConditionalGeneration.from_pretrained(killed / "final").config.model_type == "qwen3_vl"
    with pytest.raises(ValueError, match=r"another recipe \(lr differ; lr was 0\.002, now 0\.1\)"):
        train(recipe_for(killed, clips, lr=0.1))


def test_a_run_asks_fresh_questions_unless_it_is_told_whose_to_go_on_with(tmp_path):
    first, clips = tmp_path / "first", tmp_path / "clips"
    train(recipe_of(first, clips))
    start = {
        "encoder_steps": 0,
        "auxiliary_steps": 0,
        "pair_steps": 0,
        "steps": 1,
        "lr": 1e-30,
        "matrix_lr": 0.0,
        "start": str(first / "final"),
    }
    kept = {}
    for name, heads in (("fresh", ""), ("going on", str(first))):
        train(recipe_of(tmp_path / name, clips, probe_heads=heads, **start))
        kept[name] = load_file(tmp_path / name / PROBE_HEADS)["auxiliary.anomalous.weight"]
    asked = load_file(first / PROBE_HEADS)["auxiliary.anomalous.weight"]
    fresh = ProbeHeads(SMALL.text_hidden, seed=7).anomalous.weight
    assert (
        torch.allclose(kept["going on"], asked)
        and torch.allclose(kept["fresh"], fresh)
        and not torch.allclose(asked, fresh)
    )
    with pytest.raises(ValueError, match="holds other questions than this recipe's"):
        train(recipe_of(tmp_path / "other", clips, probe_heads=str(first), shape_error_weight=1.0, **start))
    # a start that was asked other questions is no obstacle where nobody wants them
    train(recipe_of(tmp_path / "shape_error", clips, shape_error_weight=1.0, **start))
    with pytest.raises(ValueError, match="train that judge first, or leave probe_heads empty"):
        train(recipe_of(tmp_path / "none", clips, probe_heads=str(tmp_path / "nobody"), **start))


def test_a_diverged_run_stops_with_a_sentence(tmp_path):
    recipe = recipe_of(
        tmp_path / "run", tmp_path / "clips", clips=16, encoder_steps=0, pair_steps=0, steps=30, lr=1e30, warmup_steps=1
    )
    with pytest.raises(ValueError, match=r"loss is (nan|inf) at step \d+"):
        train(recipe)
    shutil.rmtree(tmp_path)


def test_a_wrong_recipe_is_named():
    with pytest.raises(ValueError, match="job must be 'cac' or 'unified', received 'both'"):
        JudgeTraining(job="both")
