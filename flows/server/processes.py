"""Background processes of ours: started so that they outlive the command, ended without a trace.

Each carries a mark in its environment, which names what it belongs to and which all that it starts
inherits. So an id that was used again is told apart, and children are found after their parent is
gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    mark: str,
    log: Path,
    folder: Path,
    *,
    ends_with_us: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output appended to `log`.

    With `ends_with_us` it is told to stop when this process ends, however that happens (Linux).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid() if ends_with_us else 0
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BEGIN, str(parent), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, **environment, MARK: mark},
            start_new_session=True,
        )


def stop(mark: str, grace: float = 10.0) -> int:
    """End all processes that carry the mark; returns how many.

    The eldest first, which has started the others and ends them in their order: it is asked, and
    killed after `grace` seconds. Then whatever is still there.
    """
    all_of_it = sorted(marked(mark), key=psutil.Process.create_time)
    _end(all_of_it[:1], grace)
    still_there = marked(mark)
    _end(still_there, 1.0)
    return len({*all_of_it, *still_there})


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
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and carries(p.pid, mark)]


def carries(pid: int, mark: str) -> bool:
    """Whether there is a process of that number and it carries the mark."""
    try:
        return bool(psutil.Process(pid).environ().get(MARK) == mark)
    except (psutil.Error, OSError):
        return False  # it has ended, or is another user's
