"""Files that are there whole or not at all, and disk troubles told in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
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
        if meaning := told_by_disk(error):
            raise VideoOPDError(f"{folder} cannot be written: {meaning}") from error
        raise


def told_by_disk(error: BaseException) -> str | None:
    """What a full, read-only or forbidden disk says, and the fix; None for any other error."""
    return next((meaning for text, meaning in _TROUBLES.items() if text in str(error)), None)


def short(path: Path) -> Path:
    """The path as one types it: from this folder, where it is below it."""
    path, here = path.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def make_folder(folder: Path) -> None:
    """Makes `folder` with its parents, where it is not there yet. Raises `VideoOPDError`."""
    with disk_troubles(folder):
        try:
            folder.resolve().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if told_by_disk(error):
                raise
            in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
            why = "a file is in the way" if in_the_way else error.strerror
            raise VideoOPDError(
                f"the folder {folder} cannot be made ({why}); choose another place"
            ) from None


@contextmanager
def removed_if_refused(folder: Path) -> Iterator[bool]:
    """Makes `folder` with its parents; what of them was not there is removed again, with all that
    is in it, where the block ends with a `VideoOPDError`. Yields whether something was not."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    make_folder(folder)
    try:
        yield bool(missing)
    except VideoOPDError:
        if missing:
            shutil.rmtree(missing[-1], ignore_errors=True)
        raise


@contextmanager
def new_folder(
    out: Path, ours: Callable[[Path], Collection[str]] | None = None, fix: str = ""
) -> Iterator[Path]:
    """A folder to fill, which becomes `out` by a rename at the end: there whole or not at all.

    Raises `VideoOPDError` where `out` holds something; with `ours`, only where it holds anything
    but these names, and it is then replaced. `fix`: what else may be done than to name a new one.
    Refused, it leaves no folder behind.
    """
    out = Path(out).absolute()
    _refuse_to_overwrite(out, ours, fix)
    aside = out.with_name(f".{out.name}.exporting-{uuid.uuid4().hex[:8]}")
    missing: list[Path] = []
    try:
        with disk_troubles(out.parent):
            missing = [p for p in out.parents if not p.exists()]
            make_folder(aside)
            yield aside
            if out.exists():
                shutil.rmtree(out)
            aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in missing:  # from the innermost on; one that holds something stays
            with suppress(OSError):
                folder.rmdir()


def _refuse_to_overwrite(
    out: Path, ours: Callable[[Path], Collection[str]] | None, fix: str
) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise VideoOPDError(f"{out} is a file; give --out a new folder")
    content = {p.name for p in out.iterdir()}
    if not content:
        return
    if ours is None:
        raise VideoOPDError(f"{out} is not empty; give --out a new folder{fix}")
    if foreign := content - set(ours(out)):
        raise VideoOPDError(
            f"{out} holds what no export wrote, {min(foreign)} among it; give --out a new folder"
        )


def put_folder(staging: Path, final: Path) -> None:
    """Moves a filled folder to `final`, in the place of what is there. What a kill leaves beside it
    is called `.NAME.replaced-*`."""
    sync_tree(staging)
    final.parent.mkdir(parents=True, exist_ok=True)
    replaced = final.with_name(f".{final.name}.replaced-{uuid.uuid4().hex[:8]}")
    if final.exists():
        final.rename(replaced)
    staging.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes it at once, so that half of it is never taken for all. What a kill leaves beside it
    is called `.NAME.gone-*`."""
    gone = folder.with_name(f".{folder.name}.gone-{uuid.uuid4().hex[:8]}")
    folder.rename(gone)
    shutil.rmtree(gone)


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to `path`: readers see the old content or the new one, never a part."""
    write_bytes_whole(path, text.encode())


def write_bytes_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes `content` as `write_whole` does its text."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(content)
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
