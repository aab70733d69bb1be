"""Trackers while rounds go on: a process each, which reads the tables and is never waited for.

    with tracked(work) as finished:
        ...
        finished()              # after each round

At the end they get `tracking.seconds` together to be done. One that has failed, or is not done
then, is told in a sentence; what it lacks is in the tables, and `videoopd track` tells it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from storage.files import short

if TYPE_CHECKING:
    from opd_core.config.load import Config

TOLD_LETTERS = 200
"""Of what a tracker said last."""
_under_way: dict[Path, Callable[[], None]] = {}
"""Runs whose trackers this process has started, and what tells them of a round inside."""


@dataclass
class _Follower:
    name: str
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    over: bool = False
    """It was warned of."""

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended, or reads nothing: which is seen at the end
            os.write(self.process.stdin.fileno(), line)

    def said_last(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:TOLD_LETTERS] if lines else ""


@contextmanager
def tracked(config: Config) -> Iterator[Callable[[], None]]:
    """Let the trackers of a config follow its run meanwhile; the yielded function says that a round
    is finished."""
    run = config.run.path
    if not config.tracking.to or run in _under_way:
        yield _under_way.get(run, lambda: None)
        return
    followers = [_started(config, name) for name in config.tracking.to]

    def finished() -> None:
        for follower in followers:
            follower.tell(b"\n")
        _warn_of_failed(followers, config)

    _under_way[run] = finished
    try:
        yield finished
    finally:
        del _under_way[run]
        _end(followers, config)


def _started(config: Config, name: str) -> _Follower:
    settings = config.tracking
    errors = TemporaryFile()  # noqa: SIM115  (for as long as the process lives)
    process = subprocess.Popen(
        [
            sys.executable, "-P", "-m", "flows.tracking.following", str(config.run.path), name,
            settings.project, str(config.trackers_path), str(settings.seconds),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return _Follower(name, process, errors)


def _end(followers: Sequence[_Follower], config: Config) -> None:
    for follower in followers:
        assert follower.process.stdin is not None
        with suppress(OSError):
            follower.process.stdin.close()
    until = time.monotonic() + config.tracking.seconds
    for follower in followers:
        try:
            follower.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill(follower)
            _warn(follower, config, f"was not done after {config.tracking.seconds:g} s")
    _warn_of_failed(followers, config)
    for follower in followers:
        _kill(follower)  # what it has started itself
        follower.errors.close()


def _kill(follower: _Follower) -> None:
    with suppress(ProcessLookupError):
        os.killpg(follower.process.pid, signal.SIGKILL)
    follower.process.wait()


def _warn_of_failed(followers: Sequence[_Follower], config: Config) -> None:
    for follower in followers:
        code = follower.process.poll()
        if code:
            how = (
                f"was killed by signal {-code}" if code < 0 else f"failed ({follower.said_last()})"
            )
            _warn(follower, config, how)


def _warn(follower: _Follower, config: Config, how: str) -> None:
    if follower.over:
        return
    follower.over = True
    warnings.warn(
        f"the tracker {follower.name} {how}; the rows are all there, and `videoopd track "
        f"{short(config.run.path)} --to {follower.name}` tells it what it lacks",
        RuntimeWarning,
        stacklevel=2,
    )
