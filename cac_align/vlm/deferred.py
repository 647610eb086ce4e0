"""A model in this process that is loaded when it is first asked.

folder, arguments → ``deferred_vlm`` → its provenance is remembered from an earlier load → ``DeferredVlm``
    → a question that no ledger answers → ``LocalVlm.load``

Whoever finds all scores in a ledger needs no weights in memory, and not even torch. What the
provenance says depends on the checkpoint's files, the arguments, the packages and the GPU, so it is
kept in the user's cache under a hash of all of these.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cac_align.runs.files import atomic_write
from cac_align.vlm.checkpoint_hash import hash_files
from cac_align.vlm.dialogue import Dialogue
from cac_align.vlm.protocol import Conversation, Readout, Reply, Vlm

_PACKAGES = ("torch", "torchvision", "transformers", "tokenizers")
_CODE = ("local.py", "inputs.py", "loading.py", "checkpoint_hash.py")


class DeferredVlm:
    """A Vlm with a known provenance whose model is loaded by ``load`` when it is first asked.

    Thread-safe; not picklable. Raises ``ValueError`` when asked where the loaded model has another
    provenance, and calls ``forget`` first.
    """

    def __init__(
        self, provenance: Mapping[str, str], load: Callable[[], Vlm], forget: Callable[[], None] = lambda: None
    ) -> None:
        self.provenance = dict(provenance)
        self._load, self._forget = load, forget
        self._vlm: Vlm | None = None
        self._lock = threading.Lock()

    def answer(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        schema: Mapping[str, Any] | None = None,
        readout: Readout | None = None,
    ) -> list[Reply]:
        """See ``Vlm.answer``."""
        return self._loaded().answer(conversations, max_new_tokens=max_new_tokens, schema=schema, readout=readout)

    def run_dialogues(self, dialogues: Sequence[Dialogue[Any]], done: Callable[[int, Any], None]) -> None:
        """Run many dialogues at once, as ``LocalVlm`` does."""
        loaded: Any = self._loaded()
        loaded.run_dialogues(dialogues, done)

    def _loaded(self) -> Vlm:
        with self._lock:
            if self._vlm is None:
                vlm = self._load()
                found, known = dict(vlm.provenance), self.provenance
                if found != known:
                    self._forget()
                    changed = sorted(key for key in {*found, *known} if found.get(key) != known.get(key))
                    raise ValueError(
                        f"this judge is not what it was when it was last loaded here ({', '.join(changed)} differ), so "
                        "its scores cannot be filed with the former ones; run the same command again"
                    )
                self._vlm = vlm
            return self._vlm


def deferred_vlm(folder: str, load: Callable[[], Vlm], arguments: Mapping[str, Any]) -> Vlm:
    """The model in ``folder``: deferred where an earlier call has loaded it here, else loaded now.

    load: loads it. arguments: those that ``load`` passes on.
    """
    memory = _memory_file(folder, arguments)
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        vlm = load()
        with suppress(OSError):  # a cache that cannot be written costs time only
            memory.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(memory, json.dumps(dict(vlm.provenance), indent=1, sort_keys=True) + "\n")
        return vlm
    return DeferredVlm(known, load, lambda: memory.unlink(missing_ok=True))


def _memory_file(folder: str, arguments: Mapping[str, Any]) -> Path:
    """Where this judge's provenance is remembered."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    here = Path(__file__).parent
    facts = {
        "folder": str(Path(folder).resolve()),
        "files": hash_files(Path(folder)),
        "arguments": {name: str(value) for name, value in arguments.items()},
        "packages": [_version(name) for name in _PACKAGES],
        "code": [hashlib.sha256((here / name).read_bytes()).hexdigest() for name in _CODE],
        "gpus": [os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path(root) / "cac-align" / "judges" / f"{digest[:32]}.json"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
