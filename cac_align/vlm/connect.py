"""Connecting to a vision-language model: a URL means a server, anything else a checkpoint to run
here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cac_align.vlm.checkpoint_hash import check_source
from cac_align.vlm.protocol import Vlm
from cac_align.vlm.scripted import ScriptedVlm


def connect(model: str, *, deferred: bool = False, check_only: bool = False, **backend: Any) -> Vlm:
    """The vision-language model at ``model``: "http(s)://host:port[/v1]"
        → ServerVlm, else LocalVlm.load (folder or hub id).

    deferred: a folder that was loaded here before is loaded when it is first asked
    (``vlm.deferred``). check_only: return a model that answers nothing where it would run here.
    backend: keyword arguments of that backend; for a server, ``served_model`` is the name the
    server knows it by. Raises ``ValueError`` when it cannot be loaded.
    """
    if model.startswith(("http://", "https://")):
        from cac_align.vlm.server.server import ServerVlm

        served = backend.pop("served_model", None)
        if not served:
            raise ValueError(f"{model} is a server: pass served_model=, the name under which it serves the model")
        return ServerVlm(model, served, **backend)

    check_source(model)
    if check_only:
        return ScriptedVlm([], name=model)

    def load() -> Vlm:
        from cac_align.runs.progress import working

        with working(f"loading {Path(model).name}"):
            from cac_align.vlm.local import LocalVlm

            return LocalVlm.load(model, **backend)

    if deferred and Path(model).is_dir():
        from cac_align.vlm.deferred import deferred_vlm

        return deferred_vlm(model, load, backend)
    return load()
