"""When a clip of the frame store was last used: what least-recently-used eviction goes by.

A line a use in `used.log`, appended without a lock, because a reader must never wait. What is lost
when the log is tidied meanwhile is one use, not a clip.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from storage.files import write_whole
from storage.video_hashes import append_line

REWRITE_ABOVE_BYTES = 8 << 20


class LastUse:
    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, key: str) -> None:
        """`key` was used now."""
        try:
            append_line(self._path, f"{key} {time.time_ns()}")
        except OSError:
            pass  # a store on a read-only disk can be read, too

    def times(self) -> dict[str, int]:
        """key -> nanoseconds since the epoch, of those that were ever used."""
        times: dict[str, int] = {}
        try:
            text = self._path.read_text(errors="replace")
        except OSError:
            return times
        for line in text.splitlines():
            key, _, when = line.partition(" ")
            if when.isdecimal():
                times[key] = max(int(when), times.get(key, 0))
        return times

    def tidy(self, keep: Iterable[str]) -> None:
        """Rewrite a log that has grown large; for the holder of the store's lock."""
        if not self._path.exists() or self._path.stat().st_size < REWRITE_ABOVE_BYTES:
            return
        times = self.times()
        lines = [f"{key} {times[key]}{os.linesep}" for key in keep if key in times]
        write_whole(self._path, "".join(lines))
