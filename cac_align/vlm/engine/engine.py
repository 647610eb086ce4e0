"""The judging engine: many answers decoded together, one per slot; a slot that falls free is filled again at once.

take (prompts that wait) → prefill into free slots → step: one token for every answer → … → an answer ends → finish → its slot is free

Nothing is computed twice and nothing twice in sequence:
- A prompt that goes on from what a slot holds (turn 2 after turn 1 in one chat, a retry) keeps the common beginning's keys and values.
- The distribution at any place of an answer is lm_head(its last hidden state), which is kept: before any mask, and for the readout in
  float32 whatever the model computes in, because a bfloat16 logit of 20 comes in steps of 1/8.
- The words' other spellings (``ab`` + ``normal`` where the answer says ``normal``) ride along with the next step as further queries
  of their answer's row: a tree of tokens that see the answer up to the place and their own ancestors (Eq. 7's two numbers, exactly).
  Only an answer whose place is found at its very end stays for one more step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64

from cac_align.vlm.engine.row import Answer, Prompt, Row, common_tokens, groups, new_pixels
from cac_align.vlm.engine.slots import SlotCache
from cac_align.vlm.engine.spelling import COVER, spelling_tree, text_and_ends, token_at, vocabulary

log = logging.getLogger(__name__)

PATIENCE = 8
"""Steps a free slot waits for company, because one prefill of four prompts costs less than four of one."""

LOOK_EVERY = 16
"""Tokens between two looks for the readout's place in an answer that still runs."""


WORDS_AT_ONCE = 8192
"""Rows of the word table that are turned into float32 together: 128 MiB of an 8B model's."""


def float_logits(head: torch.nn.Module, states: Float[torch.Tensor, "N H"]) -> Float[torch.Tensor, "N V"]:
    """lm_head(states) with products and sums in float32. A head that is not a plain linear layer (quantised, adapted) is asked as it is."""
    if type(head) is not torch.nn.Linear or head.weight.dtype == torch.float32:
        return head(states).float()
    bias = torch.zeros((), device=states.device) if head.bias is None else head.bias.float()
    return torch.cat([states.float() @ part.float().T for part in head.weight.split(WORDS_AT_ONCE)], 1) + bias


class Engine:
    """Decodes on one model. One engine serves one call after another; it is not thread-safe.

    model: a Qwen3-VL. slots: answers decoded together at most. eos: end tokens. banned: tokens that may never be written.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, slots: int, eos: Sequence[int], banned: Bool[torch.Tensor, " V"]
    ) -> None:
        self._model, self._tokenizer, self._eos, self._banned = model, tokenizer, frozenset(eos), banned
        self._table = vocabulary(tokenizer)
        self._slots = self._limit = slots
        self._cache = SlotCache(len(model.model.language_model.layers))
        self._rows: list[Row | None] = []
        self._held: dict[int, Row] = {}  # free slot → the finished answer whose keys and values it still holds
        self._again: list[Prompt] = []  # prompts that lost their slot to a lack of memory

    @torch.inference_mode()
    def run(self, take: Callable[[int], list[Prompt]], finish: Callable[[Prompt, Answer], None]) -> None:
        """Answer every prompt that ``take(n)`` gives (at most n; none when nothing waits), until there are none and all are finished.

        finish(prompt, answer) may make further prompts available to ``take``. A prompt that fails is finished with an error.
        """
        waited = 0
        while True:
            free = self._limit - self._running()
            idle = free == self._limit
            if free and (idle or 4 * free >= self._limit or waited >= PATIENCE):
                prompts = [self._again.pop() for _ in range(min(free, len(self._again)))]
                prompts += take(free - len(prompts))
                if not prompts and idle:
                    return
                self._prefill(prompts, finish)
                self._close_gaps()
                waited = 0
            waited = waited + 1 if free else 0
            if self._running():
                self._guard(self._step, [row for row in self._rows if row], finish)
            self._collect(finish)

    def _running(self) -> int:
        return sum(row is not None for row in self._rows)

    # ---- prompts in -----------------------------------------------------------------------------------------------------

    def _prefill(self, prompts: Sequence[Prompt], finish: Callable[[Prompt, Answer], None]) -> None:
        """Put prompts into slots, each into the one that holds its beginning where there is one; as few forwards as memory bears."""
        fresh: list[Row] = []
        for prompt in sorted(prompts, key=lambda prompt: prompt.after is None):
            slot, common = self._slot_for(prompt)
            self._held.pop(slot, None)
            matcher = prompt.constraint.start(prompt.begun) if prompt.constraint else None
            row = Row(prompt, matcher, length=common, reused=common)
            self._rows[slot : slot + 1] = [row]
            fresh.append(row)
        for group in groups(fresh):
            self._guard(lambda group=group: self._prefill_group(group), group, finish)

    def _slot_for(self, prompt: Prompt) -> tuple[int, int]:
        """(a free slot, how many of the prompt's tokens it holds already)."""
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
        self._cache.reserve(len(self._rows), int(columns.max()) + 1 + PATIENCE)
        self._cache.aim([self._rows.index(row) for row in group], columns, from_start=from_start)
        seen = torch.arange(self._cache.width, device=device)
        states = core(
            input_ids=torch.cat(ids).to(device),
            attention_mask=None if from_start else (seen <= columns[:, :, None])[:, None],
            position_ids=torch.cat(positions, 1).to(device),
            past_key_values=self._cache,
            use_cache=True,
            **{key: torch.cat(value).to(device) for key, value in pixels.items()},
        ).last_hidden_state
        last = states[torch.arange(len(group), device=device), torch.tensor(news, device=device) - 1]
        del states
        self._choose(group, last, model.lm_head(last))

    # ---- one token for everyone -----------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One forward: every running answer's last token, and the tree nodes that its readout still lacks."""
        model, core = self._model, self._model.model
        rows, held = self._rows, self._held
        device = core.language_model.norm.weight.device
        asked = [row.missing() if row else [] for row in rows]
        width = 1 + max(map(len, asked))
        # An empty row writes behind what its slot holds, which may still be wanted.
        lengths = [row.length if row else held[slot].length if slot in held else 0 for slot, row in enumerate(rows)]
        self._cache.reserve(len(rows), max(lengths) + width)
        ids = [[row.tokens[-1] if row and row.tokens else 0] + [0] * (width - 1) for row in rows]
        places = [[row.next_position + len(row.tokens) - 1 if row else 0] + [0] * (width - 1) for row in rows]
        for number, nodes in enumerate(asked):
            for query, node in enumerate(nodes, start=1):
                row = rows[number]
                ids[number][query] = row.tree.tokens[node]
                places[number][query] = row.next_position + row.place[0] + row.tree.depths[node] - 1
        columns = torch.tensor(lengths, device=device)[:, None] + torch.arange(width, device=device)
        self._cache.aim(list(range(len(rows))), columns)
        seen = torch.arange(self._cache.width, device=device) <= columns[:, :1]
        mask = seen[:, None] if width == 1 else self._tree_mask(seen, asked, columns)
        states = core.language_model(
            inputs_embeds=core.get_input_embeddings()(torch.tensor(ids, device=device)),
            attention_mask=mask[:, None],
            position_ids=torch.tensor(places, device=device)[None].expand(3, len(rows), width),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        for number, nodes in enumerate(asked):
            for query, node in enumerate(nodes, start=1):
                rows[number].nodes[node] = states[number, query].clone()
        writing = [number for number, row in enumerate(rows) if row and not row.written]
        if writing:
            states = states[:, 0] if len(writing) == len(rows) else states[writing, 0]
            self._choose([rows[number] for number in writing], states, model.lm_head(states))

    def _tree_mask(
        self, seen: Bool[torch.Tensor, "S W"], asked: Sequence[Sequence[int]], columns: Int64[torch.Tensor, "S Q"]
    ) -> Bool[torch.Tensor, "S Q W"]:
        """Query 0 sees its whole answer; a tree node the answer before the place, its ancestors among the queries, and itself."""
        mask = torch.zeros((*columns.shape, seen.shape[1]), dtype=torch.bool, device=seen.device)
        mask[:, 0] = seen
        mask.scatter_(2, columns[:, :, None], True)  # padding queries see themselves: no empty softmax
        for number, nodes in enumerate(asked):
            row, query_of = self._rows[number], {node: query for query, node in enumerate(nodes, start=1)}
            for node, query in query_of.items():
                before, parent = row.prompt.length + row.place[0], row.tree.parents[node]
                if parent in query_of:
                    mask[number, query] |= mask[number, query_of[parent]]
                else:  # the root, or a node that the answer itself wrote
                    mask[number, query, : before + row.tree.depths[parent]] = True
        return mask

    def _choose(
        self, rows: Sequence[Row], states: Float[torch.Tensor, "N H"], logits: Float[torch.Tensor, "N V"]
    ) -> None:
        """The next token of each row, greedily. A row whose logits are not finite, or whose schema allows nothing, stops with an error.

        states: where the logits come from. No row moves before every token is known: a failure until then leaves all as they were.
        """
        logits = logits.float()
        finite = torch.isfinite(logits.sum(1)).tolist()
        logits.masked_fill_(self._banned, -torch.inf)
        held = next((row.prompt.constraint for row in rows if row.matcher), None)
        if held:  # a mask depends on the tokenizer and the matcher only, so any row's constraint can apply all of them
            held.mask_(logits, [row.matcher for row in rows])
        best, chosen = logits.max(1)
        for row, state, fine, value, token in zip(rows, states, finite, best.tolist(), chosen.tolist(), strict=True):
            row.torn, complete = True, row.written
            row.length = row.prompt.length + len(row.tokens)
            row.states.append(state)
            if complete:  # nothing is to be written (limit 0)
                pass
            elif not fine:
                row.error = f"the model produced NaN or infinite logits at answer token {len(row.tokens)}; check its weights and dtype"
            elif value == -torch.inf:
                row.error = f"no token is allowed by the schema at answer token {len(row.tokens)}"
            elif token in self._eos:
                row.ended = True
            else:
                row.tokens.append(token)
                if row.matcher:
                    row.prompt.constraint.accept(row.matcher, token)
        for row in rows:
            if row.prompt.readout is not None and (row.written or len(row.tokens) % LOOK_EVERY == 0):
                self._look(row)
            row.torn = False

    # ---- probabilities of words -----------------------------------------------------------------------------------------

    def _look(self, row: Row) -> None:
        """Find the readout's place in what is written; plant its tree there, with the nodes that the answer itself wrote already known."""
        place = None if row.error else self._place(row)
        if place == row.place and row.tree is not None:
            self._walk(row)
            return
        row.place, row.tree, row.nodes = place, None, {}
        if place is None or place[0] >= len(row.states):
            return
        root = self._model.lm_head(row.states[place[0]]).float().log_softmax(-1)
        row.tree = spelling_tree(
            self._tokenizer,
            row.prompt.readout.words,
            forced=place[1],
            first_log_p=lambda ids: root[torch.tensor(ids, dtype=torch.long, device=root.device)].tolist(),
        )
        self._walk(row)

    def _walk(self, row: Row) -> None:
        """Tree nodes along the answer: their hidden states are there already."""
        start = row.place[0]
        depth = {0: 0}
        for node in range(1, len(row.tree.tokens)):
            at = depth.get(row.tree.parents[node])
            if at is not None and start + at + 1 < len(row.states) and row.tokens[start + at] == row.tree.tokens[node]:
                depth[node] = at + 1
                row.nodes.setdefault(node, row.states[start + at + 1])

    def _place(self, row: Row) -> tuple[int, bytes] | None:
        """(index of the answer token at which the word starts, bytes of it before the word); None: no such place in the new text."""
        text, _ = text_and_ends(self._table, row.tokens)
        offset = row.prompt.readout.locate(row.prompt.begun + text)
        if offset is None or offset < len(row.prompt.begun):
            return None
        return token_at(self._table, row.tokens, offset - len(row.prompt.begun))

    def _log_p(self, row: Row) -> Mapping[str, float] | None:
        """log P(word) over all spellings, from unmasked logits; None where the answer has no place for it."""
        if row.tree is None:
            return None
        states = [row.states[row.place[0]], *(row.nodes[node] for node in range(1, len(row.tree.tokens)))]
        logits = float_logits(self._model.lm_head, torch.stack(states))
        norms = logits.logsumexp(-1)
        log_p = row.tree.log_p(lambda node, tokens: (logits[node, list(tokens)] - norms[node]).tolist())
        cover = log_p.pop(COVER, 0.0)
        return {word: value - cover for word, value in log_p.items()}

    # ---- answers out ----------------------------------------------------------------------------------------------------

    def _collect(self, finish: Callable[[Prompt, Answer], None]) -> None:
        """Finish every answer that is complete and whose readout has all it needs. Its slot is free, and holds it until it is taken."""
        for slot, row in enumerate(self._rows):
            if row is None or not row.written or (row.error is None and row.missing()):
                continue
            self._rows[slot] = None
            self._held[slot] = row
            text, log_p = text_and_ends(self._table, row.tokens)[0], None if row.error else self._log_p(row)
            row.states, row.nodes, row.tree = [], {}, None
            finish(row.prompt, Answer(tuple(row.tokens), text, row.ended, log_p, row.error, row.reused))

    def _close_gaps(self) -> None:
        """Nothing waits for the free slots: move the last answers into them, so that a step computes no empty rows."""
        while self._rows and self._rows[-1] is None:
            self._held.pop(len(self._rows) - 1, None)
            self._rows.pop()
        for gap in [number for number, row in enumerate(self._rows) if row is None]:
            if gap >= len(self._rows) - 1:
                break
            self._cache.move(len(self._rows) - 1, gap, self._rows[-1].length)
            self._held.pop(gap, None)
            self._rows[gap] = self._rows.pop()
            while self._rows and self._rows[-1] is None:
                self._held.pop(len(self._rows) - 1, None)
                self._rows.pop()

    # ---- when it does not fit -------------------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], None], rows: Sequence[Row], finish: Callable[[Prompt, Answer], None]) -> None:
        """Do some work for these rows. If it fails, half of them start again later; a single one is finished with the fault.

        A forward that failed midway has moved no answer on: its columns are simply written again. An answer that was being moved on
        when the work failed starts again like one that has no token yet.
        """
        fault = _fault(work)
        if fault is None:
            return
        full, others = fault.startswith("out of memory"), self._running() - len(rows)
        if len(rows) == 1 and not (full and others):
            self._rows[self._rows.index(rows[0])] = None
            self._limit = self._limit if full else self._slots  # it was this prompt's own failure: back to all slots
            finish(rows[0].prompt, Answer((), "", False, None, fault, rows[0].reused))
            return
        kept = (len(rows) + 1) // 2 if len(rows) > 1 else 0
        self._limit = max(1, others + kept)
        log.warning("%d answers at once failed, going on with at most %d: %s", others + len(rows), self._limit, fault)
        for number, row in enumerate(rows):
            if number >= kept or row.torn or not row.states:  # after a failed step the first half goes on as it is
                self._rows[self._rows.index(row)] = None
                self._again.append(row.prompt)
        self._close_gaps()
        _fault(lambda: self._cache.resize(max(1, len(self._rows)), self._cache.num_columns))


def _fault(work: Callable[[], None]) -> str | None:
    """None, or why the work failed. The exception is let go of here, so that its tensors are freed before another try."""
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
