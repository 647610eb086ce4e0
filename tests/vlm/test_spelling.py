"""All spellings of a word: against enumeration by hand and by brute force, on small tables and on Qwen's real one."""

import itertools
import math

import numpy as np
import pytest
from transformers import AutoTokenizer  # noqa: F401  (loads the tokenizer machinery once)

from cac_align.vlm.engine.spelling import (
    COVER,
    log_sum_exp,
    spelling_tree,
    spellings,
    text_and_ends,
    token_at,
    vocabulary,
)
from tests.support import tiny_qwen


def test_qwens_table_spells_abnormal_with_the_token_of_normal():
    tokenizer = tiny_qwen.qwen_tokenizer()
    assert tokenizer('"status": "abnormal"').input_ids == [1, 2829, 788, 330, 370, 8252, 1]
    assert spellings(tokenizer, "normal")[0] == (8252,)
    assert spellings(tokenizer, "abnormal")[0] == (370, 8252)
    assert (
        len(tokenizer) == 151_643 + len(tiny_qwen.SPECIAL) and tokenizer.convert_tokens_to_ids("<|im_end|>") == 151_645
    )


@pytest.mark.parametrize("word", ["normal", "abnormal", "ab", "né"])
@pytest.mark.parametrize("build", [tiny_qwen.small_tokenizer, tiny_qwen.qwen_tokenizer])
def test_spellings_are_exactly_the_segmentations_found_by_cutting_everywhere(build, word):
    tokenizer, data = build(), word.encode()
    of_piece = {}
    for token in tokenizer.get_vocab().values():
        if token not in tokenizer.added_tokens_decoder:
            of_piece.setdefault(tokenizer.convert_ids_to_tokens(token), token)
    alphabet = tiny_qwen._byte_alphabet()
    expected = set()
    for cuts in itertools.product([0, 1], repeat=len(data) - 1):
        pieces, piece = [], data[:1]
        for byte, cut in zip(data[1:], cuts, strict=True):
            if cut:
                pieces.append(piece)
                piece = b""
            piece += bytes([byte])
        pieces.append(piece)
        ids = [of_piece.get("".join(alphabet[byte] for byte in part)) for part in pieces]
        if None not in ids:
            expected.add(tuple(ids))
    found = spellings(tokenizer, word)
    assert set(found) == expected and len(found) == len(expected)
    assert all(tokenizer.decode(list(spelling)) == word for spelling in found)


def uniform(size):
    return lambda node, tokens: [-math.log(size)] * len(tokens)


def test_tree_sums_products_over_all_spellings():
    tokenizer = tiny_qwen.small_tokenizer()
    size = len(tokenizer)
    log_p = spelling_tree(tokenizer, ["normal", "abnormal"]).log_p(uniform(size))
    for word in ("normal", "abnormal"):
        closed = _closing_spellings(tokenizer, word)
        by_hand = sum(size ** -len(spelling) for spelling in closed)
        assert set(spellings(tokenizer, word)) <= set(closed)
        assert math.isclose(log_p[word], math.log(by_hand), rel_tol=1e-9)


def _closing_spellings(tokenizer, word):
    """Spellings whose last token may run on into punctuation, written independently of the module: prefix × closing token."""
    table = vocabulary(tokenizer)
    found = []
    for size in range(len(word)):
        heads = spellings(tokenizer, word[:size]) if size else [()]
        for index, piece in enumerate(table.of_id):
            if piece and piece.startswith(word[size:].encode()):
                tail = piece[len(word) - size :].decode("utf-8", errors="ignore")
                if tail == "" or not (tail[0].isalnum()):
                    found += [(*head, index) for head in heads]
    return found


def test_a_longer_word_is_another_word():
    tokenizer = tiny_qwen.qwen_tokenizer()
    normally = tokenizer("normally").input_ids
    assert len(normally) == 1  # one token that begins with the whole word
    lasts = {last for node, last in spelling_tree(tokenizer, ["normal"]).closings["normal"] if node == 0}
    assert normally[0] not in lasts and 8252 in lasts


def test_pruning_keeps_what_matters_and_is_relative_to_the_word():
    tokenizer = tiny_qwen.qwen_tokenizer()
    rng = np.random.default_rng(0)
    logits = rng.normal(size=len(tokenizer)) * 3
    logits[8252] = 60.0  # saturated: everything that begins "abnormal" is below 1e-20
    first = logits - np.logaddexp.reduce(logits)
    tree = spelling_tree(tokenizer, ["normal", "abnormal"], first_log_p=lambda ids: first[list(ids)].tolist())
    assert {last for _, last in tree.closings["normal"]} >= {8252}
    assert len({node for node, _ in tree.closings["normal"]}) == 1  # all rare first pieces of "normal" are gone
    assert (370, 8252) in {(tree.tokens[node], last) for node, last in tree.closings["abnormal"]}
    assert all(tree.depths[node] == tree.depths[tree.parents[node]] + 1 for node in range(1, len(tree.tokens)))


def test_token_healing_divides_by_the_forced_prefix():
    tokenizer = tiny_qwen.small_tokenizer()
    size = len(tokenizer)
    tree = spelling_tree(tokenizer, ["normal"], forced=b'"')
    log_p = tree.log_p(uniform(size))
    quoted = sum(size ** -len(spelling) for spelling in _closing_spellings(tokenizer, '"normal'))
    covers = sum(1 for piece in vocabulary(tokenizer).of_id if piece and piece.startswith(b'"')) / size
    assert math.isclose(log_p["normal"] - log_p[COVER], math.log(quoted / covers), rel_tol=1e-9)


def test_places_in_text_with_broken_and_wide_characters():
    tokenizer = tiny_qwen.small_tokenizer()
    table = vocabulary(tokenizer)
    tokens = tokenizer('é"normal" 视').input_ids
    text, ends = text_and_ends(table, tokens)
    assert text == 'é"normal" 视' == tokenizer.decode(tokens) and ends[-1] == len(text.encode())
    index, inside = token_at(table, tokens, text.index("normal"))
    assert b"".join(table.of_id[t] for t in tokens[:index]) + inside == 'é"'.encode()
    broken = [table.ids[b"\xe8"][0], table.ids[b"\xa7"][0], *tokenizer('"').input_ids, *tokenizer("normal").input_ids]
    text, _ = text_and_ends(table, broken)
    index, inside = token_at(table, broken, text.index("normal"))
    assert text == '\ufffd"normal' and (index, inside) == (3, b"")
    assert token_at(table, broken, len(text)) == (len(broken), b"")
    with pytest.raises(ValueError, match="offset 99"):
        token_at(table, broken, 99)


def test_errors():
    with pytest.raises(ValueError, match="empty string"):
        spellings(tiny_qwen.small_tokenizer(), "")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a b": 0, "[UNK]": 1}, unk_token="[UNK]"))
    )
    with pytest.raises(ValueError, match="byte-level tokenizer"):
        spellings(words, "a")


def test_log_sum_exp():
    assert log_sum_exp([]) == -math.inf and log_sum_exp([-math.inf]) == -math.inf
    assert math.isclose(log_sum_exp([-1000.0, -1000.0]), -1000 + math.log(2))
