"""What was found in video files, kept beside an import, so that a killed one goes on.

A JSON line a file, appended and flushed as soon as it is known. A line counts as long as the file
has the size and the time of change that it had, and files are looked at by the rules that they were
(`probing.RULES`); a line cut off by a kill is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from opd_core.video.probing import RULES, Probe, ProbeResult, Unusable


class ProbeCache:
    """What is known of the files of a folder of videos, in memory and in the file `path`."""

    def __init__(self, path: Path, videos: Path) -> None:
        self.path = path
        self._videos = videos
        self._file: IO[bytes] | None = None
        self.known: dict[str, ProbeResult] = dict(self._read())
        """By path, relative to the folder of videos."""

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Open the file for `add`."""
        with self.path.open("ab") as self._file:
            self._file.write(b"\n")  # the line before may be cut off
            yield
        self._file = None

    def add(self, name: str, result: ProbeResult) -> None:
        """Remember it; on disk only what another look would find again."""
        self.known[name] = result
        if isinstance(result, Unusable) and not result.final:
            return
        try:
            stamp = self._stamp(name)
        except OSError:
            return
        row = {"video": name, **stamp}
        if isinstance(result, Probe):
            row["probe"] = asdict(result)
        else:
            row["unusable"] = result.reason
        assert self._file is not None
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def _stamp(self, name: str) -> dict[str, Any]:
        file = (self._videos / name).stat()
        return {"size": file.st_size, "mtime_ns": file.st_mtime_ns, "rules": RULES}

    def _read(self) -> Iterator[tuple[str, ProbeResult]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    stamp = self._stamp(row["video"])
                    if stamp != {name: row[name] for name in stamp}:
                        continue
                    if "probe" in row:
                        yield row["video"], Probe(**row["probe"])
                    else:
                        yield row["video"], Unusable(row["unusable"], final=True)
                except (ValueError, KeyError, TypeError, OSError):
                    continue
