"""What the ranks of a distributed run tell each other about their scores: groups spread over ranks, and
the run's count.

scores of this rank's n-th call → post → (only where one is missing) collect → the n-th calls of all ranks

It uses the key-value store that ``torch.distributed`` was initialised with, and no collective
operation: hosts score in threads of their own while the main thread trains, and two collectives in
flight at once would be mixed up. A rank waits for the others only when it has a missing score.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

Member = tuple[str, "float | None"]
"""One video of a call: its group, and its score (None where there is none)."""

_POLL_S = 0.02


class Ranks:
    """The ranks that score with the same reward.

    name: equal on all ranks for the same reward and options, and for nothing else. Thread-safe. A
    rank's calls are numbered in the order in which they are begun; the n-th calls of all ranks
    belong together, as they do in hosts whose ranks sample in step.
    """

    def __init__(self, name: str) -> None:
        self.name, self._calls, self._lock = name, 0, threading.Lock()

    def begin_call(self) -> int:
        """The number of a call that begins now."""
        with self._lock:
            self._calls += 1
            return self._calls

    @property
    def world_size(self) -> int:
        """How many ranks there are; 1 where ``torch.distributed`` is not initialised."""
        distributed = _distributed()
        return 1 if distributed is None else distributed.get_world_size()

    def post(self, call: int, members: Sequence[Member]) -> None:
        """Tell the other ranks this rank's scores of a call."""
        if (distributed := _distributed()) is None:
            return
        store, prefix = _store(distributed), f"cac_align/{self.name}/{call}"
        store.set(f"{prefix}/{distributed.get_rank()}", json.dumps(list(members)))
        store.add(f"{prefix}/posted", 1)

    def collect(self, call: int, timeout_s: float) -> list[Member]:
        """The members of this call on all ranks.

        Raises ``TimeoutError`` when a rank has not posted its own within ``timeout_s`` seconds.
        """
        distributed = _distributed()
        assert distributed is not None
        store, prefix, world_size = _store(distributed), f"cac_align/{self.name}/{call}", distributed.get_world_size()
        ends = time.monotonic() + timeout_s
        while (posted := store.add(f"{prefix}/posted", 0)) < world_size:
            if time.monotonic() > ends:
                raise TimeoutError(f"only {posted} of {world_size} ranks made call {call} within {timeout_s:g} s")
            time.sleep(_POLL_S)
        rows = [json.loads(store.get(f"{prefix}/{rank}")) for rank in range(world_size)]
        return [(group, value) for row in rows for group, value in row]

    def add_to_count(self, seen: int, unscored: int, evaluation: bool) -> tuple[int, int]:
        """Add a call's numbers to those of all ranks; returns the (seen, unscored) of the run so far."""
        distributed = _distributed()
        assert distributed is not None
        store, prefix = _store(distributed), f"cac_align/{self.name}/{'evaluation' if evaluation else 'training'}"
        return store.add(f"{prefix}/seen", seen), store.add(f"{prefix}/unscored", unscored)


def _distributed() -> Any:
    """``torch.distributed`` where this process is one of several ranks, else None; torch is never imported
    here.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed if distributed.get_world_size() > 1 else None


def _store(distributed: Any) -> Any:
    return distributed.distributed_c10d._get_default_store()
