"""What Ray starts in the place of its `setup_worker.py`: a worker that is forked, imports and all.

    python tests/ray_worker.py DEFAULT_WORKER --serialized-runtime-env-context=... --...

It asks the fork server (`tests/fork_server.py`) for the worker, and lives as long as that does:
what kills the one ends the other. Where nobody answers, or the worker is to have another
environment, it becomes Ray's own script.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

DOOR = "VIDEOOPD_TESTS_RAY_WORKERS"
"""Environment: the socket at which workers are asked for."""
CONTEXT = "--serialized-runtime-env-context="
LANGUAGE = "--language="


def worker_words(words: list[str]) -> tuple[list[str], dict[str, str]] | None:
    """What stands behind `python` for the worker, and variables that it finds beside its parent's;
    None where Ray's own script has to set it up."""
    rest = [word for word in words if not word.startswith((CONTEXT, LANGUAGE))]
    context: dict[str, Any] = {}
    for word in words:
        if word.startswith(CONTEXT):
            context |= json.loads(word.removeprefix(CONTEXT))
    variables = context.pop("env_vars", {})
    if context.get("py_executable") == sys.executable:
        del context["py_executable"]
    plain = not any(context.values()) and not any("$" in value for value in variables.values())
    return (rest, variables) if plain and f"{LANGUAGE}PYTHON" in words else None


def be_rays_own(words: list[str]) -> NoReturn:
    from importlib.util import find_spec

    ray = find_spec("ray")
    assert ray is not None and ray.origin is not None
    script = Path(ray.origin).parent / "_private" / "workers" / "setup_worker.py"
    os.execv(sys.executable, [sys.executable, str(script), *words])


def main(words: list[str]) -> None:
    asked = worker_words(words)
    if asked is None:
        be_rays_own(words)
    rest, variables = asked
    message = json.dumps(
        {"words": rest, "environment": {**os.environ, **variables}, "folder": str(Path.cwd()),
         "session": False, "kept": [], "parent": os.getpid()}
    ).encode()  # fmt: skip
    door = socket.socket(socket.AF_UNIX)
    try:
        door.connect(os.environ[DOOR])
        socket.send_fds(door, [struct.pack("!I", len(message))], [0, 1, 2])
        door.sendall(message)
        begun = len(door.recv(4, socket.MSG_WAITALL)) == 4
    except OSError:
        begun = False
    if not begun:
        be_rays_own(words)
    try:
        said = door.recv(4, socket.MSG_WAITALL)
    except OSError:
        said = b""
    if len(said) < 4:  # who forks is no more, and with it the worker
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(os.waitstatus_to_exitcode(struct.unpack("!i", said)[0]) & 255)


if __name__ == "__main__":
    main(sys.argv[1:])
