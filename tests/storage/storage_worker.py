"""What the tests run in a process of its own, to kill it or to race it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from storage import locks
from storage.tables.lance_tables import Tables
from tests.storage.storage_factories import PROVENANCE, checkpoint, new_run, provenance, rollout


def append(folder: str, first: str, last: str, batch: str) -> None:
    tables = Tables.open(Path(folder))
    print("ready", flush=True)
    sys.stdin.readline()
    for start in range(int(first), int(last), int(batch)):
        rows = [rollout(i) for i in range(start, start + int(batch))]
        print(tables.append("rollouts", rows, PROVENANCE), flush=True)


def hold(path: str) -> None:
    with locks.held(Path(path), "rollout", 0.0):
        print("ready", flush=True)
        time.sleep(60)


def hold_and_fork(path: str) -> None:
    with locks.held(Path(path), "rollout", 0.0):
        child = os.fork()
        if child:
            print(child, flush=True)
        time.sleep(60)


def create(folder: str, patch: str, call: str) -> None:
    _kill_at(patch, int(call))
    new_run(Path(folder))


def publish(folder: str, patch: str, call: str) -> None:
    run = new_run(Path(folder))
    staging = checkpoint(run.staging_folder(1), seed=7)
    _kill_at(patch, int(call))
    run.publish_policy(staging, run.current_policy())


def fill(folder: str) -> None:
    """Appends until the disk is full, says what it was told, and goes on when there is room."""
    tables = Tables.create(Path(folder))
    ballast = Path(folder).with_name("ballast")
    ballast.write_bytes(os.urandom(2**20))
    written = 0
    try:
        while True:
            rows = [rollout(i, text=os.urandom(4096).hex()) for i in range(written, written + 50)]
            written += tables.append("rollouts", rows, provenance("rollouts"))
    except Exception as error:
        count = tables._dataset("rollouts").count_rows()
        ballast.unlink()
        again = tables.append("rollouts", [rollout(written)], provenance("rollouts"))
        print(f"{type(error).__name__}|{error}|{count == written}|{again}", flush=True)


def _kill_at(patch: str, call: int) -> None:
    """SIGKILL to ourselves instead of the `call`-th call of `module:attribute`."""
    import importlib

    module, attributes = patch.split(":")
    owner = importlib.import_module(module)
    *path, name = attributes.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
