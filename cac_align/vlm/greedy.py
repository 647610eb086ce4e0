"""One batch on one device: prefill, greedy decoding, and word probabilities from the very same pass.

left-padded batch → prefill (vision tokens once) → token by token, raw distribution = lm_head(last hidden state) → Decoded
Decoded + place in the answer → spelling tree → one short forward over all its nodes, on top of the KV cache → log P(word)

We keep the last hidden state of every position instead of its logits (8 kB instead of 600 kB at Qwen3-VL-8B's size), so the
distribution at any place of the answer is one matrix product away, before any mask. All spellings of all words are scored in a single
forward: the tree's nodes are appended after the answer with an attention mask that shows each node the prompt, the answer up to the
place, and its own ancestors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from transformers import DynamicCache

from cac_align.vlm.constrained import SchemaConstraint
from cac_align.vlm.spelling import COVER, SpellingTree, spelling_tree


@dataclass(eq=False)
class Decoded:
    """What greedy decoding of one batch left behind.

    tokens: generated ids per row, end token excluded. ended: whether the row wrote its end token. errors: why a row failed, or None.
    hidden: (B, N, H); ``hidden[b, n]`` predicts generated token n of row b. cache: keys and values of the prompt and the answer.
    prompt_mask: (B, L). next_position: (B,) M-RoPE position of the first generated token. cached: answer tokens in the cache.
    """

    tokens: list[list[int]]
    ended: list[bool]
    errors: list[str | None]
    hidden: Float[torch.Tensor, "B N H"]
    cache: Any
    prompt_mask: Int64[torch.Tensor, "B L"]
    next_position: Int64[torch.Tensor, " B"]
    cached: int


@torch.inference_mode()
def decode(
    model: Any,
    batch: dict[str, torch.Tensor],
    *,
    limits: Sequence[int],
    eos: Sequence[int],
    banned: Bool[torch.Tensor, " V"],
    constraint: SchemaConstraint | None = None,
    matchers: Sequence[Any] = (),
) -> Decoded:
    """Greedy answers for a left-padded batch (``encode``), row b up to ``limits[b]`` tokens.

    banned: tokens that may never be written (vision placeholders and the like would break the next forward pass).
    constraint, matchers: the schema and one started matcher per row. A row whose logits are not finite stops with an error.
    """
    core = model.model
    mask = batch["attention_mask"]
    rows, length = mask.shape
    positions, deltas = core.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch.get("image_grid_thw"),
        video_grid_thw=batch.get("video_grid_thw"),
        attention_mask=mask,
    )
    next_position = mask.sum(1) + deltas.squeeze(1)
    cache = DynamicCache(config=model.config.text_config)
    state = core(**batch, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    hidden = [state]
    tokens: list[list[int]] = [[] for _ in range(rows)]
    ended, errors = [False] * rows, [None] * rows
    running = list(matchers) if constraint else []
    visible = torch.nn.functional.pad(mask, (0, max(limits)), value=1)
    for step in range(max(limits)):
        logits = model.lm_head(state).float()
        finite = torch.isfinite(logits).all(1).tolist()
        done = _done(tokens, limits, ended, errors)
        for row in range(rows):
            if not finite[row] and not done[row]:
                errors[row] = f"the model produced NaN or infinite logits at answer token {step}; check its weights and dtype"
        logits.masked_fill_(banned, -torch.inf)
        done = _done(tokens, limits, ended, errors)
        if constraint:
            constraint.mask_(logits, [None if over else matcher for over, matcher in zip(done, running, strict=True)])
        best, chosen = logits.max(1)
        for row, (value, token) in enumerate(zip(best.tolist(), chosen.tolist(), strict=True)):
            if done[row]:
                continue
            if value == -torch.inf:
                errors[row] = f"no token is allowed by the schema at answer token {step}"
            elif token in eos:
                ended[row] = True
            else:
                tokens[row].append(token)
                if constraint:
                    constraint.accept(running[row], token)
        if all(_done(tokens, limits, ended, errors)):
            break
        state = core.language_model(
            inputs_embeds=core.get_input_embeddings()(chosen)[:, None],
            attention_mask=visible[:, : length + step + 1],
            position_ids=(next_position + step)[None, :, None].expand(3, rows, 1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        hidden.append(state)
    return Decoded(tokens, ended, errors, torch.stack(hidden, 1), cache, mask, next_position, len(hidden) - 1)


def _done(tokens: list[list[int]], limits: Sequence[int], ended: list[bool], errors: list[str | None]) -> list[bool]:
    state = zip(tokens, limits, ended, errors, strict=True)
    return [len(written) >= limit or end or error is not None for written, limit, end, error in state]


@torch.inference_mode()
def word_log_p(
    model: Any, tokenizer: Any, decoded: Decoded, places: Sequence[tuple[int, bytes] | None], words: Sequence[str]
) -> list[dict[str, float] | None]:
    """log P(word | everything before its place) per row, over all spellings, from unmasked logits (Eq. 7's two numbers).

    places: per row (index of the answer token at which the word starts, bytes of that token before the word), or None: not asked.
    A place right after the last token is fine if the model has looked there. None comes back where it has not.
    """
    trees: dict[int, SpellingTree] = {}
    for row, place in enumerate(places):
        if place is None or place[0] >= decoded.hidden.shape[1]:
            continue
        root = model.lm_head(decoded.hidden[row, place[0]]).float().log_softmax(-1)
        trees[row] = spelling_tree(tokenizer, words, forced=place[1], first_log_p=lambda ids, root=root: root[list(ids)].tolist())
    at_node = _node_states(model, decoded, places, trees)
    answers: list[dict[str, float] | None] = [None] * len(places)
    for row, tree in trees.items():
        nodes = [at_node[row][node] for node in range(1, len(tree.tokens))]
        logits = model.lm_head(torch.stack([decoded.hidden[row, places[row][0]], *nodes])).float()
        norms = logits.logsumexp(-1)

        def next_log_p(node: int, tokens: Sequence[int], logits: Any = logits, norms: Any = norms) -> list[float]:
            return (logits[node, list(tokens)] - norms[node]).tolist()

        log_p = tree.log_p(next_log_p)
        cover = log_p.pop(COVER, 0.0)
        answers[row] = {word: value - cover for word, value in log_p.items()}
    return answers


def _node_states(
    model: Any, decoded: Decoded, places: Sequence[tuple[int, bytes] | None], trees: dict[int, SpellingTree]
) -> dict[int, dict[int, torch.Tensor]]:
    """The last hidden state at every node but the root, per row: from the answer itself where it wrote that node, else one forward."""
    states: dict[int, dict[int, torch.Tensor]] = {}
    missing = False
    for row, tree in trees.items():
        start = places[row][0]
        written = {0: 0}  # node → how many tokens of the answer lead to it
        states[row] = {}
        for node in range(1, len(tree.tokens)):
            at = written.get(tree.parents[node])
            if at is None or start + at + 1 >= decoded.hidden.shape[1]:
                continue
            if decoded.tokens[row][start + at : start + at + 1] == [tree.tokens[node]]:
                written[node] = at + 1
                states[row][node] = decoded.hidden[row, start + at + 1]
        missing = missing or len(states[row]) < len(tree.tokens) - 1
    if not missing:
        return states
    device, dtype = decoded.hidden.device, decoded.hidden.dtype
    rows, length = decoded.prompt_mask.shape
    width = max(len(tree.tokens) - 1 for tree in trees.values())
    ids = torch.zeros((rows, width), dtype=torch.long)
    depth = torch.zeros((rows, width), dtype=torch.long)
    sees = torch.zeros((rows, width, length + decoded.cached + width), dtype=torch.bool)
    sees[:, :, length + decoded.cached :] = torch.eye(width, dtype=torch.bool)  # padding nodes see themselves: no empty softmax
    sees[:, :, :length] = decoded.prompt_mask.bool().cpu()[:, None]
    for row, tree in trees.items():
        start = places[row][0]
        sees[row, :, length : length + start] = True
        for node in range(1, len(tree.tokens)):
            ids[row, node - 1], depth[row, node - 1] = tree.tokens[node], start + tree.depths[node] - 1
            if tree.parents[node]:
                own = sees[row, tree.parents[node] - 1, length + decoded.cached :]
                sees[row, node - 1, length + decoded.cached :] |= own
    ids, depth, sees = ids.to(device), depth.to(device), sees.to(device)
    bias = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
    core = model.model
    out = core.language_model(
        inputs_embeds=core.get_input_embeddings()(ids),
        attention_mask=bias[:, None],
        position_ids=(decoded.next_position[:, None] + depth)[None].expand(3, rows, width),
        past_key_values=decoded.cache,
        use_cache=True,
    ).last_hidden_state
    decoded.cache.crop(-width)
    for row, tree in trees.items():
        for node in range(1, len(tree.tokens)):
            states[row].setdefault(node, out[row, node - 1])
    return states
