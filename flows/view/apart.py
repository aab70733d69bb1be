"""A condition in SQL that somebody typed, asked in a process of its own.

An expression can take for ever, or all memory, and a thread cannot be stopped. The process is
started for the first such question, killed where it takes too long, and let go when nobody asks.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.child_process import Child, ChildCrash, ChildTimeout, connect
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    import numpy as np

    from storage.runs.run import Run

SECONDS = 10.0
"""That a question may take."""
MEMORY = 2**31
"""Bytes that a question may take."""
_START_SECONDS = 60.0
_IDLE_SECONDS = 30.0
_WRITES = re.compile(
    r"\s*(alter|attach|begin|call|commit|copy|create|delete|detach|drop|execute|explain|grant|insert"
    r"|install|load|merge|pragma|replace|revoke|set|truncate|update|use|vacuum)\s",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")


@dataclass(frozen=True, slots=True)
class Question:
    """Which rows of the view `trajectories` a condition is true of, in a frozen run."""

    run: Path
    round: int | None
    versions: Mapping[str, int]
    where: str
    kept: Path
    """An Arrow file of `Scalars.frame`."""


class Apart:
    """The process, one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._idle: threading.Timer | None = None

    def rows(self, question: Question) -> np.ndarray:
        """[N] bool, of each row of the view whether the condition is true.

        Raises `VideoOPDError` with the sentence of `query`, or that it took too much.
        """
        import numpy as np

        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            try:
                bits, count = self._asked(question, SECONDS)
            except BaseException as error:
                if not isinstance(error, VideoOPDError) and self._child is not None:
                    self._child.end()  # it owes an answer, which the next would get
                raise
            finally:
                self._idle = threading.Timer(_IDLE_SECONDS, self._let_go)
                self._idle.daemon = True
                self._idle.start()
        return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)

    def _asked(self, question: Question, seconds: float) -> tuple[bytes, int]:
        try:
            child = self._started()
            with child.killed_at(time.monotonic() + seconds):
                child.send(question)
                answer = child.receive()
        except ChildTimeout:
            raise VideoOPDError(
                f"where takes longer than {seconds:g} s here and was stopped; ask for less, or give"
                " it to `videoopd query`, which waits"
            ) from None
        except ChildCrash as crash:
            raise VideoOPDError(
                f"where was not answered (its process {crash.how}; it may take"
                f" {MEMORY / 2**30:g} GiB); ask for less, or give it to `videoopd query`"
            ) from None
        if isinstance(answer, VideoOPDError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _started(self) -> Child:
        if self._child is None or self._child.is_ended:
            self._child = Child("flows.view.apart", environment={"OMP_NUM_THREADS": "1"})
            with self._child.killed_at(time.monotonic() + _START_SECONDS):
                self._child.receive()
        return self._child

    def _let_go(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                if self._child is not None:
                    self._child.end()
                    self._child = None
            finally:
                self._lock.release()


def check(run: Run, where: str) -> None:
    """Raise `VideoOPDError` for what is no condition: with the sentence of `query` for a statement
    that writes, or several; for what leaves its brackets."""
    from storage.asking.query import query

    if _WRITES.match(where):
        query(run, where)
    if ";" in _QUOTED.sub("", where):
        query(run, f"SELECT rollout_id FROM trajectories WHERE {where}")
        raise VideoOPDError("where is a condition, and holds a ';'; leave it out")
    if not _stays_inside(_QUOTED.sub("", where)):
        raise VideoOPDError("where closes a bracket that it has not opened; correct it")


def _stays_inside(condition: str) -> bool:
    """Whether it is within the brackets that are put around it."""
    depth = 0
    for sign in condition:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return False
    return True


def _answer(question: Question) -> tuple[bytes, int]:
    import numpy as np
    import polars as pl

    from flows.view.rollouts import in_brackets
    from storage.asking.query import query
    from storage.asking.scalars import ROW, Scalars, standing_in
    from storage.runs.run import Run

    run = Run.open(question.run, question.round).frozen(question.versions)
    check(run, question.where)
    kept = Scalars(run, pl.read_ipc(question.kept))
    sql = f"SELECT {ROW} FROM trajectories WHERE {in_brackets(question.where)}"
    found = query(run, sql, trajectories=standing_in(kept, question.where)).to_series()
    true = np.zeros(kept.frame.height, bool)
    true[found.to_numpy()] = True
    return np.packbits(true).tobytes(), kept.frame.height


def main() -> None:
    connection = connect()
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    import storage.asking.query  # noqa: F401  (what takes longest to import)

    connection.send(os.getpid())
    while True:
        question = connection.recv()
        try:
            connection.send(_answer(question))
        except VideoOPDError as error:
            connection.send(error)


if __name__ == "__main__":
    main()
