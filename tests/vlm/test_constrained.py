"""A random model that is held to a schema writes valid JSON of it; the readout still sees the model's own distribution."""

import json
import math
import re

import pytest
import torch

from cac_align.vlm.engine.constrained import SchemaConstraint, SchemaLogitsProcessor
from cac_align.vlm.inputs import encode
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import Message, Readout
from tests.support import tiny_qwen

SCHEMA = {
    "type": "object",
    "properties": {
        "status": {"enum": ["normal", "abnormal"]},
        "box": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 1000},
            "minItems": 4,
            "maxItems": 4,
        },
        "why": {"type": "string", "maxLength": 8},
    },
    "required": ["status", "box", "why"],
    "additionalProperties": False,
}


def locate(text):
    found = re.search(r'"status"\s*:\s*"', text)
    return found.end() if found else None


READ = Readout(("normal", "abnormal"), locate)


def check(text):
    answer = json.loads(text)
    assert list(answer) == ["status", "box", "why"] and answer["status"] in ("normal", "abnormal")
    assert len(answer["box"]) == 4 and all(isinstance(side, int) and 0 <= side <= 1000 for side in answer["box"])
    assert len(answer["why"]) <= 8


def talkative(seed=0, scale=8.0):
    """A random model with opinions: without a schema it writes rubbish with confidence."""
    net = tiny_qwen.model(seed=seed)
    with torch.no_grad():
        net.lm_head.weight *= scale / net.lm_head.weight.std() * 0.02
        net.get_input_embeddings().weight *= 20
    return net


@pytest.fixture(scope="module")
def vlm():
    return LocalVlm(talkative(), tiny_qwen.processor(), name="x", batch_size=4)


def test_every_answer_of_a_ragged_batch_is_valid(vlm):
    asked = [(Message("user", text),) for text in ("a", "something longer", "what about this one?", "d", "e")]
    free = vlm.answer(asked, max_new_tokens=40)
    with pytest.raises(json.JSONDecodeError):
        [json.loads(reply.text) for reply in free]
    held = vlm.answer(asked, max_new_tokens=400, schema=SCHEMA, readout=READ)
    for reply in held:
        assert reply.error is None and not reply.truncated
        check(reply.text)
    assert len({reply.text for reply in held}) > 1


def test_the_readout_is_unmasked(vlm):
    begun = (Message("user", "a"), Message("assistant", '{"status": "'))
    free, held = (vlm.answer([begun], max_new_tokens=400, schema=schema, readout=READ)[0] for schema in (None, SCHEMA))
    check('{"status": "' + held.text)
    assert not free.text.startswith(held.text[:4])
    assert all(math.isclose(free.log_p[word], held.log_p[word], abs_tol=1e-5) for word in READ.words)
    assert math.exp(held.log_p["normal"]) + math.exp(held.log_p["abnormal"]) < 0.5  # a mask would have made it 1


def test_a_begun_answer_outside_the_schema_is_that_conversations_error(vlm):
    good, bad = ((Message("user", "a"), Message("assistant", text)) for text in ('{"status": "ab', '{"verdict"'))
    first, second = vlm.answer([good, bad], max_new_tokens=300, schema=SCHEMA)
    check('{"status": "ab' + first.text)
    assert "no answer that begins with" in second.error and "verdict" in second.error


def test_a_short_limit_truncates_honestly(vlm):
    (reply,) = vlm.answer([(Message("user", "a"),)], max_new_tokens=3, schema=SCHEMA)
    assert reply.truncated and reply.error is None and reply.num_tokens == 3


def test_a_schema_that_cannot_be_compiled_is_refused(vlm):
    with pytest.raises(ValueError, match="cannot be compiled"):
        vlm.answer([(Message("user", "a"),)], max_new_tokens=3, schema={"type": "colour"})


def test_the_logits_processor_holds_transformers_generate_to_the_schema():
    net, processor = talkative(1), tiny_qwen.processor()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    constraint = SchemaConstraint(processor.tokenizer, SCHEMA, eos=[end])
    batch = encode(processor, [(Message("user", text),) for text in ("a", "longer text here", "b?")])
    length = batch["input_ids"].shape[1]
    torch.manual_seed(0)
    out = net.generate(
        **batch, max_new_tokens=400, do_sample=True, logits_processor=[SchemaLogitsProcessor(constraint, length)]
    )
    texts = processor.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
    for text in texts:
        check(text)
    assert len(set(texts)) == 3


def test_qwens_real_table_writes_the_schema_too():
    tokenizer = tiny_qwen.qwen_tokenizer()
    vlm = LocalVlm(tiny_qwen.model(tokenizer, hidden=32), tiny_qwen.processor(tokenizer), name="x")
    (reply,) = vlm.answer([(Message("user", "a"),)], max_new_tokens=200, schema=SCHEMA, readout=READ)
    check(reply.text)
    assert reply.log_p is not None
