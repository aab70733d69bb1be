"""Files that others may read when the umask says so.

safetensors writes a file aside with the mode of a private temporary file, 0600, and renames it.
"""

from __future__ import annotations

import os
from pathlib import Path


def give_umask_modes(folder: Path) -> None:
    """All that is in `folder` as open() and mkdir() would have made it."""
    mask = _umask()
    for path in sorted(folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    except (OSError, StopIteration):
        mask = os.umask(0o022)  # no other way to ask, and not safe beside other threads
        os.umask(mask)
        return mask
