"""Look once at each of many video files, in parallel: length, frame rate, codec, hash.

Every thread owns one decoding process and asks it about file after file. A file that hangs its
process costs that process and its own time limit, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from opd_core.child_process import ChildCrash, ChildTimeout
from opd_core.video.child import DecoderProcess
from opd_core.video.frame_times import UnusableVideo

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
) -> Generator[tuple[str, ProbeResult]]:
    """(name, what was found) of each file below `folder`, as they are done, in any order. To be
    closed by who leaves early.

    Raises `VideoOPDError` where the decoding process does not start at all.
    """
    started: list[DecoderProcess] = []
    of_thread = threading.local()

    def look(name: str) -> ProbeResult:
        path = folder / name
        if fault := _fault(path):
            return fault
        child: DecoderProcess | None = getattr(of_thread, "child", None)
        if child is None or child.is_ended:
            child = of_thread.child = DecoderProcess("pyav")
            started.append(child)
        return _survey(child, path, timeout_seconds)

    threads = ThreadPoolExecutor(min(jobs, len(names)) or 1)
    try:
        futures = {threads.submit(look, name): name for name in names}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # also when the reader has had enough, or Ctrl-C
        threads.shutdown(wait=False, cancel_futures=True)
        for child in started:
            child.kill()  # whoever waits for it lets go
        threads.shutdown()
        for child in started:
            child.end()


def _fault(path: Path) -> Unusable | None:
    """What is wrong with a file before it is opened."""
    try:
        is_empty = path.stat().st_size == 0
    except OSError as error:
        return Unusable(f"it cannot be read: {error.strerror}", final=False)
    return Unusable("it is empty (0 bytes)", final=True) if is_empty else None


def _survey(child: DecoderProcess, path: Path, seconds: float) -> ProbeResult:
    request = {"do": "survey", "path": str(path.absolute())}
    try:
        return Probe(**child.ask(request, time.monotonic() + seconds))
    except UnusableVideo as error:
        return Unusable(f"it {error}", final=True)
    except ChildTimeout:
        return Unusable(f"looking at it took longer than {seconds:g} s", final=False)
    except ChildCrash as error:
        return Unusable(f"the decoding process {error}", final=False)
