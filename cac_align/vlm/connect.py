"""Connecting to a vision-language model: a URL means a server, anything else a checkpoint to run
here.
"""

from __future__ import annotations

from typing import Any

from cac_align.vlm.protocol import Vlm


def connect(model: str, **backend: Any) -> Vlm:
    """The vision-language model at ``model``: "http(s)://host:port[/v1]"
        → ServerVlm, else LocalVlm.load (folder or hub id).

    backend: keyword arguments of that backend; for a server, ``served_model`` is the name the
    server knows it by. Raises ``ValueError`` when it cannot be loaded.
    """
    if model.startswith(("http://", "https://")):
        from cac_align.vlm.server.server import ServerVlm

        served = backend.pop("served_model", None)
        if not served:
            raise ValueError(f"{model} is a server: pass served_model=, the name under which it serves the model")
        return ServerVlm(model, served, **backend)
    from cac_align.vlm.local import LocalVlm

    return LocalVlm.load(model, **backend)
