"""What a run's folder needs of its file system, tried before anything is written there.

Everything that is said of kills, and of two processes on one run, stands on these few calls. A
mounted bucket, SMB, FAT and some FUSE file systems lack one or the other and say so only in the
middle of a round, or never. What a second machine has to see as well is tried by `shown` on this
one and `lacking_there` on the other.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opd_core.types import VideoOPDError
from storage.files import disk_troubles, sync_folder, sync_tree, told_by_disk, write_bytes_whole

PROBE = ".videoopd-probe-"
"""How the folder begins that this makes and removes; a kill may leave it."""
_FIX = (
    "set run.path to a folder on a local disk, or on NFS 4, Lustre (mounted with flock) or another"
)
_fits: set[Path] = set()


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a file system has to give."""

    lacking: str
    """What it is and what stands on it, after `the file system of FOLDER has no`."""
    given: Callable[[Path], bool]
    """Whether it gives it, tried in an empty folder; an `OSError` means that it does not."""


def refuse_lacking(folder: Path) -> None:
    """Raises `VideoOPDError` naming the first thing that the file system of `folder`, which has to
    be there, does not give. Tried once a process and folder, in a few milliseconds."""
    if folder in _fits:
        return
    with _probe(folder) as probe:
        for number, need in enumerate(NEEDS):
            own = probe / str(number)
            own.mkdir()
            if not _gives(need, own):
                raise lacks(folder, need.lacking)
    _fits.add(folder)


def lacks(folder: Path, what: str) -> VideoOPDError:
    """The refusal: `what` the file system of `folder` has not."""
    return VideoOPDError(f"the file system of {folder} has no {what}; {_FIX} that has them")


def _gives(need: Need, folder: Path) -> bool:
    try:
        return need.given(folder)
    except OSError as error:
        if told_by_disk(error):
            raise
        return False


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A folder of its own below `folder`, gone at the end."""
    with disk_troubles(folder):
        probe = Path(tempfile.mkdtemp(prefix=PROBE, dir=folder))
        try:
            yield probe
        finally:
            shutil.rmtree(probe, ignore_errors=True)


def _locks(folder: Path) -> bool:
    with (folder / "lock").open("w+b") as first, (folder / "lock").open("r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return not lock_is_free(second.fileno())


def lock_is_free(descriptor: int) -> bool:
    """Whether nobody else holds the lock of an open file; held by this one from then on."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replaces_files(folder: Path) -> bool:
    for content in (b"old", b"new"):
        write_bytes_whole(folder / "file", content)
    return (folder / "file").read_bytes() == b"new" and len(list(folder.iterdir())) == 1


def _moves_folders(folder: Path) -> bool:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    (folder / "one").rename(folder / "moved")
    try:
        (folder / "two").rename(folder / "moved")
    except OSError as error:  # as it should be: the first that is there stays
        return error.errno in (errno.ENOTEMPTY, errno.EEXIST) and (
            (folder / "moved" / "file").read_text() == "one"
        )
    return False


def _links(folder: Path) -> bool:
    for name in ("one", "two"):
        (folder / name).write_text(name)
    os.link(folder / "one", folder / "committed")
    try:
        os.link(folder / "two", folder / "committed")
    except FileExistsError:  # as it should be: who is second commits nothing
        return (folder / "committed").read_text() == "one"
    return False


def _flushes(folder: Path) -> bool:
    (folder / "file").write_text("kept")
    sync_tree(folder)
    sync_folder(folder)
    return True


def _overwrites_in_place(folder: Path) -> bool:
    with (folder / "file").open("w+b") as file:
        os.pwrite(file.fileno(), b"long text", 0)
        os.pwrite(file.fileno(), b"LONG", 0)
        os.ftruncate(file.fileno(), 4)
    return (folder / "file").read_bytes() == b"LONG"


def _maps(folder: Path) -> bool:
    (folder / "file").write_text("mapped")
    with (
        (folder / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        return mapped[:] == b"mapped"


NO_LOCKS = "file locks, which keep two writers apart"
NEEDS = (
    Need(NO_LOCKS, _locks),
    Need("hard links that refuse a name that is taken, by which Lance commits rows", _links),
    Need("fsync of files and folders, by which a commit outlives a power cut", _flushes),
    Need(
        "rename that replaces a file at once, by which files are there whole or not",
        _replaces_files,
    ),
    Need(
        "rename of folders that refuses a name that is taken, by which policies are published",
        _moves_folders,
    ),
    Need("writing in the middle of a file, by which a lock names its holder", _overwrites_in_place),
    Need("files that can be mapped into memory, by which weights are hashed and loaded", _maps),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What this machine has put into a run's folder for another one to look at."""

    probe: Path
    word: str
    """What the file there says now; it said something else before."""


@contextmanager
def shown(folder: Path) -> Iterator[Shown]:
    """Holds a lock in `folder`, and shows a file there that has been replaced, for
    `lacking_there`."""
    with _probe(folder) as probe, (probe / "lock").open("w+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        word = uuid.uuid4().hex
        for content in ("before", word):
            write_bytes_whole(probe / "word", content.encode())
        yield Shown(probe, word)


def lacking_there(shown: Shown) -> str | None:
    """What this machine does not see of what another one shows, to be said after `the file system
    of FOLDER has no`; None where it sees all."""
    try:
        if (shown.probe / "word").read_text() != shown.word:
            return "rename that is seen on other machines at once"
    except OSError:
        return "files that are seen on other machines: it is not the same folder there"
    with (shown.probe / "lock").open("r+b") as lock:
        if lock_is_free(lock.fileno()):
            return "file locks that hold between machines"
    return None
