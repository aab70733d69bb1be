"""What a process has made of a checkpoint folder's files, kept until one of them changes.

Each stage of a round asks for the same processors and configs. To open them again was a tenth of a
tiny model's round, and a real vocabulary is far larger.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")
FOLDERS = 4
"""Of how many folders: a student, the policy after it, and teachers."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def kept_while_untouched(
    make: Callable[[Path], Made], reads_weights: bool = False
) -> Callable[[Path], Made]:
    """`make(folder)`, which is called again for a folder of which a file (other than weights, which
    it does not read) has changed in size, modification time or inode change time. What it raises is
    not kept."""

    @lru_cache(maxsize=FOLDERS)
    def made(folder: Path, stamp: tuple[tuple[str, int, int, int], ...]) -> Made:
        return make(folder)

    @wraps(make)
    def kept(folder: Path) -> Made:
        if not folder.is_dir():
            return make(folder)  # which says so
        return made(folder, _stamp(folder, () if reads_weights else _WEIGHTS))

    return kept


def _stamp(folder: Path, but: tuple[str, ...]) -> tuple[tuple[str, int, int, int], ...]:
    with os.scandir(folder) as entries:
        stats = {e.name: e.stat() for e in entries if not e.name.endswith(but)}
    return tuple(
        (name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in sorted(stats.items())
    )
