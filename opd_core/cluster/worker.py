"""What runs in a worker: the stage's work, opened once, and a thread that computes with it.

Calls hand over a piece and wait for its rows; they come from threads of Ray's, two at a time, so
that the next piece is prepared while the engine works on the last.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from opd_core.cluster.freed_memory import keep_freed_memory
from opd_core.cluster.use import Meter, Use
from opd_core.cluster.work import Piece, StageWork
from opd_core.prompts.batches import reading_through
from opd_core.types import Batch, GroundingExample
from opd_core.video.clip import ClipStore

Record = TypeVar("Record")


class Worker(Generic[Record]):
    """`store`: through which videos are read."""

    def __init__(self, work: StageWork[Record], store: ClipStore | None) -> None:
        self._work, self._store = work, store
        self._meter = Meter()
        self._opened: Future[None] = Future()
        self._handed = _Handed()
        self._guard = threading.Condition()
        """Over the rest: calls come from several threads."""
        self._waiting: deque[Future[Batch[Record]]] = deque()
        self._error: BaseException | None = None
        self._closing = False
        self._count = 0
        self._thread = threading.Thread(target=self._work_through, daemon=True, name="worker")

    def open(self) -> Use:
        """Load what computing takes. Raises `VideoOPDError` where it cannot be."""
        self._thread.start()
        self._opened.result()
        return self._report()

    def compute(self, piece: Piece) -> tuple[Batch[Record], Use]:
        """The rows of a piece, and what was used since the last ones."""
        rows: Future[Batch[Record]] = Future()
        with self._guard:
            if self._error is not None:
                raise self._error
            self._waiting.append(rows)
            self._handed.put(piece)
            self._count += 1
            self._guard.notify_all()
        return rows.result(), self._report()

    def pause(self, after: int) -> None:
        """Nothing more comes for the moment, after so many pieces: what waits for the next need
        not. Calls may overtake each other."""
        with self._guard:
            self._guard.wait_for(lambda: self._count >= after or self._error is not None)
            self._handed.put(None)

    def close(self) -> Use:
        """Let go of all that was opened."""
        self._closing = True
        self._handed.put(None)
        self._thread.join()
        return self._report()

    def _report(self) -> Use:
        with self._guard:
            return self._meter.report()

    def _work_through(self) -> None:
        from opd_core.model.tree_model import set_threads

        try:
            keep_freed_memory()
            set_threads(self._work.config.machine.threads)
            with reading_through(self._store), self._work.opened() as compute:
                self._opened.set_result(None)
                while not self._closing:
                    for batch in compute(self._handed):
                        with self._guard:
                            waiting = self._waiting.popleft()
                        waiting.set_result(batch)
        except BaseException as error:
            with self._guard:
                self._error = error
                self._guard.notify_all()
                left = list(self._waiting)
            if not self._opened.done():
                self._opened.set_exception(error)
            for rows in left:
                rows.set_exception(error)


class _Handed:
    """A `Feed`, up to the next pause, of what this worker was handed."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[Piece | None] = queue.Queue()

    def put(self, piece: Piece | None) -> None:
        """None: a pause."""
        self._pieces.put(piece)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        piece = self._pieces.get()
        if piece is None:
            raise StopIteration
        return piece

    def following(self) -> Sequence[GroundingExample]:
        with self._pieces.mutex:
            coming = self._pieces.queue[0] if self._pieces.queue else None
        return () if coming is None else coming.examples
