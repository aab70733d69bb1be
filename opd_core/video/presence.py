"""Whether the videos are there at all, before each that is not becomes a row of `quarantine`.

A folder that is not mounted is one thing that is wrong, not as many as there are videos. So nothing
is recorded where the folder is missing, or most of its files; what misses a few goes on without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from opd_core.types import VideoOPDError

MOST = 0.5
"""More than this share of the files."""


def refuse_missing_folder(folder: Path, key: str = "data.videos") -> None:
    """Raises `VideoOPDError` where `folder` is no folder that can be read. `key`: what names it."""
    problem = None
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "is not there"
    elif not os.access(folder, os.R_OK | os.X_OK):
        problem = "may not be read"
    if problem:
        raise VideoOPDError(
            f"the folder of videos {folder} {problem}; mount it or correct {key}, and give the "
            "same command again (no video was given up)"
        )


def refuse_missing(
    folder: Path,
    names: Iterable[str],
    unreadable: Collection[str | None] = (),
    annotated: Callable[[], Iterable[str]] | None = None,
) -> None:
    """Raises `VideoOPDError` also where most of the named files are missing or may not be read.

    `unreadable` are some that were tried: a disk may list what it cannot give. `annotated` names
    all videos of which `names` are a choice: where most of those are there, the few that were
    chosen are missing each for itself.
    """
    refuse_missing_folder(folder)
    wanted = dict.fromkeys(names)
    missing = [n for n in wanted if not is_readable(folder / n)]
    not_given = [n for n in wanted if n in unreadable and n not in missing]
    if len(missing) + len(not_given) <= MOST * len(wanted):
        return
    if annotated is not None and len(not_given) <= MOST * len(wanted):
        every = dict.fromkeys(annotated())
        there = sum(is_readable(folder / n) for n in every)
        if every and there >= (1 - MOST) * len(every):
            return
    first = [*missing, *not_given][0]
    raise VideoOPDError(
        f"{len(missing) + len(not_given):,} of {len(wanted):,} videos that are wanted are not in "
        f"{folder} or cannot be read, the first {first!r}; mount it or correct data.videos, and "
        "give the same command again (no video was given up), or leave them out of the annotations"
    )


def is_readable(path: Path) -> bool:
    """Whether there is such a file, and it may be read."""
    try:
        return os.access(path, os.R_OK)
    except ValueError:  # a path that no system has is the annotation's fault, not the folder's
        return True
