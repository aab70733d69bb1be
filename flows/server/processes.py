"""Background processes of ours: started so that they outlive the command, ended without a trace.

A process is known by its id and its start time, because ids are used again. Everything it starts
inherits a mark in its environment, by which children are found even after their parent is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "VIDEOOPD_STARTED_FOR"
"""Environment variable of the processes started here; its value names what they belong to."""
_BEGIN = """
import os, signal, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
# Jobs that a script starts with `&` ignore these, and would hand that on.
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
if parent and sys.platform == "linux":
    import ctypes
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("its parent has ended")
os.execvp(command[0], command)
"""
"""What a process does before it becomes the command. In a Python of its own, not between fork and
exec: this process may hold Lance by then, which must not be forked."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: float
    """Seconds since 1970."""

    def find(self) -> psutil.Process | None:
        """The process, or None once it has ended."""
        try:
            process = psutil.Process(self.pid)
            # A second of slack: the kernel counts from boot, and the clock may be set meanwhile.
            same = abs(process.create_time() - self.started) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    mark: str,
    log: Path,
    folder: Path,
    *,
    ends_with_us: bool = False,
) -> ProcessId:
    """Start `command` in a session of its own, its output appended to `log`.

    With `ends_with_us` it is told to stop when this process ends, however that happens (Linux).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid() if ends_with_us else 0
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BEGIN, str(parent), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, **environment, MARK: mark},
            start_new_session=True,
        )
    return ProcessId(child.pid, psutil.Process(child.pid).create_time())


def stop(ids: Sequence[ProcessId], mark: str, grace: float = 10.0) -> int:
    """End the processes one after another, then whatever else carries their mark.

    Each is asked first, and killed after `grace` seconds. Returns how many were ended.
    """
    ended = 0
    for process_id in ids:
        process = process_id.find()
        if process is not None:
            _end([process], grace)
            ended += 1
    left = marked(mark)
    _end(left, 1.0)
    return ended + len(left)


def _end(processes: Sequence[psutil.Process], grace: float) -> None:
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            try:
                ask(process)
            except psutil.NoSuchProcess:
                continue
        _, processes = psutil.wait_procs(processes, timeout=grace)


def marked(mark: str) -> list[psutil.Process]:
    """Processes that carry the mark, this one never among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return found
