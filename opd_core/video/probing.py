"""Look once at each of many video files, in parallel: length, frame rate, codec, hash.

Every thread owns one decoding process and asks it about file after file. A file that hangs its
process costs that process and its own time limit, and nothing else.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_core.video.child import DecoderCrash, DecoderProcess, DecoderTimeout

RULES = 2
"""Raise it when a look finds other things than before."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found in a file that can be used."""

    duration: float
    """Seconds, to the end of the last frame, as a player counts them (`frame_times.py`)."""
    fps: float
    """Where the rate varies, on average."""
    codec: str
    sha256: str
    """Of the whole file."""


@dataclass(frozen=True, slots=True)
class Unusable:
    reason: str
    """One sentence."""
    final: bool
    """Whether another look would find the same; not so for a hang, a crash, a missing file."""


ProbeResult = Probe | Unusable


def probe_files(
    folder: Path, names: Sequence[str], jobs: int, timeout_seconds: float
) -> Iterator[tuple[str, ProbeResult]]:
    """(name, what was found) of each file below `folder`, as they are done, in any order.

    Raises `VideoOPDError` where the decoding process does not start at all.
    """
    todo = deque(names)
    results: queue.SimpleQueue[tuple[str, ProbeResult] | BaseException] = queue.SimpleQueue()
    workers = [_Worker(folder, todo, results, timeout_seconds) for _ in range(min(jobs, len(todo)))]
    try:
        for worker in workers:
            worker.start()
        for _ in names:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:  # also when the reader has had enough, or Ctrl-C
        todo.clear()
        for worker in workers:
            worker.stop()


class _Worker(threading.Thread):
    def __init__(
        self,
        folder: Path,
        todo: deque[str],
        results: queue.SimpleQueue[tuple[str, ProbeResult] | BaseException],
        timeout_seconds: float,
    ) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._todo = todo
        self._results = results
        self._timeout = timeout_seconds
        self._child: DecoderProcess | None = None

    def stop(self) -> None:
        """Ends it in the middle of a file. `todo` is empty by now."""
        child = self._child
        if child is not None:
            child.kill()  # whoever waits for it lets go
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        try:
            while True:
                try:
                    name = self._todo.popleft()
                except IndexError:
                    return
                self._results.put((name, self._look_at(name)))
        except BaseException as error:
            self._results.put(error)
        finally:
            if self._child is not None:
                self._child.close()

    def _look_at(self, name: str) -> ProbeResult:
        path = self._folder / name
        try:
            if path.stat().st_size == 0:
                return Unusable("it is empty (0 bytes)", final=True)
        except OSError as error:
            return Unusable(f"it cannot be read: {error.strerror}", final=False)
        if self._child is None:
            self._child = DecoderProcess("pyav")
        request = {"do": "survey", "path": str(path.absolute())}
        try:
            found, _ = self._child.ask(request, time.monotonic() + self._timeout)
        except DecoderTimeout:
            self._child = None
            return Unusable(f"looking at it took longer than {self._timeout:g} s", final=False)
        except DecoderCrash as error:
            self._child = None
            return Unusable(str(error), final=False)
        if "unusable" in found:
            return Unusable(f"it {found['unusable']}", final=True)
        return Probe(**found)
