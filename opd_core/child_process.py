"""A Python process of ours that may hang, crash or keep memory: start it, talk to it, end it.

A thread cannot be stopped; a process can. Not by `multiprocessing`, nor by what is built on it
(concurrent.futures, pebble): those import the caller's `__main__` into the child (torch, a model),
and a child of theirs that hangs lives on when its parent is killed.

Messages are pickled and go through a pair of sockets, which is safe: nobody else can write to it.
What the child prints goes into a file, whose last lines may explain how it ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PARENT_CHECK_SECONDS = 0.5


class ChildTimeout(Exception):
    """The child was not done in time, and was killed."""


class ChildCrash(Exception):
    """The child ended; the text says how, and what it printed last: `died of SIGSEGV`, `ended with
    exit code 1 (MemoryError)`."""

    def __init__(self, how: str, last_lines: list[str], by_signal: bool = False) -> None:
        super().__init__(how, last_lines, by_signal)
        self.how = how
        """Without what it printed."""
        self.last_lines = last_lines
        """At most three, of what it printed."""
        self.by_signal = by_signal
        """Whether it was killed, or crashed outside of Python: no exception has ended it."""

    def __str__(self) -> str:
        return f"{self.how} ({self.last_lines[-1].strip()})" if self.last_lines else self.how


class Child:
    """`python -m MODULE`, which begins with `connect` below, in a session of its own."""

    def __init__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._connection, theirs = Pipe()
        package_root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the child)
        # -P: the folder one happens to stand in must not shadow the child's imports
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid()),
             *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )  # fmt: skip
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ended(self) -> bool:
        return self._connection.closed

    def send(self, message: Any) -> None:
        """Raises `ChildCrash`, after which it is ended."""
        try:
            self._connection.send(message)
        except OSError:
            raise self._crash() from None

    def receive(self) -> Any:
        """Wait for the child's next message. Raises `ChildCrash`, after which it is ended."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise self._crash() from None

    def receive_into(self, buffer: memoryview) -> None:
        """Fill it with the bytes of a `send_bytes` of the child: faster than a pickled array."""
        try:
            self._connection.recv_bytes_into(buffer)
        except (EOFError, OSError):
            raise self._crash() from None

    @contextlib.contextmanager
    def killed_at(self, deadline: float) -> Iterator[None]:
        """Kill the child where the block lasts until `deadline`, of `time.monotonic`; whoever waits
        for it then lets go. Raises `ChildTimeout` from the block."""
        lock, is_over, is_late = threading.Lock(), False, False

        def too_late() -> None:
            nonlocal is_late
            with lock:
                if not is_over:
                    is_late = True
                    self.kill()

        timer = threading.Timer(deadline - time.monotonic(), too_late)
        timer.daemon = True
        timer.start()
        crash = None
        try:
            yield
        except ChildCrash as error:
            crash = error
        finally:
            timer.cancel()
            with lock:
                is_over = True
        if is_late:
            self.end()
            raise ChildTimeout
        if crash is not None:
            raise crash

    def kill(self) -> None:
        """End it and what it started. From another thread: the one that waits in `receive` then
        gets `ChildCrash`."""
        if not self.is_ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the child, whatever it does, and reap it. May be called twice."""
        self.kill()
        self._process.wait()
        self._connection.close()
        self._log.close()

    def wait(self, seconds: float) -> None:
        """Wait until it has ended by itself, but not longer than this."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def _crash(self) -> ChildCrash:
        """Its socket is at its end: say why."""
        self.wait(5.0)
        code = self._process.poll()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self.end()
        if code is not None and code < 0:
            return ChildCrash(f"died of {signal.Signals(-code).name}", lines[-3:], by_signal=True)
        return ChildCrash(f"ended with exit code {code}", lines[-3:])


def connect() -> Connection:
    """The child's end, which is to be called first. From then on Ctrl-C is the parent's to handle,
    and this process ends, whatever it does, and what it started, when the parent is gone."""
    handle, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(handle, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return Connection(handle)


def _end_with(parent: int) -> None:
    # A process forked off the parent may keep the socket open, so its end alone is no sign.
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.killpg(0, signal.SIGKILL)
