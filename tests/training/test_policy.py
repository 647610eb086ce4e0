"""log p of answers: equal to plain, unpadded forwards; videos encoded once; gradients reach the encoder; LoRA merges exactly."""

import json
from dataclasses import replace

import pytest
import torch

from cac_align.training.policy import (
    AnswerLogProbs,
    ModelRecipe,
    Segment,
    answer_mask,
    load,
    make_batch,
    store_videos,
    with_lora,
)
from cac_align.training.save_model import merge_lora, save_model
from cac_align.vlm.inputs import encode_one
from tests.support import tiny_qwen


@pytest.fixture(scope="module")
def parts():
    processor, net = tiny_qwen.processor(), tiny_qwen.model()
    store, segments = {}, []
    shown = {"a": tiny_qwen.frames(5), "b": tiny_qwen.frames(3, seed=1)}
    for text, key, answer in (("look", "a", (40, 41, 42)), ("look closer please", "a", (50,)), ("hm", "b", (60, 61))):
        row = encode_one(processor, tiny_qwen.ask(text, shown[key]))
        store_videos(row, [key], store)
        segments.append(Segment(row["input_ids"], answer, (key,)))
    return processor, net, store, segments


def plain(net, processor, store, segment):
    """The same numbers by transformers' own forward, one unpadded row at a time."""
    ids = torch.cat([segment.ids, torch.tensor([segment.answer])], 1)
    types = (ids == processor.video_token_id) * 2
    pixels, grid = store[segment.videos[0]]
    out = net(input_ids=ids, mm_token_type_ids=types, pixel_values_videos=pixels, video_grid_thw=grid)
    log_p = out.logits[0].log_softmax(-1)
    first = segment.ids.shape[1]
    return torch.stack([log_p[first - 1 + n, token] for n, token in enumerate(segment.answer)])


def test_log_p_equals_plain_forwards(parts):
    processor, net, store, segments = parts
    batch = make_batch(processor, segments, store)
    found, mask = AnswerLogProbs(net)(batch), answer_mask(batch)
    assert mask.sum(1).tolist() == [3, 1, 2] and (found[~mask] == 0).all()
    for row, segment in enumerate(segments):
        assert torch.allclose(found[row][mask[row]], plain(net, processor, store, segment), atol=2e-5)


def test_a_shared_video_is_encoded_once_and_collects_all_gradients(parts):
    processor, net, store, segments = parts
    batch = make_batch(processor, segments, store)
    assert batch["video_grid_thw"].shape[0] == 2 and batch["shown"].tolist() == [0, 0, 1]
    patches = []
    handle = net.model.visual.patch_embed.register_forward_hook(
        lambda module, inputs, out: patches.append(inputs[0].shape[0])
    )
    weight = net.model.visual.patch_embed.proj.weight
    (together,) = torch.autograd.grad(AnswerLogProbs(net)(batch).sum(), weight)
    handle.remove()
    assert patches == [sum(int(grid.prod()) for _, grid in store.values())]
    alone = sum(torch.autograd.grad(plain(net, processor, store, segment).sum(), weight)[0] for segment in segments)
    assert torch.allclose(together, alone, atol=1e-5 * alone.abs().max().item() + 1e-7) and alone.abs().max() > 0


def test_answers_to_one_prompt_share_it_and_do_not_see_each_other(parts):
    """Four answers to one prompt, one to another: the prompts go through once, and log p and gradients are those of plain forwards."""
    processor, net, store, segments = parts
    asked = [replace(segments[0], answer=answer) for answer in ((40, 41, 42), (7,), (40, 41, 9, 8, 7), ())]
    asked = [asked[0], segments[2], *asked[1:]]
    batch = make_batch(processor, asked, store, shared=True)
    tokens = segments[0].ids.shape[1] + 3 + 1 + 5
    assert batch["input_ids"].shape == (2, tokens) and batch["attention_mask"].sum(1)[0] == tokens
    assert batch["branch"][0].bincount().tolist() == [segments[0].ids.shape[1], 3, 1, 5]
    found, mask = AnswerLogProbs(net)(batch), answer_mask(batch)
    assert mask.sum(1).tolist() == [3, 2, 1, 5, 0] and torch.isfinite(found).all()
    for line, segment in enumerate(asked[:-1]):
        assert torch.allclose(found[line][mask[line]], plain(net, processor, store, segment), atol=2e-5)
    gains = torch.tensor([1.0, -2.0, 0.5, 3.0])
    weights = (net.model.visual.patch_embed.proj.weight, net.model.language_model.layers[0].self_attn.k_proj.weight)
    together = torch.autograd.grad((found[:-1].sum(1) * gains).sum(), weights)
    alone = torch.autograd.grad(
        sum(
            gain * plain(net, processor, store, segment).sum() for gain, segment in zip(gains, asked[:-1], strict=True)
        ),
        weights,
    )
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=2e-5 * other.abs().max().item()) and other.abs().max() > 0
    assert "branch" not in make_batch(processor, segments, store, shared=True)  # nothing to share: rows as they were


def test_batches_of_unlike_length_are_scored_apart_in_one_call(parts):
    processor, net, store, segments = parts
    first, second = (make_batch(processor, part, store) for part in (segments[:1], segments[1:]))
    scorer = AnswerLogProbs(net)
    found, mask = scorer(first, second), answer_mask(first, second)
    assert mask.sum(1).tolist() == [3, 1, 2]
    whole = make_batch(processor, segments, store)
    assert torch.allclose(found[mask], scorer(whole)[answer_mask(whole)], atol=1e-5)


def test_temperature_scales_the_scored_distribution(parts):
    processor, net, store, segments = parts
    batch = make_batch(processor, segments[:1], store)
    cold = AnswerLogProbs(net, temperature=0.5)(batch)
    logits = {}
    handle = net.lm_head.register_forward_hook(lambda module, inputs, out: logits.update(found=out))
    AnswerLogProbs(net)(batch)
    handle.remove()
    expected = (logits["found"] / 0.5).log_softmax(-1)
    assert torch.allclose(cold[answer_mask(batch)], expected[range(3), list(segments[0].answer)], atol=1e-5)


def test_placeholders_in_an_answer_are_refused(parts):
    processor, _, store, segments = parts
    wrong = Segment(segments[0].ids, (processor.video_token_id,), segments[0].videos)
    with pytest.raises(ValueError, match="its answer holds vision tokens"):
        make_batch(processor, [wrong], store)


def test_lora_covers_all_three_parts_and_merges_to_the_same_model(parts, tmp_path):
    processor, _, store, segments = parts
    net = with_lora(tiny_qwen.model(), rank=4, alpha=8, seed=0)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    for part in ("visual.blocks", "visual.merger", "deepstack_merger", "language_model.layers"):
        assert any(part in name for name in trained), part
    assert all("lora_" in name for name in trained)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    batch = make_batch(processor, segments, store)
    scorer = AnswerLogProbs(net)
    adapted = scorer(batch).detach()
    save_model(scorer, scorer.state_dict(), processor, tmp_path / "merged")
    again, _ = load(ModelRecipe(path=str(tmp_path / "merged")))
    assert not any("lora" in name for name in again.state_dict())
    assert torch.allclose(AnswerLogProbs(again)(batch), adapted, atol=1e-5)
    assert not torch.allclose(AnswerLogProbs(tiny_qwen.model())(batch), adapted, atol=1e-3)
    plain_state = merge_lora({"base_model.model.x.weight": torch.ones(1)}, net.peft_config["default"])
    assert list(plain_state) == ["x.weight"]


def test_gradient_checkpointing_changes_nothing(parts, tmp_path):
    processor, net, store, segments = parts
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = make_batch(processor, segments, store)
    grads = []
    for on in (False, True):
        model, _ = load(ModelRecipe(path=str(tmp_path), gradient_checkpointing=on))
        AnswerLogProbs(model)(batch).sum().backward()
        grads.append(model.model.visual.patch_embed.proj.weight.grad)
    assert torch.allclose(*grads, atol=1e-6) and grads[0].abs().max() > 0


def test_a_trained_judge_says_how_its_frames_were_capped(parts, tmp_path):
    """What the checkpoint leaves open is decided here as it is for judging, and travels with the weights; a decision is left alone."""
    processor, net, _, _ = parts
    for given, kept in ((None, True), (False, False), (True, True)):
        processor.video_processor.cap_pixels_per_frame = given
        net.save_pretrained(tmp_path / "start")
        processor.save_pretrained(tmp_path / "start")
        _, loaded = load(ModelRecipe(path=str(tmp_path / "start")))
        save_model(AnswerLogProbs(net), AnswerLogProbs(net).state_dict(), loaded, tmp_path / "out")
        again = json.loads((tmp_path / "out" / "processor_config.json").read_text())
        assert again["video_processor"]["cap_pixels_per_frame"] is kept
    processor.video_processor.cap_pixels_per_frame = None


def test_wrong_models_are_named(tmp_path):
    with pytest.raises(ValueError, match="model.path: .* could not be loaded"):
        load(ModelRecipe(path=str(tmp_path)))
    with pytest.raises(ValueError, match="mixed_precision must be 'no' or 'bf16'"):
        ModelRecipe(mixed_precision="fp16")
