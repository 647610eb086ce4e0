"""Greedy decoding and P(word): against transformers' generate, and against brute force over every spelling."""

import math

import numpy as np
import pytest
import torch

from cac_align.vlm.inputs import encode
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import Message, Readout
from cac_align.vlm.spelling import spellings
from tests import tiny_qwen
from tests.tiny_qwen import WORDS, ask, conversations, frames


def inside_status(text: str) -> int | None:
    at = text.find("status")
    return None if at < 0 else at + 1


@pytest.fixture(scope="module")
def table():
    """The real Qwen table, shared: (processor, a fresh model per call)."""
    tokenizer = tiny_qwen.qwen_tokenizer()
    return tiny_qwen.processor(tokenizer), lambda: tiny_qwen.model(tokenizer, hidden=32, layers=2)


def test_text_equals_transformers_generate_one_by_one():
    small = LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="small", batch_size=4)
    replies = small.answer(conversations(), max_new_tokens=12)
    banned = [token for text, token in small.processor.tokenizer.get_added_vocab().items() if text != "<|im_end|>"]
    unknown = list(range(len(small.processor.tokenizer), small.model.config.text_config.vocab_size))
    for conversation, reply in zip(conversations(), replies, strict=True):
        row = encode(small.processor, [conversation])
        out = small.model.generate(**row, max_new_tokens=12, do_sample=False, suppress_tokens=[*banned, *unknown])
        new = out[0, row["input_ids"].shape[1] :].tolist()
        assert reply.error is None and reply.text == small.processor.tokenizer.decode(
            [t for t in new if t not in banned], skip_special_tokens=True
        )
        assert reply.num_prompt_tokens == row["input_ids"].shape[1] and reply.num_tokens == 12 and reply.truncated


def test_it_never_writes_a_vision_token():
    net = tiny_qwen.model()
    tokenizer = tiny_qwen.small_tokenizer()
    newline = tokenizer("\n").input_ids[0]
    pad, word = tokenizer.convert_tokens_to_ids("<|video_pad|>"), tokenizer("normal").input_ids[0]
    tiny_qwen.teach_chain(net, [newline, pad], log_odds=30, rivals=[(newline, word, 20.0)])
    (reply,) = LocalVlm(net, tiny_qwen.processor(), name="x").answer([ask("look", frames(2))], max_new_tokens=1)
    assert reply.text == "normal"


def brute_force(model, row, begun, words):
    """log P(word) with one full forward per spelling: no cache, no tree, no pruning. ``begun``: token ids before the place."""
    found = {}
    for word, candidates in words.items():
        terms = []
        for spelling in candidates:
            ids = torch.cat([row["input_ids"], torch.tensor([[*begun, *spelling]])], 1)
            types = torch.nn.functional.pad(row["mm_token_type_ids"], (0, ids.shape[1] - row["mm_token_type_ids"].shape[1]))
            full = {**row, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}
            with torch.no_grad():
                log_p = model(**full).logits[0].double().log_softmax(-1)
            start = ids.shape[1] - len(spelling)
            terms.append(sum(log_p[start + n - 1, token].item() for n, token in enumerate(spelling)))
        found[word] = float(np.logaddexp.reduce(terms))
    return found


@pytest.mark.parametrize(("verdict", "rival"), [("abnormal", "normal"), ("normal", "abnormal")])
def test_with_qwens_real_table_a_confident_abnormal_reads_below_one_half(table, verdict, rival):
    processor, fresh = table
    model, tokenizer = fresh(), processor.tokenizer
    said = tokenizer("\n" + '{"status": "' + verdict + '"}<|im_end|>').input_ids
    other = tokenizer(rival).input_ids
    assert (tokenizer("abnormal").input_ids, tokenizer("normal").input_ids) == ([370, 8252], [8252])
    quote = tokenizer(' "').input_ids[0]
    rivals = [(quote, other[0], 16.0)] + ([(370, 8252, 20.0)] if verdict == "normal" else [])
    tiny_qwen.teach_chain(model, said, log_odds=20.0, rivals=rivals)
    conversation = ask("judge", frames(4))
    (reply,) = LocalVlm(model, processor, name="x").answer([conversation], max_new_tokens=12, readout=WORDS)
    assert reply.text == '{"status": "' + verdict + '"}' and not reply.truncated
    p = {word: math.exp(value) for word, value in reply.log_p.items()}
    r = p["normal"] / (p["normal"] + p["abnormal"])
    assert (r < 0.05) if verdict == "abnormal" else (r > 0.95)
    assert 0.9 < p["normal"] + p["abnormal"] <= 1 + 1e-6

    row = encode(processor, [conversation])
    begun = said[1:5]
    expected = brute_force(model, row, begun, {word: spellings(tokenizer, word)[:6] for word in WORDS.words})
    assert all(math.isclose(reply.log_p[word], expected[word], abs_tol=1e-4) for word in WORDS.words)

    # The trap: reading the distribution where the *token* of "normal" stands gives P(normal) ≈ 1 on either verdict.
    at = begun + said[5 : 5 + said[5:].index(8252)]
    searched = brute_force(model, row, at, {"normal": [(8252,)]})["normal"]
    assert math.exp(searched) > 0.95


@pytest.mark.parametrize("begun", [True, False])
def test_word_probabilities_equal_brute_force_over_every_spelling(begun):
    """A flat random model: every spelling counts, none is pruned."""
    net, processor = tiny_qwen.model(seed=3), tiny_qwen.processor()
    tokenizer = processor.tokenizer
    prefix = tokenizer('{"status": "').input_ids
    vlm = LocalVlm(net, processor, name="x", batch_size=3)
    if begun:
        asked = [
            ask(text, seen, Message("assistant", '{"status": "'))
            for text, seen in (("a", frames(3)), ("bcd", None), ("e", frames(8)))
        ]
    else:
        tiny_qwen.teach_chain(net, [*tokenizer("\n").input_ids, *prefix], log_odds=40.0)
        asked = [ask("a", frames(3)), ask("bcd"), ask("e", frames(8))]
    replies = vlm.answer(asked, max_new_tokens=9, readout=WORDS)
    table = tiny_qwen.small_tokenizer().get_vocab()
    closers = {token for piece, token in table.items() if piece in ('normal"', 'normal",', 'abnormal"', 'abnormal",')}
    assert not closers  # so the exact spellings are all there is
    for conversation, reply in zip(asked, replies, strict=True):
        expected = brute_force(
            net, encode(processor, [conversation]), [] if begun else prefix, {w: spellings(tokenizer, w) for w in WORDS.words}
        )
        assert reply.error is None
        for word in WORDS.words:
            assert math.isclose(reply.log_p[word], expected[word], abs_tol=1e-4)


def test_a_place_inside_a_token_forces_the_part_before_it():
    net, processor = tiny_qwen.model(seed=5), tiny_qwen.processor()
    tokenizer = processor.tokenizer
    status = tokenizer("status").input_ids
    assert len(status) == 1
    brace = tokenizer('{"').input_ids
    tiny_qwen.teach_chain(net, [*tokenizer("\n").input_ids, *brace, *status], log_odds=40.0)
    conversation = ask("a", frames(3))
    (reply,) = LocalVlm(net, processor, name="x").answer(
        [conversation], max_new_tokens=4, readout=Readout(("tatus", "on"), inside_status)
    )
    pieces = [(tokenizer.convert_ids_to_tokens(token), token) for token in range(len(tokenizer) - len(tiny_qwen.SPECIAL))]
    cover = [(token,) for piece, token in pieces if piece.startswith("s")]
    exact = {"status": spellings(tokenizer, "status"), "son": spellings(tokenizer, "son"), "cover": cover}
    expected = brute_force(net, encode(processor, [conversation]), brace, exact)
    assert math.isclose(reply.log_p["tatus"], expected["status"] - expected["cover"], abs_tol=1e-4)
    assert math.isclose(reply.log_p["on"], expected["son"] - expected["cover"], abs_tol=1e-4)


def test_bfloat16_reads_the_same_verdict(table):
    processor, fresh = table
    model, tokenizer = fresh(), processor.tokenizer
    tiny_qwen.teach_chain(model, tokenizer('\n{"status": "abnormal"}<|im_end|>').input_ids, log_odds=30.0)
    (reply,) = LocalVlm(model.to(torch.bfloat16), processor, name="x").answer(
        [ask("judge", frames(4))], max_new_tokens=12, readout=WORDS
    )
    assert reply.text == '{"status": "abnormal"}' and reply.log_p["abnormal"] - reply.log_p["normal"] > 5
