"""Which file is which video: sha256 of its bytes, computed once a file.

A line of JSON a file in `files.jsonl`. Lines are appended in one write and without a lock; one that
was cut off by a kill, or garbled, is skipped, and costs one more hashing.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path

from storage.files import write_whole

FRESH_SECONDS = 2.0
"""A file that was changed so recently may change again without another time stamp."""
REWRITE_ABOVE_BYTES = 64 << 20

_Stat = tuple[int, int, int]


class VideoHashes:
    """Hashes of video files, kept for as long as size, mtime and ctime stay the same."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[_Stat, str]] = {}
        self._read = 0
        """Bytes of the file that are in `_known`."""
        self._guard = threading.Lock()

    def of(self, path: Path) -> str:
        """sha256 (hex) of a file's bytes. Raises OSError when it cannot be read."""
        name = os.fspath(path.absolute())
        stat = _stat(path)
        with self._guard:
            for look_again in (True, False):
                known = self._known.get(name)
                if known and known[0] == stat:
                    return known[1]
                if look_again:
                    self._load()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _stat(path) == stat and max(stat[1:]) < time.time_ns() - FRESH_SECONDS * 1e9:
            with self._guard:
                self._known[name] = (stat, digest)
                self._append({"path": name, "stat": stat, "sha256": digest})
        return digest

    def last_known(self, path: Path) -> str | None:
        """The hash that was computed last for a file of this name, whatever has become of it."""
        with self._guard:
            self._load()
            known = self._known.get(os.fspath(path.absolute()))
        return None if known is None else known[1]

    def tidy(self) -> None:
        """Rewrite a file that has grown large; a line added meanwhile costs one more hashing."""
        with self._guard:
            if not self._path.exists() or self._path.stat().st_size < REWRITE_ABOVE_BYTES:
                return
            self._load()
            lines = [_line(name, stat, digest) for name, (stat, digest) in self._known.items()]
            write_whole(self._path, "".join(lines))

    def _append(self, entry: dict[str, object]) -> None:
        try:
            append_line(self._path, json.dumps(entry))
        except OSError:
            pass  # a store on a read-only disk can be read, too

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:
                    self._read = 0  # somebody has tidied
                file.seek(self._read)
                text = file.read()
        except OSError:
            return
        lines_end = text.rfind(b"\n") + 1
        self._read += lines_end
        for line in text[:lines_end].splitlines():
            try:
                entry = json.loads(line)
                size, mtime, ctime = entry["stat"]
                self._known[entry["path"]] = ((size, mtime, ctime), entry["sha256"])
            except (ValueError, KeyError, TypeError):
                continue


def append_line(path: Path, text: str) -> None:
    """One write, on a line of its own even if another process was killed in the middle of one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, f"\n{text}\n".encode())
    finally:
        os.close(descriptor)


def _line(name: str, stat: _Stat, digest: str) -> str:
    return json.dumps({"path": name, "stat": stat, "sha256": digest}) + "\n"


def _stat(path: Path) -> _Stat:
    file = path.stat()
    return file.st_size, file.st_mtime_ns, file.st_ctime_ns
