"""One writer at a time: a lock that names its holder and dies with it.

`flock` belongs to the open file, so the operating system drops it when the holder is killed,
however it is killed; the text in the file is only a description and may be out of date.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from opd_core.types import VideoOPDError
from storage.file_system import NO_LOCKS, lacks
from storage.files import disk_troubles, make_folder

_POLL_SECONDS = 0.02
_PROBE_SECONDS = 0.1
"""Who only looks whether a lock is held has let go by then."""
_descriptors: set[int] = set()


class InUseError(VideoOPDError):
    """Another holder did not let go in time."""


def _let_go_in_child() -> None:
    """A forked child would share the lock and keep it when its parent is killed."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def held(path: Path, stage: str, timeout: float) -> Iterator[None]:
    """Holds the lock `path` for `stage`; waits up to `timeout` seconds for another holder, and a
    moment for one who only looks (`refuse_held`).

    Raises `InUseError` naming the holder when it does not let go in time.
    """
    make_folder(path.parent)
    with disk_troubles(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _descriptors.add(descriptor)
    owner = os.getpid()
    try:
        deadline = time.monotonic() + max(timeout, _PROBE_SECONDS)
        while not _try(descriptor, path):
            if time.monotonic() >= deadline:
                raise _in_use(path)
            time.sleep(_POLL_SECONDS)
        with disk_troubles(path.parent):
            _describe(descriptor, stage)
        yield
    finally:
        if os.getpid() == owner:
            _descriptors.discard(descriptor)
            os.close(descriptor)


def refuse_held(path: Path) -> None:
    """Raises `InUseError` naming the holder when the lock is held now; makes nothing.

    For a quick answer before seconds of preparation: what comes of them still takes the lock.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # nobody has ever held it, or it will be told where it is taken
    try:
        # Shared, so that two who look do not see each other.
        if not _try(descriptor, path, fcntl.LOCK_SH):
            raise _in_use(path)
    finally:
        os.close(descriptor)


def _in_use(path: Path) -> InUseError:
    return InUseError(
        f"{path.stem} is in use by {holder(path)}; wait for it to end, or stop it, and run the same"
        " command again"
    )


def holder(path: Path) -> str:
    """Who wrote into the lock file last: `process 12 on host a (stage rollout, since ...)`."""
    try:
        content = json.loads(path.read_text())
        return (
            f"process {content['pid']} on host {content['host']}"
            f" (stage {content['stage']}, since {content['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _try(descriptor: int, path: Path, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise lacks(path.parent, NO_LOCKS) from None
    return True


def _describe(descriptor: int, stage: str) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"pid": os.getpid(), "host": socket.gethostname(), "stage": stage, "since": since}
    text = json.dumps(content).encode()
    # Padded rather than truncated first: a reader never finds the file empty.
    os.pwrite(descriptor, text.ljust(512), 0)
    os.ftruncate(descriptor, 512)
