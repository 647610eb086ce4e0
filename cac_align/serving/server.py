"""Running the service: a socket, uvicorn, and an orderly end.

Loopback by default; any other address needs a token.
"""

from __future__ import annotations

import ipaddress
import math
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from cac_align.rewards.reward import Reward
from cac_align.serving.app import create_app
from cac_align.serving.service import ServiceSettings


def serve(
    reward: Reward,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: ServiceSettings = ServiceSettings(),
    ledger: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, and finish accepted requests before returning.

    ledger: a JSONL file that keeps every judgement and answers repeated requests. Raises
    ``ValueError`` when ``host`` is not a loopback address and no token is set, when a root is not a
    folder, or when the port is taken.
    """
    with listening_socket(host, port, settings) as listening:
        config = uvicorn_config(create_app(reward, settings, ledger), settings)
        print(f"cac-align: {reward.name} on http://{host}:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
        with _stop_on_signals():
            uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def _stop_on_signals() -> Iterator[None]:
    """Keep uvicorn, which stops gracefully on SIGINT and SIGTERM, from raising them once more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listening_socket(host: str, port: int, settings: ServiceSettings) -> socket.socket:
    """The socket to listen on; port 0 takes any free one. Raises ``ValueError`` as ``serve`` does."""
    if not _is_loopback(host) and not settings.token:
        raise ValueError(
            f"host {host} can be reached from other machines: set a token (CAC_ALIGN_TOKEN), or bind 127.0.0.1"
        )
    for root in settings.roots:
        if not root.is_dir():
            raise ValueError(f"root {root} is not a folder")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another port"
        ) from error


def uvicorn_config(app: FastAPI, settings: ServiceSettings) -> uvicorn.Config:
    """uvicorn's configuration: at the end it waits up to ``drain_s`` for requests in work."""
    drain = max(1, math.ceil(settings.drain_s))
    return uvicorn.Config(app, log_level="info", access_log=False, timeout_graceful_shutdown=drain)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
