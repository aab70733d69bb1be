"""Files that are there whole or not at all, and disk troubles told in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opd_core.types import VideoOPDError

# Lance reports what the operating system said as text only, so the text is what is looked for.
_TROUBLES = {
    "No space left on device": "its disk is full; free some space and run the same command again",
    "Disk quota exceeded": "its disk quota is used up; free some space and run the same command"
    " again",
    "File too large": "it reached the limit on file size; raise it (ulimit -f) and run the same"
    " command again",
    "Read-only file system": "its file system is read-only; mount it writable",
    "Permission denied": "this user may not write there; change the folder's permissions",
}


@contextmanager
def disk_troubles(folder: Path) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk into one sentence that names `folder`."""
    try:
        yield
    except VideoOPDError:
        raise
    except Exception as error:
        for text, meaning in _TROUBLES.items():
            if text in str(error):
                raise VideoOPDError(f"{folder} cannot be written: {meaning}") from error
        raise


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` by a rename at the end: there whole or not at all.

    Raises `VideoOPDError` where `out` holds something.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise VideoOPDError(f"{out} is not empty; give --out a new folder")
    aside = out.with_name(f".{out.name}.exporting-{uuid.uuid4().hex[:8]}")
    try:
        with disk_troubles(out.parent):
            aside.mkdir(parents=True)
            yield aside
            if out.exists():
                out.rmdir()
            aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to `path`: readers see the old content or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes all files below `folder` survive a power cut."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))
