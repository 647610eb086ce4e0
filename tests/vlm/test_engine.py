"""The engine: against transformers' generate one by one, and P(word) against brute force over every spelling."""

import math

import numpy as np
import pytest
import torch

from cac_align.vlm.dialogue import Question, run_dialogues
from cac_align.vlm.engine import engine
from cac_align.vlm.engine.constrained import SchemaConstraint, SchemaLogitsProcessor
from cac_align.vlm.engine.engine import float_logits
from cac_align.vlm.engine.spelling import spellings
from cac_align.vlm.inputs import encode
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import Message, Readout
from tests.support import tiny_qwen
from tests.support.tiny_qwen import WORDS, after_status, ask, conversations, frames


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
            types = torch.nn.functional.pad(
                row["mm_token_type_ids"], (0, ids.shape[1] - row["mm_token_type_ids"].shape[1])
            )
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
            net,
            encode(processor, [conversation]),
            [] if begun else prefix,
            {w: spellings(tokenizer, w) for w in WORDS.words},
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
    pieces = [
        (tokenizer.convert_ids_to_tokens(token), token) for token in range(len(tokenizer) - len(tiny_qwen.SPECIAL))
    ]
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


BEGUN = '{"status": "'
SHORT = Readout(("on", "off"), after_status)


def two_turns(scan, clip, tokens, context, said):
    """A judge's two turns, of ragged lengths, whose answers are begun so that the readout stands at a known place."""
    first = (Message("user", "is it broken", scan), Message("assistant", BEGUN))
    (one,) = yield [Question(first, tokens[0], None, SHORT)]
    ask = Message("user", "look again", clip)
    before = () if context == "fresh" else (first[0], Message("assistant", BEGUN + one.text))
    second = (*before, ask, Message("assistant", BEGUN))
    (two,) = yield [Question(second, tokens[1], None, SHORT)]
    said[id(scan)] = [(first, one), (second, two)]


def naive(vlm, conversation, tokens):
    """transformers' generate from scratch, then every spelling of every word by a forward of its own."""
    row, tokenizer = encode(vlm.processor, [conversation]), vlm.processor.tokenizer
    banned = vlm._banned.nonzero()[:, 0].tolist()
    out = vlm.model.generate(**row, max_new_tokens=tokens, do_sample=False, suppress_tokens=banned)
    new = out[0, row["input_ids"].shape[1] :].tolist()
    log_p = brute_force(vlm.model, row, [], {word: spellings(tokenizer, word) for word in SHORT.words})
    return tokenizer.decode(new, skip_special_tokens=True), log_p


@pytest.mark.parametrize("context", ["fresh", "continued"])
def test_two_turns_equal_the_naive_loop_with_more_videos_than_slots_and_ragged_lengths(context):
    vlm = LocalVlm(tiny_qwen.model(seed=3), tiny_qwen.processor(), name="x", batch_size=3)
    patches = []
    vlm.model.model.visual.register_forward_pre_hook(lambda module, args: patches.append(len(args[0])))
    lengths = [(20, 7), (3, 25), (18, 18), (1, 5), (33, 2)]
    videos = [(frames(3 + n, seed=n), frames(2 + n % 2, seed=90 + n)) for n in range(len(lengths))]
    said = {}
    run_dialogues(
        vlm, [two_turns(*video, tokens, context, said) for video, tokens in zip(videos, lengths, strict=True)]
    )
    # Whatever the context, each turn's own frames went through the vision encoder once: 16 patches per pair of frames.
    assert sum(patches) == sum(16 * (-(-len(shown) // 2)) for video in videos for shown in video)
    for (scan, _), tokens in zip(videos, lengths, strict=True):
        for (conversation, reply), limit in zip(said[id(scan)], tokens, strict=True):
            text, log_p = naive(vlm, conversation, limit)
            assert reply.error is None and reply.text == text
            r, expected = (1 / (1 + math.exp(p["off"] - p["on"])) for p in (reply.log_p, log_p))
            assert math.isclose(r, expected, abs_tol=1e-4)


def test_constrained_answers_equal_generate_with_the_same_grammar_under_refill():
    vlm = LocalVlm(tiny_qwen.model(seed=5), tiny_qwen.processor(), name="x", batch_size=2)
    schema = {
        "type": "object",
        "properties": {"note": {"type": "string", "maxLength": 9}, "status": {"enum": ["normal", "abnormal"]}},
        "required": ["note", "status"],
        "additionalProperties": False,
    }
    replies = vlm.answer(conversations(), max_new_tokens=60, schema=schema, readout=WORDS)
    constraint, read = SchemaConstraint(vlm.processor.tokenizer, schema, eos=vlm._eos), 0
    for conversation, reply in zip(conversations(), replies, strict=True):
        row = encode(vlm.processor, [conversation])
        start = row["input_ids"].shape[1]
        out = vlm.model.generate(
            **row,
            max_new_tokens=60,
            do_sample=False,
            logits_processor=[SchemaLogitsProcessor(constraint, start)],
            suppress_tokens=vlm._banned.nonzero()[:, 0].tolist(),
        )
        assert reply.text == vlm.processor.tokenizer.decode(out[0, start:], skip_special_tokens=True)
        if reply.log_p is not None:  # the tokenizer cuts the text as the model wrote it
            said, before = out[0, start:].tolist(), reply.text[: after_status(reply.text)]
            (at,) = (said[:k] for k in range(len(said)) if vlm.processor.tokenizer.decode(said[:k]) == before)
            table = {word: spellings(vlm.processor.tokenizer, word) for word in WORDS.words}
            expected = brute_force(vlm.model, row, at, table)
            assert all(math.isclose(reply.log_p[word], expected[word], abs_tol=1e-3) for word in WORDS.words)
            read += 1
    assert read >= 2


def forwards(vlm, work):
    """How many forward passes of the language model some work takes."""
    count = []
    hook = vlm.model.model.language_model.register_forward_pre_hook(lambda module, args: count.append(1))
    work()
    hook.remove()
    return len(count)


def test_a_readout_costs_no_forward_pass_of_its_own():
    vlm = LocalVlm(tiny_qwen.model(seed=3), tiny_qwen.processor(), name="x", batch_size=4)
    asked = [ask("a", frames(n), Message("assistant", BEGUN)) for n in (3, 4, 5)]
    with_it, without = (
        forwards(vlm, lambda r=r: vlm.answer(asked, max_new_tokens=20, readout=r)) for r in (WORDS, None)
    )
    assert with_it == without == 20  # one prefill, which gives the first token, and a step for each of the other 19


def test_an_answer_that_ends_makes_room_at_once_and_a_video_called_normal_leaves_early():
    vlm = LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="x", batch_size=2)
    order = []

    def talk(name, *lengths):
        for length in lengths:
            (reply,) = yield [Question(ask(name), length)]
            assert reply.num_tokens == length
        order.append(name)

    steps = forwards(
        vlm, lambda: run_dialogues(vlm, [talk("long", 60), talk("short", 4), talk("twice", 5, 5), talk("last", 20)])
    )
    assert order == ["short", "twice", "last", "long"] and steps < 60 + 4 * 2


def test_memory_that_runs_out_in_the_middle_of_an_answer_halves_the_batch_and_changes_no_answer(caplog):
    vlm = LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="x", batch_size=4)
    asked = [ask("abcd"[n], frames(3 + n)) for n in range(4)]
    expected = vlm.answer(asked, max_new_tokens=12, readout=None)
    calls = []

    def greedy_allocation(module, args, kwargs):
        calls.append(kwargs["inputs_embeds"].shape[0])
        if len(calls) > 4 and calls[-1] > 2:
            torch.empty(1 << 48)  # a real failure of the real allocator, three steps into four answers

    vlm.model.model.language_model.register_forward_pre_hook(greedy_allocation, with_kwargs=True)
    assert vlm.answer(asked, max_new_tokens=12) == expected
    assert calls[:4] == [4] * 4 and max(calls[5:]) == 2
    assert (
        "4 answers at once failed, going on with at most 2: out of memory" in caplog.text
        and "DefaultCPUAllocator" in caplog.text
    )


def judged(vlm):
    """Four answers of which two are wider than the others, each with a readout at its beginning."""
    asked = [ask("abcd"[n], frames(3 + n), Message("assistant", BEGUN)) for n in range(4)]
    return vlm.answer(asked, max_new_tokens=20, readout=SHORT)


@pytest.mark.parametrize("call", [1, 2, 6, 20], ids=["prefill", "first step", "later step", "last step"])
@pytest.mark.parametrize("place", ["lm_head", "_choose", "isfinite", "_locate"])
def test_memory_that_runs_out_behind_the_forward_changes_neither_text_nor_probability(monkeypatch, caplog, place, call):
    """After the forward of a prefill or a step: in lm_head, before a token is chosen, meanwhile, or at its readout."""
    vlm = LocalVlm(tiny_qwen.model(seed=3), tiny_qwen.processor(), name="x", batch_size=4)
    expected = judged(vlm)
    assert all(reply.log_p is not None for reply in expected)
    if place == "_locate":
        monkeypatch.setattr(engine, "LOCATE_EVERY", 1)
    owner, name = {"lm_head": (vlm.model.lm_head, "forward"), "isfinite": (torch, place)}.get(
        place, (engine.Engine, place)
    )
    calls, real = [], getattr(owner, name)
    # Four answers: a head reads four rows per step, and again four times in the prefill, which plants the four readouts.
    last = {"lm_head": call if call == 1 else call + 4, "_locate": 4 * call - 2}.get(place, call)

    def fails_once(*args):
        calls.append(1)
        if len(calls) == last:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return real(*args)

    monkeypatch.setattr(owner, name, fails_once)
    found = judged(vlm)
    assert len(calls) > last and "4 answers at once failed, going on with at most 2: out of memory" in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert one.error is None and (one.text, one.num_tokens) == (other.text, other.num_tokens)
        assert one.log_p == pytest.approx(other.log_p, abs=1e-4)


def test_memory_too_small_for_one_answer_is_that_answers_error():
    vlm = LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="x", batch_size=4)

    def too_wide(module, args, kwargs):
        if kwargs["position_ids"].shape[2] > 80:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    vlm.model.model.language_model.register_forward_pre_hook(too_wide, with_kwargs=True)
    replies = vlm.answer([ask("x"), ask("x " * 90), ask("y")], max_new_tokens=3)
    assert [reply.error for reply in replies] == [None, "out of memory: tried to allocate 9 GiB", None]


def test_the_readout_of_a_bfloat16_model_has_no_bfloat16_steps():
    """A bfloat16 logit near 20 is a multiple of 1/8; the readout's are those of its weights and states in double precision."""
    torch.manual_seed(0)
    head = torch.nn.Linear(256, 20_000, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        head.weight.normal_(std=0.08)
        states = (torch.randn(3, 256) + 250 * head.weight[:3].float()).to(torch.bfloat16)
        exact = states.double() @ head.weight.double().T
        assert exact.max() > 16 and (head(states).double() - exact).abs().max() > 0.02
        assert (float_logits(head, states).double() - exact).abs().max() < 1e-4
        plain = torch.nn.Linear(4, 9)
        assert torch.equal(float_logits(plain, torch.ones(2, 4)), plain(torch.ones(2, 4)))
        biased = torch.nn.Linear(4, 9).to(torch.bfloat16)
        wanted = torch.ones(2, 4) @ biased.weight.float().T + biased.bias.float()
        assert torch.allclose(float_logits(biased, torch.ones(2, 4, dtype=torch.bfloat16)), wanted, atol=1e-6)


class FloatHead(torch.nn.Module):
    """The same words, in float32 throughout."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, states):
        return states.float() @ self.weight.float().T


def test_a_bfloat16_judge_reads_out_what_a_float32_head_would():
    net = tiny_qwen.model(hidden=64).to(torch.bfloat16)
    with torch.no_grad():
        net.lm_head.weight.mul_(40)
    asked = [ask("look", frames(2, seed=seed)) for seed in range(4)]
    given = {"max_new_tokens": 4, "readout": Readout(("normal", "abnormal"), lambda text: 0)}
    found = [reply.log_p for reply in LocalVlm(net, tiny_qwen.processor(), name="x").answer(asked, **given)]
    plain = net.lm_head
    net.lm_head = FloatHead(plain.weight)
    wanted = [reply.log_p for reply in LocalVlm(net, tiny_qwen.processor(), name="x").answer(asked, **given)]
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-4) and min(other.values()) < -1
