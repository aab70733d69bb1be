"""The parent's end of the decoding process: start it, ask it with a deadline, kill it.

Plain pipes and a subprocess, not multiprocessing: that would import the caller's `__main__` (torch,
a model) into the child. The child ends by itself when this process is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from opd_core.types import VideoOPDError

MESSAGE = struct.Struct("!IQ")
"""Before every message: bytes of its JSON, then bytes of the raw frames that follow it."""
START_SECONDS = 60.0
"""For a child to start, on the busiest machine; one takes 0.2 s."""


class DecoderTimeout(Exception):
    """The child did not answer in time, and was killed."""


class DecoderCrash(Exception):
    """The child ended; the text says how."""


class DecoderProcess:
    """One child. After any exception of `ask` it is dead, and another is to be made."""

    def __init__(self, decoder: str) -> None:
        """Starts it. Raises `VideoOPDError` when it cannot be: no video is to blame for that."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        # -P: the folder one happens to stand in must not shadow the child's imports
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "opd_core.video.decoding", str(os.getpid()), decoder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
            bufsize=0,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to_child = self._process.stdin.fileno()
        self._from_child = self._process.stdout.fileno()
        os.set_blocking(self._to_child, False)
        os.set_blocking(self._from_child, False)
        try:
            self._receive(time.monotonic() + START_SECONDS)
        except (DecoderTimeout, DecoderCrash) as error:
            raise VideoOPDError(
                f"the process that decodes videos with {decoder} does not start: "
                f"{error or f'no answer in {START_SECONDS:g} s'}; install what is missing, or set "
                "video.decoder"
            ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], bytearray]:
        """Reply and raw frames. `deadline` is of `time.monotonic`.

        Raises `DecoderTimeout` or `DecoderCrash`; in both cases the child is gone.
        """
        header = json.dumps(request).encode()
        message = memoryview(MESSAGE.pack(len(header), 0) + header)
        while message:
            self._wait(deadline, write=True)
            try:
                message = message[os.write(self._to_child, message) :]
            except BrokenPipeError:
                raise self._crash() from None
        return self._receive(deadline)

    def kill(self) -> None:
        """From another thread: the one that waits in `ask` then gets `DecoderCrash`."""
        self._process.kill()

    def close(self) -> None:
        """Kill the child, whatever it does, and reap it. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytearray]:
        json_bytes, payload_bytes = MESSAGE.unpack(self._read(MESSAGE.size, deadline))
        return json.loads(self._read(json_bytes, deadline)), self._read(payload_bytes, deadline)

    def _read(self, size: int, deadline: float) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            self._wait(deadline)
            count = os.readv(self._from_child, [view])
            if count == 0:
                raise self._crash()
            view = view[count:]
        return data

    def _wait(self, deadline: float, write: bool = False) -> None:
        poll = select.poll()  # select() refuses file descriptors from 1,024 on
        if write:
            poll.register(self._to_child, select.POLLOUT)
        else:
            poll.register(self._from_child, select.POLLIN)
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(remaining * 1000):
            self.close()
            raise DecoderTimeout

    def _crash(self) -> DecoderCrash:
        """Its pipe is at its end: say why."""
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            code = None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        if code is not None and code < 0:
            return DecoderCrash(f"the decoding process died of {signal.Signals(-code).name}")
        last = f" ({lines[-1]})" if lines else ""
        return DecoderCrash(f"the decoding process ended with exit code {code}{last}")
