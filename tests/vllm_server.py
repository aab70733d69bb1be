"""A real vLLM server on loopback for tests, and a door before it that can be shut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

SERVED_AS = "tiny-teacher"


class Served(NamedTuple):
    """A teacher that a server has as `SERVED_AS`."""

    folder: Path
    address: str


_SERVE = Path(__file__).with_name("serve_vllm.py")
_STARTS_WITHIN = 900.0
"""Seconds; half a minute on a machine that does nothing else."""


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """The address of a server of `model` in float32; ended, with what it has started, after."""
    from opd_core.engines.vllm.engine import prepare_environment

    port = _free_port()
    environment = os.environ | prepare_environment("cpu", 1)
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [
        sys.executable, str(_SERVE), "--model", str(model), "--served-model-name", SERVED_AS,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "2048", "--generation-config", "vllm", "--max-logprobs", "-1",
        "--limit-mm-per-prompt", '{"video": 1, "image": 1}', "--mm-processor-cache-gb", "0",
        "--enable-scale-out", "--no-mm-device-do-normalize",
        "--trust-request-mm-kwargs",
        # What is prefilled in parts turns a seed's generator back, which a CPU's cannot do.
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192",
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/health", process, log)
            yield address
        finally:
            _end(process.pid)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < ends:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10):
            return
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.5)
    raise TimeoutError(log.read_text()[-4000:])


def _end(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
        parent.terminate()
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


class Door:
    """Hands on what comes for a server; after so many requests for token ids, as where the server
    has died in the middle of one, it hangs up on everybody."""

    def __init__(self, address: str, lets_through: int | None = None) -> None:
        self._host, port = address.removeprefix("http://").split(":")
        self._port, self._left = int(port), lets_through
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._hand_on, args=(client,), daemon=True).start()

    def _hand_on(self, client: socket.socket) -> None:
        with (
            suppress(OSError),
            client,
            socket.create_connection((self._host, self._port)) as server,
        ):
            first = client.recv(65536)
            if b"/inference/v1/generate" in first.split(b"\r\n", 1)[0]:
                with self._lock:
                    if self._left == 0:
                        return
                    self._left = None if self._left is None else self._left - 1
            server.sendall(first)
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            _copy(server, client)

    def close(self) -> None:
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
