"""`subprocess`, but a Python process begins with everything heavy imported: four CPU seconds less.

It is a real process, with its own id, environment, folder, output, session and signals, and it
ends as any. Only its imports are there already, because it is forked off a process that has
imported them (`tests/fork_server.py`). What is read of the environment at import is the tests' own,
so a process that is to find another there, or whose start is tested, is `subprocess`'s. Neither
`/proc` nor `psutil` can tell its arguments and its environment.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.fork_server import DOOR_HANDLE, Request, read_otherwise

SERVER = Path(__file__).with_name("fork_server.py")
VLLM = (
    "opd_core.engines.vllm.child", "vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker",
    "vllm.v1.engine.llm_engine", "vllm.model_executor.models.qwen3_vl",
    "vllm.model_executor.models.qwen2_5_vl", "vllm.entrypoints.anthropic.protocol",
    "vllm.entrypoints.launchers.utils", "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.lora.resolver", "vllm.v1.pool.flash_maxsim", "compressed_tensors.compressors",
)  # fmt: skip
"""Of an engine's process: nine CPU seconds of imports."""


class ForkServer:
    """The process that has imported `modules`, or what heavy there is; begun with the first fork.

    It opens no table, runs no model and knows no Prefect, so that nothing of them is carried over
    a fork, and each process finds the server of its own.
    """

    def __init__(
        self,
        *modules: str,
        environment: Mapping[str, str] | None = None,
        door: socket.socket | None = None,
        off: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
    ) -> None:
        ours, theirs = socket.socketpair()
        self._control, self._lock = ours, threading.Lock()
        root = {"PYTHONPATH": str(SERVER.parents[1])}
        self.environment = {**os.environ, **(environment or {}), **root}
        words = [sys.executable, str(SERVER), *modules]
        kept: tuple[int, ...] = ()
        if door is not None:
            words, kept = [*words, f"{DOOR_HANDLE}{door.fileno()}"], (door.fileno(),)
        self._process = off(words, stdin=theirs, env=self.environment, pass_fds=kept)
        theirs.close()

    def fork(self, request: Request, handles: list[int]) -> tuple[int, socket.socket]:
        """The new process's id, and what says at its end how it ended."""
        ours, theirs = socket.socketpair()
        message = json.dumps(request).encode()
        with theirs, self._lock:
            head = struct.pack("!I", len(message))
            socket.send_fds(self._control, [head], [*handles, theirs.fileno()])
            self._control.sendall(message)
        return _number(ours), ours

    def close(self) -> None:
        self._control.close()
        self._process.wait(timeout=60)


@functools.cache
def door() -> socket.socket:
    """Where Ray's `tests/ray_worker.py` asks for workers: the fork server answers, not a thread of
    ours, which Ray keeps from running while it waits for its first worker."""
    folder = tempfile.mkdtemp(prefix="videoopd-tests-ray-")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/door")
    listener.listen()
    atexit.register(listener.close)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return listener


@functools.cache
def fork_server(*modules: str) -> ForkServer:
    """The one of these tests. Where modules are named, it is itself forked off the one without, but
    vLLM's, whose environment is another."""
    if not modules:
        server = ForkServer(door=door())
    elif modules == VLLM:
        from opd_core.engines.vllm.engine import prepare_environment

        server = ForkServer(*VLLM, environment=prepare_environment("cpu", 1))
    else:
        server = ForkServer(*modules, off=Popen)
    atexit.register(server.close)
    return server


class Popen(subprocess.Popen[str]):
    """`subprocess.Popen` of `[sys.executable, ...]`: a module, a script or `-c`."""

    def __init__(
        self, args: Sequence[object], *, modules: tuple[str, ...] = (), **options: Any
    ) -> None:
        self._server = fork_server(*modules)
        super().__init__(list(map(str, args)), **options)

    def _execute_child(self, *given: Any) -> None:
        names = inspect.signature(subprocess.Popen._execute_child).parameters  # type: ignore[attr-defined]
        asked = dict(zip(list(names)[1:], given, strict=True))
        program, *words = asked["args"]
        environment = dict(os.environ if asked["env"] is None else asked["env"])
        if wrong := read_otherwise(environment, self._server.environment):
            raise ValueError(f"{wrong[0]} is read at import; start this process with subprocess")
        assert program == sys.executable and not asked["preexec_fn"]
        kept = sorted(asked["pass_fds"])
        handles = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"], *kept]
        self.pid, self._end = self._server.fork(
            {
                "words": words,
                "environment": environment,
                "folder": os.fspath(asked["cwd"] or Path.cwd()),
                "session": asked["start_new_session"],
                "kept": kept,
                "parent": os.getpid(),
            },
            [standard if handle == -1 else handle for standard, handle in enumerate(handles)],
        )
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pipes))  # type: ignore[attr-defined]

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        """Called by `poll` and `__del__`."""
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid and self.returncode is None:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _try_wait(self, flags: int) -> tuple[int, int]:
        """Called by `wait`, until the process has ended; it is no child of ours."""
        self._end.setblocking(flags != os.WNOHANG)
        try:
            return self.pid, _number(self._end)
        except BlockingIOError:
            return 0, 0


def child_of_vllm(args: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen` for `opd_core.child_process`: forked where it is vLLM's on a CPU, in the
    environment that the fork server's imports have read."""
    if "opd_core.engines.vllm.child" not in args:
        return subprocess.Popen(args, **options)
    if read_otherwise(options["env"], fork_server(*VLLM).environment):
        return subprocess.Popen(args, **options)
    return Popen(args, modules=VLLM, **options)


def run(
    args: Sequence[object], *, input: str | None = None, timeout: float | None = None,
    check: bool = False, capture_output: bool = False, **options: Any,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """`subprocess.run`, which the process does not outlive."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            said, told = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, said, told)
    if check:
        done.check_returncode()
    return done


def _number(end: socket.socket) -> int:
    """The next number that the fork server says."""
    said = end.recv(4)
    if len(said) < 4:
        raise ChildProcessError("the fork server has ended")
    (number,) = struct.unpack("!i", said)
    return int(number)
