"""The judging engine: many answers are decoded together, one per slot; a free slot is filled again
at once.

take (waiting prompts) → prefill into free slots → step: one token per answer → …
    → an answer ends → finish
→ its slot is free

It avoids repeated work:

- A prompt that continues what a slot holds (turn 2 after turn 1 in one chat, a retry) keeps the
  keys and values of the common beginning.
- The distribution at any place of an answer is lm_head of a hidden state that is kept. So the
  readout needs no second pass, sees the logits before any mask, and is computed in float32 whatever
  the model's dtype: a bfloat16 logit of 20 has steps of 1/8.
- The other spellings of the words (``ab`` + ``normal`` where the answer says ``normal``) are
  computed with the next step, as further queries of the answer's row. They form a tree of tokens
  that see the answer up to the place and their own ancestors, which gives the two numbers of Eq. 7
  exactly. Only an answer whose place is at its very end needs one more step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64

from cac_align.vlm.engine.row import Answer, Prompt, Row, common_tokens, group_for_prefill, new_pixels
from cac_align.vlm.engine.slots import SlotCache
from cac_align.vlm.engine.spelling import COVER, spelling_tree, text_and_ends, token_at, vocabulary

log = logging.getLogger(__name__)

# Steps that a free slot waits for further free slots: one prefill of four prompts is cheaper than four of one.
MAX_WAIT_STEPS = 8

# Tokens between two searches for the readout's place in an unfinished answer.
LOCATE_EVERY = 16

# Rows of lm_head that are converted to float32 together: 128 MiB for an 8B model.
LM_HEAD_CHUNK = 8192


def float_logits(head: torch.nn.Module, states: Float[torch.Tensor, "N H"]) -> Float[torch.Tensor, "N V"]:
    """lm_head(states), computed in float32 when the head is a plain linear layer (not quantised or
    adapted).
    """
    if type(head) is not torch.nn.Linear or head.weight.dtype == torch.float32:
        return head(states).float()
    bias = torch.zeros((), device=states.device) if head.bias is None else head.bias.float()
    return torch.cat([states.float() @ part.float().T for part in head.weight.split(LM_HEAD_CHUNK)], 1) + bias


class Engine:
    """Decodes answers on one model, one call of ``run`` at a time; not thread-safe.

    model: a Qwen3-VL. slots: limit of answers decoded together. eos: ids of the end tokens. banned:
    mask of the tokens that are never written.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, slots: int, eos: Sequence[int], banned: Bool[torch.Tensor, " V"]
    ) -> None:
        self._model, self._tokenizer, self._eos, self._banned = model, tokenizer, frozenset(eos), banned
        self._table = vocabulary(tokenizer)
        self._slots = self._limit = slots
        self._cache = SlotCache(len(model.model.language_model.layers))
        self._rows: list[Row | None] = []
        self._held: dict[int, Row] = {}  # free slot → the finished answer whose keys and values it holds
        self._requeued: list[Prompt] = []  # prompts that lost their slot because memory ran out

    @torch.inference_mode()
    def run(self, take: Callable[[int], list[Prompt]], finish: Callable[[Prompt, Answer], None]) -> None:
        """Answer all prompts until ``take`` returns none and every answer is finished.

        take(n): at most n waiting prompts. finish(prompt, answer): called when an answer ends; it
        may make further prompts available. A prompt that fails is finished with an error.
        """
        waited = 0
        while True:
            free = self._limit - self._running()
            idle = free == self._limit
            if free and (idle or 4 * free >= self._limit or waited >= MAX_WAIT_STEPS):
                prompts = [self._requeued.pop() for _ in range(min(free, len(self._requeued)))]
                prompts += take(free - len(prompts))
                if not prompts and idle:
                    return
                self._prefill(prompts, finish)
                self._close_gaps()
                waited = 0
            waited = waited + 1 if free else 0
            if self._running():
                self._run_guarded(self._step, [row for row in self._rows if row], finish)
            self._collect(finish)

    def _running(self) -> int:
        return sum(row is not None for row in self._rows)

    # ---- prompts in ------------------------------------------------------------------------------

    def _prefill(self, prompts: Sequence[Prompt], finish: Callable[[Prompt, Answer], None]) -> None:
        """Put prompts into slots and compute them in as few forwards as memory allows."""
        fresh: list[Row] = []
        for prompt in sorted(prompts, key=lambda prompt: prompt.after is None):
            slot, common = self._slot_for(prompt)
            self._held.pop(slot, None)
            matcher = prompt.constraint.start(prompt.prefix) if prompt.constraint else None
            row = Row(prompt, matcher, length=common, reused=common)
            self._rows[slot : slot + 1] = [row]
            fresh.append(row)
        for group in group_for_prefill(fresh):
            self._run_guarded(lambda group=group: self._prefill_group(group), group, finish)

    def _slot_for(self, prompt: Prompt) -> tuple[int, int]:
        """A free slot, preferably one that holds the prompt's beginning, and how many of its tokens
        it holds.
        """
        for slot, row in self._held.items():
            if prompt.after is not None and row.prompt.tag is prompt.after and (common := common_tokens(row, prompt)):
                return slot, common
        gaps = [number for number, row in enumerate(self._rows) if row is None]
        return next((gap for gap in gaps if gap not in self._held), gaps[0] if gaps else len(self._rows)), 0

    def _prefill_group(self, group: Sequence[Row]) -> None:
        model, core = self._model, self._model.model
        device = core.language_model.norm.weight.device
        news = [row.prompt.length - row.reused for row in group]
        ids, positions, pixels = [], [], {}
        for row, new in zip(group, news, strict=True):
            inputs, pad = row.prompt.inputs, max(news) - new
            place, _ = core.get_rope_index(
                inputs["input_ids"],
                mm_token_type_ids=inputs["mm_token_type_ids"],
                image_grid_thw=inputs.get("image_grid_thw"),
                video_grid_thw=inputs.get("video_grid_thw"),
            )
            row.next_position = int(place.max()) + 1
            positions.append(torch.nn.functional.pad(place[:, :, row.reused :], (0, pad)))
            ids.append(torch.nn.functional.pad(inputs["input_ids"][:, row.reused :], (0, pad)))
            for key, value in new_pixels(inputs, row.reused, core.config.vision_config.spatial_merge_size).items():
                pixels.setdefault(key, []).append(value)
        columns = torch.tensor([[row.reused] for row in group], device=device) + torch.arange(max(news), device=device)
        from_start = not any(row.reused for row in group)
        self._cache.reserve(len(self._rows), int(columns.max()) + 1 + MAX_WAIT_STEPS)
        self._cache.aim([self._rows.index(row) for row in group], columns, from_start=from_start)
        visible = torch.arange(self._cache.width, device=device)
        states = core(
            input_ids=torch.cat(ids).to(device),
            attention_mask=None if from_start else (visible <= columns[:, :, None])[:, None],
            position_ids=torch.cat(positions, 1).to(device),
            past_key_values=self._cache,
            use_cache=True,
            **{key: torch.cat(value).to(device) for key, value in pixels.items()},
        ).last_hidden_state
        last = states[torch.arange(len(group), device=device), torch.tensor(news, device=device) - 1]
        del states
        self._choose(group, last, model.lm_head(last))

    # ---- one token per answer --------------------------------------------------------------------

    def _step(self) -> None:
        """One forward: every unfinished answer's last token, and the tree nodes whose states are
        missing.
        """
        model, core = self._model, self._model.model
        rows, held = self._rows, self._held
        device = core.language_model.norm.weight.device
        asked = [row.missing_nodes() if row else [] for row in rows]
        width = 1 + max(map(len, asked))
        # An empty row writes after what its slot holds, because a later prompt may continue it.
        lengths = [row.length if row else held[slot].length if slot in held else 0 for slot, row in enumerate(rows)]
        self._cache.reserve(len(rows), max(lengths) + width)
        ids = [[row.tokens[-1] if row and row.tokens else 0] + [0] * (width - 1) for row in rows]
        places = [[row.next_position + len(row.tokens) - 1 if row else 0] + [0] * (width - 1) for row in rows]
        for number, nodes in enumerate(asked):
            for query, node in enumerate(nodes, start=1):
                row = rows[number]
                assert row is not None
                place, tree = row.readout_tree
                ids[number][query] = tree.tokens[node]
                places[number][query] = row.next_position + place + tree.depths[node] - 1
        columns = torch.tensor(lengths, device=device)[:, None] + torch.arange(width, device=device)
        self._cache.aim(list(range(len(rows))), columns)
        visible = torch.arange(self._cache.width, device=device) <= columns[:, :1]
        mask = visible[:, None] if width == 1 else self._tree_mask(visible, asked, columns)
        states = core.language_model(
            inputs_embeds=core.get_input_embeddings()(torch.tensor(ids, device=device)),
            attention_mask=mask[:, None],
            position_ids=torch.tensor(places, device=device)[None].expand(3, len(rows), width),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        for number, nodes in enumerate(asked):
            for query, node in enumerate(nodes, start=1):
                row = rows[number]
                assert row is not None
                row.nodes[node] = states[number, query].clone()
        writing = {number: row for number, row in enumerate(rows) if row and not row.complete}
        if writing:
            states = states[:, 0] if len(writing) == len(rows) else states[list(writing), 0]
            self._choose(list(writing.values()), states, model.lm_head(states))

    def _tree_mask(
        self, visible: Bool[torch.Tensor, "S W"], asked: Sequence[Sequence[int]], columns: Int64[torch.Tensor, "S Q"]
    ) -> Bool[torch.Tensor, "S Q W"]:
        """Query 0 sees its whole answer; a tree node sees the answer before the place, its
        ancestors and itself.
        """
        mask = torch.zeros((*columns.shape, visible.shape[1]), dtype=torch.bool, device=visible.device)
        mask[:, 0] = visible
        mask.scatter_(2, columns[:, :, None], True)  # padding queries see themselves, to avoid an empty softmax
        for number, nodes in enumerate(asked):
            row, query_of = self._rows[number], {node: query for query, node in enumerate(nodes, start=1)}
            for node, query in query_of.items():
                assert row is not None
                place, tree = row.readout_tree
                before, parent = row.prompt.length + place, tree.parents[node]
                if parent in query_of:
                    mask[number, query] |= mask[number, query_of[parent]]
                else:  # the root, or a node that the answer itself went through
                    mask[number, query, : before + tree.depths[parent]] = True
        return mask

    def _choose(
        self, rows: Sequence[Row], states: Float[torch.Tensor, "N H"], logits: Float[torch.Tensor, "N V"]
    ) -> None:
        """Choose the next token of each row greedily. states: the hidden states that gave the
        logits.

        A row with non-finite logits, or whose schema allows no token, stops with an error. No row
        changes before all tokens are known, so a failure until then leaves all rows as they were.
        """
        logits = logits.float()
        finite = torch.isfinite(logits.sum(1)).tolist()
        logits.masked_fill_(self._banned, -torch.inf)
        constraint = next((row.prompt.constraint for row in rows if row.matcher), None)
        if constraint:  # a mask depends on tokenizer and matcher only, so one row's constraint can apply all masks
            constraint.mask_(logits, [row.matcher for row in rows])
        best, chosen = logits.max(1)
        for row, state, fine, value, token in zip(rows, states, finite, best.tolist(), chosen.tolist(), strict=True):
            row.updating, complete = True, row.complete
            row.length = row.prompt.length + len(row.tokens)
            row.states.append(state)
            if complete:  # no token is wanted (limit 0)
                pass
            elif not fine:
                row.error = (
                    f"the model produced NaN or infinite logits at answer token {len(row.tokens)}; "
                    "check its weights and dtype"
                )
            elif value == -torch.inf:
                row.error = f"no token is allowed by the schema at answer token {len(row.tokens)}"
            elif token in self._eos:
                row.ended = True
            else:
                row.tokens.append(token)
                if row.matcher:
                    row.prompt.constraint.accept(row.matcher, token)
        for row in rows:
            if row.prompt.readout is not None and (row.complete or len(row.tokens) % LOCATE_EVERY == 0):
                self._locate(row)
            row.updating = False

    # ---- probabilities of words ------------------------------------------------------------------

    def _locate(self, row: Row) -> None:
        """Find the readout's place in the answer so far and make the tree of spellings there."""
        place = None if row.error else self._find_place(row)
        if place == row.place and row.tree is not None:
            self._fill_known_nodes(row)
            return
        row.place, row.tree, row.nodes = place, None, {}
        readout = row.prompt.readout
        if readout is None or place is None or place[0] >= len(row.states):
            return
        root = self._model.lm_head(row.states[place[0]]).float().log_softmax(-1)
        row.tree = spelling_tree(
            self._tokenizer,
            readout.words,
            forced=place[1],
            first_log_p=lambda ids: root[torch.tensor(ids, dtype=torch.long, device=root.device)].tolist(),
        )
        self._fill_known_nodes(row)

    def _fill_known_nodes(self, row: Row) -> None:
        """Give the tree nodes that the answer itself went through the hidden states that are known
        from it.
        """
        start, tree = row.readout_tree
        depth = {0: 0}
        for node in range(1, len(tree.tokens)):
            at = depth.get(tree.parents[node])
            if at is not None and start + at + 1 < len(row.states) and row.tokens[start + at] == tree.tokens[node]:
                depth[node] = at + 1
                row.nodes.setdefault(node, row.states[start + at + 1])

    def _find_place(self, row: Row) -> tuple[int, bytes] | None:
        """Index of the answer token in which the word starts, and its bytes before the word; None
        without such a place.
        """
        text, _ = text_and_ends(self._table, row.tokens)
        readout, prefix = row.prompt.readout, row.prompt.prefix
        offset = None if readout is None else readout.locate(prefix + text)
        if offset is None or offset < len(prefix):
            return None
        return token_at(self._table, row.tokens, offset - len(prefix))

    def _log_p(self, row: Row) -> Mapping[str, float] | None:
        """log P(word) over all spellings, from unmasked logits; None when the answer has no such
        place.
        """
        if row.tree is None:
            return None
        place, tree = row.readout_tree
        states = [row.states[place], *(row.nodes[node] for node in range(1, len(tree.tokens)))]
        logits = float_logits(self._model.lm_head, torch.stack(states))
        norms = logits.logsumexp(-1)
        log_p = tree.log_p(lambda node, tokens: (logits[node, list(tokens)] - norms[node]).tolist())
        cover = log_p.pop(COVER, 0.0)
        return {word: value - cover for word, value in log_p.items()}

    # ---- answers out -----------------------------------------------------------------------------

    def _collect(self, finish: Callable[[Prompt, Answer], None]) -> None:
        """Finish every complete answer whose readout has all its states; its slot becomes free and
        keeps its content.
        """
        for slot, row in enumerate(self._rows):
            if row is None or not row.complete or (row.error is None and row.missing_nodes()):
                continue
            self._rows[slot] = None
            self._held[slot] = row
            text, log_p = text_and_ends(self._table, row.tokens)[0], None if row.error else self._log_p(row)
            row.states, row.nodes, row.tree = [], {}, None
            finish(row.prompt, Answer(tuple(row.tokens), text, row.ended, log_p, row.error, row.reused))

    def _close_gaps(self) -> None:
        """Move the last answers into free slots before them, so that a step computes no empty rows."""
        while self._rows and self._rows[-1] is None:
            self._held.pop(len(self._rows) - 1, None)
            self._rows.pop()
        for gap in [number for number, row in enumerate(self._rows) if row is None]:
            if gap >= len(self._rows) - 1:
                break
            last = self._rows[-1]
            assert last is not None  # empty rows at the end were removed above
            self._cache.move(len(self._rows) - 1, gap, last.length)
            self._held.pop(gap, None)
            self._rows[gap] = self._rows.pop()
            while self._rows and self._rows[-1] is None:
                self._held.pop(len(self._rows) - 1, None)
                self._rows.pop()

    # ---- failures --------------------------------------------------------------------------------

    def _run_guarded(
        self, work: Callable[[], None], rows: Sequence[Row], finish: Callable[[Prompt, Answer], None]
    ) -> None:
        """Do some work for these rows. If it fails, half of them start again later; a single row
        ends with the error.

        A failed forward has changed no row, and its columns are simply written again. A row whose
        token was just being added starts again from its prompt.
        """
        fault = _failure_of(work)
        if fault is None:
            return
        full, others = fault.startswith("out of memory"), self._running() - len(rows)
        if len(rows) == 1 and not (full and others):
            self._rows[self._rows.index(rows[0])] = None
            self._limit = (
                self._limit if full else self._slots
            )  # the prompt itself failed, so all slots may be used again
            finish(rows[0].prompt, Answer((), "", False, None, fault, rows[0].reused))
            return
        kept = (len(rows) + 1) // 2 if len(rows) > 1 else 0
        self._limit = max(1, others + kept)
        log.warning("%d answers at once failed, going on with at most %d: %s", others + len(rows), self._limit, fault)
        for number, row in enumerate(rows):
            if number >= kept or row.updating or not row.states:  # after a failed step the first half continues
                self._rows[self._rows.index(row)] = None
                self._requeued.append(row.prompt)
        self._close_gaps()
        _failure_of(lambda: self._cache.resize(max(1, len(self._rows)), self._cache.num_columns))


def _failure_of(work: Callable[[], None]) -> str | None:
    """None, or why the work failed. The exception ends here, so that its tensors are freed before
    another try.
    """
    try:
        work()
        return None
    except (torch.OutOfMemoryError, MemoryError) as error:
        fault = f"out of memory: {error}"
    except RuntimeError as error:
        fault = f"out of memory: {error}" if "allocate memory" in str(error) else f"the model failed: {error}"
        if not fault.startswith("out of memory"):
            log.warning("model failure", exc_info=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return fault
