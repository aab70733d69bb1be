"""The process that others are forked off (`tests/forked.py`): `python fork_server.py MODULE...`.

It imports what is heavy and the modules, then waits on its standard input, a socket, for requests,
and ends with whoever holds the other end. A forked process leaves `serve` with its request, does
what it says as `__main__`, and ends.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.abc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NoReturn, TypedDict

from tests.ray_worker import DOOR

HEAVY = (
    "lance", "polars", "peft", "cv2", "requests", "tiktoken",
    "torch.profiler._cupti_monitor", "torch.utils.serialization",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.qwen3_vl.processing_qwen3_vl",
    "opd_core.engines.hf.sampling", "opd_core.scoring.trees", "opd_core.update.student",
    "opd_core.rollout.answering", "opd_core.plan.plan_of_config",
    "storage.runs.run", "storage.asking.contents",
)  # fmt: skip
OF_PREFECT = (
    "anyio", "asgi_lifespan", "cachetools", "coolname", "dateutil", "dotenv", "fsspec", "griffe",
    "httpx", "humanize", "opentelemetry.trace", "orjson", "pendulum", "pluggy",
    "prometheus_client", "pydantic_extra_types.pendulum_dt", "pydantic_settings", "rich.console",
    "rich.progress", "slugify", "starlette.status", "toml", "websockets",
)  # fmt: skip
"""What Prefect needs. Itself it reads its settings when it is imported."""

READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "OMP_", "MKL_", "PYTHON", "VLLM_", "TORCH_COMPILE_")
"""How the names of variables begin that a test may mean and that are read by what is there already.
(Those of torch are none of it but these: it sets some itself in the tests' process.)"""
MOST_HANDLES = 8
DOOR_HANDLE = "--door="
"""Before the handle of a listening socket, at which others than the tests' process ask."""

BEGAN_WITH = dict(os.environ)
"""Imports set variables, too."""
RAY_WORKER = Path(__file__).with_name("ray_worker.py")
TINY = Path(__file__).resolve().parents[1] / "configs" / "tiny" / "teacher"


class Request(TypedDict):
    words: list[str]
    """What stands behind `python`."""
    environment: dict[str, str]
    folder: str
    session: bool
    """Whether it gets one of its own."""
    kept: list[int]
    """The handles that stay open under their numbers, beside the standard streams."""
    parent: int
    """Who asks; the fork server is what the kernel calls the parent."""


def import_all(modules: list[str]) -> None:
    """The modules, or what is heavy where none are named."""
    from opd_core import torchvision_guard

    torchvision_guard.install()
    for name in modules or (*HEAVY, *OF_PREFECT):
        importlib.import_module(name)
    _open_a_processor()
    assert modules or "prefect" not in sys.modules, "it would keep the settings of this process"


def _open_a_processor() -> None:
    """It looks through all models of transformers, once a process."""
    from opd_core.prompts.encoder import load_processor

    load_processor(TINY)


class _RaysConstants(importlib.abc.MetaPathFinder):
    """Puts `tests/ray_worker.py` in the place of Ray's script as soon as Ray is imported."""

    NAME = "ray._private.ray_constants"

    def __init__(self, begins: Callable[[], object]) -> None:
        self._begins = begins

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: object = None
    ) -> ModuleSpec | None:
        if name != self.NAME:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def and_ours(module: types.ModuleType) -> None:
            execute(module)
            self._begins()
            # Joined to a folder, which it replaces.
            setattr(module, "SETUP_WORKER_FILENAME", str(RAY_WORKER))  # noqa: B010

        spec.loader.exec_module = and_ours  # type: ignore[method-assign]
        return spec


def ray_forks_workers(begins: Callable[[], object] = lambda: None) -> None:
    """A Ray that this process starts begins its workers by `tests/ray_worker.py`; `begins` is
    called when it is imported."""
    if _RaysConstants.NAME not in sys.modules:  # else it was imported with this in force
        sys.meta_path.insert(0, _RaysConstants(begins))


def read_otherwise(environment: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Names of variables of which another value was read by what is imported."""
    changed = {name for name, _ in environment.items() ^ ours.items()}
    changed -= {"PYTHONPATH", "PYTHONBREAKPOINT"}  # the latter is Ray's, read by breakpoint()
    return sorted(name for name in changed if name.startswith(READ_AT_IMPORT))


def serve(control: socket.socket, door: socket.socket | None) -> tuple[Request, list[int]] | None:
    """Fork for each request; returns it in the forked process, with what are to be its standard
    streams, and None when nobody asks more. Who asks at the door lives as long as its process."""
    ended, wake = socket.socketpair()
    for end in (ended, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        for end in filter(None, (control, ended, door)):
            selector.register(end, selectors.EVENT_READ)
        while True:
            ready = [key for key, _ in selector.select()]
            sources = [key.fileobj for key in ready]
            for gone in (key for key in ready if key.data is not None):
                selector.unregister(gone.fileobj)  # who asked was killed: so is its process
                if gone.data in running:
                    os.kill(gone.data, signal.SIGKILL)
            if ended in sources:
                ended.recv(4096)
                _tell_ends(running, selector)
            if control in sources:
                head, handles, _, _ = socket.recv_fds(control, 4, MOST_HANDLES)
                if not head:
                    return None
                asking = socket.socket(fileno=handles.pop())
                request = _request(control, head)
            elif door in sources and door is not None:
                asking, _ = door.accept()
                head, handles, _, _ = socket.recv_fds(asking, 4, MOST_HANDLES)
                request = _request(asking, head)
                if read_otherwise(request["environment"], BEGAN_WITH):
                    asking.close()
                    _close(handles)
                    continue
            else:
                continue
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="lance is not fork-safe")
                pid = os.fork()
            if pid == 0:
                break
            _close(handles)
            asking.sendall(struct.pack("!i", pid))
            running[pid] = asking
            if control not in sources:
                selector.register(asking, selectors.EVENT_READ, pid)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in filter(None, (control, ended, wake, door, asking, *running.values())):
        end.close()
    return request, handles


def _request(source: socket.socket, head: bytes) -> Request:
    (length,) = struct.unpack("!I", head)
    request: Request = json.loads(source.recv(length, socket.MSG_WAITALL))
    return request


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)


def _tell_ends(running: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as asking, contextlib.suppress(OSError):  # nobody waits for it
            if asking in selector.get_map():
                selector.unregister(asking)
            asking.sendall(struct.pack("!i", status))


def become(request: Request, handles: list[int]) -> NoReturn:
    """Be the process that was asked for."""
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    path = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    if theirs := [folder for folder in path if folder and folder not in sys.path]:
        sys.path[:0] = theirs
        _forget_ours()
    _have_parent(request["parent"])
    # Two steps: a number that one is to have may be another's now.
    above = max(*handles, *request["kept"], 2) + 1
    for place, handle in enumerate(handles):
        os.dup2(handle, above + place)
        os.close(handle)
    for place, number in enumerate([0, 1, 2, *request["kept"]]):
        os.dup2(above + place, number)
        os.close(above + place)
    if DOOR in os.environ:
        ray_forks_workers()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace"
    )
    end(_code_of(request["words"]))


def _have_parent(pid: int) -> None:
    """Who asked for this process is its parent for as long as it lives."""
    kernel = os.getppid

    def getppid() -> int:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return kernel()
        try:
            return kernel() if select.select([process], [], [], 0)[0] else pid
        finally:
            os.close(process)

    os.getppid = getppid


def _forget_ours() -> None:
    """What packages are there, and what of ours they add to, is read when our modules are
    imported."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("flows", "opd_core", "storage")]:
        del sys.modules[name]


def _code_of(words: list[str]) -> int:
    """Do it; the exit code, as Python gives it."""
    try:
        _do(words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(code: int) -> NoReturn:
    """As a Python process ends, but that no module is taken apart: half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _do(words: list[str]) -> None:
    """What `python WORDS` does; the folder it stands in is no place for imports, as with -P."""
    if words[0] == "-P":
        words = words[1:]
    match words:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), main.__dict__)
        case [script, *rest]:
            sys.argv = [script, *rest]
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    asked = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    *modules, last = ["", *sys.argv[1:]]
    at_door = None
    if last.startswith(DOOR_HANDLE):
        at_door = socket.socket(fileno=int(last.removeprefix(DOOR_HANDLE)))
    elif last:
        modules.append(last)
    import_all(modules[1:])
    gc.collect()
    gc.freeze()
    forked = serve(asked, at_door)
    if forked is None:
        end(0)
    become(*forked)
