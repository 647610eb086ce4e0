"""Keys and values of many answers, each in a slot of its own: row = slot, column = token.

aim (which slots, from which columns)
    → the model's forward writes its new keys and values there and reads
the slots' first columns

Every sequence starts at column 0 of its slot and grows to the right. So lengths may differ, the
slot of a finished answer is taken by the next prompt without copying, and an invalid column is
simply overwritten. The attention mask alone decides which columns a query sees. The tensors grow by
at least a quarter, one layer at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (slots, heads, columns, head size). Its ``SlotCache`` says where
    to write.
    """

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        _, heads, _, size = key_states.shape
        shape = (self._cache.num_slots, heads, self._cache.num_columns, size)
        self.keys, self.values = key_states.new_zeros(shape), value_states.new_zeros(shape)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (R, heads, Q, size) where the cache is aimed; return what the rows can see, (R,
        heads, width, size).
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        aim = self._cache
        rows, columns = aim.rows[:, None], aim.columns
        self.keys[rows, :, columns] = key_states.transpose(1, 2)
        self.values[rows, :, columns] = value_states.transpose(1, 2)
        if aim.from_start:  # no earlier tokens: these see only each other
            return key_states, value_states
        if aim.first_rows:
            return self.keys[: len(aim.rows), :, : aim.width], self.values[: len(aim.rows), :, : aim.width]
        return self.keys[aim.rows, :, : aim.width], self.values[aim.rows, :, : aim.width]

    def resize(self, num_slots: int, num_columns: int) -> None:
        """Keep the first slots and columns and add empty ones at the ends."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            if (old.shape[0], old.shape[2]) == (num_slots, num_columns):
                continue
            new = old.new_zeros((num_slots, old.shape[1], num_columns, old.shape[3]))
            slots, columns = min(num_slots, old.shape[0]), min(num_columns, old.shape[2])
            new[:slots, :, :columns] = old[:slots, :, :columns]
            setattr(self, name, new)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` columns of one slot over those of another."""
        if self.keys is not None and self.values is not None:
            self.keys[target, :, :length] = self.keys[source, :, :length]
            self.values[target, :, :length] = self.values[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0  # used only when there are no earlier tokens; every other forward brings its own mask

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The keys and values of ``num_slots`` sequences through all layers of a model; a transformers
    ``Cache``.

    Call ``aim`` before every forward pass. Nothing is allocated before the first one.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_slots = self.num_columns = 0
        self.rows = self.columns = torch.empty(0, dtype=torch.long)
        self.width, self.from_start, self.first_rows = 0, False, False
        self._slot_layers = [SlotLayer(self) for _ in range(num_layers)]
        super().__init__(layers=[*self._slot_layers])

    def aim(self, rows: list[int], columns: Int64[torch.Tensor, "R Q"], *, from_start: bool = False) -> None:
        """The next forward writes row r's Q tokens into slot ``rows[r]`` at ``columns[r]``.

        from_start: all rows begin at column 0, so attention is causal and needs no mask.
        """
        self.rows = torch.tensor(rows, device=columns.device)
        self.columns = columns
        self.width = int(columns.max()) + 1
        self.from_start, self.first_rows = from_start, rows == list(range(len(rows)))

    def reserve(self, num_slots: int, num_columns: int) -> None:
        """Make room for this many slots and columns; columns grow by at least a quarter, so that
        growing stays rare.
        """
        if num_slots <= self.num_slots and num_columns <= self.num_columns:
            return
        if num_columns > self.num_columns:
            num_columns = max(num_columns, self.num_columns * 5 // 4)
        self.resize(max(num_slots, self.num_slots), max(num_columns, self.num_columns))

    def resize(self, num_slots: int, num_columns: int) -> None:
        """Change to exactly this many slots and columns; what lies outside is dropped."""
        for layer in self._slot_layers:
            layer.resize(num_slots, num_columns)
        self.num_slots, self.num_columns = num_slots, num_columns  # last, because memory may run out between two layers

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` columns of one slot over those of another."""
        for layer in self._slot_layers:
            layer.move(source, target, length)
