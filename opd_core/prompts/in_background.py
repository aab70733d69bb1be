"""One computation in a thread of its own, which ends with it.

No pool and no queue: whoever is killed, or does not come back for what he has asked for, leaves no
thread behind that waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 2.0


class InBackground(Generic[T]):
    """Starts at once. `make` is given an event that tells it to stop early."""

    def __init__(self, make: Callable[[threading.Event], T]) -> None:
        self._stop = threading.Event()
        self._made: T | None = None
        self._error: BaseException | None = None

        def work() -> None:
            try:
                self._made = make(self._stop)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, daemon=True, name="in the background")
        self._thread.start()

    def result(self) -> T:
        """Wait for what was made; raises what making it has raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._made  # type: ignore[return-value]  # there, unless there was an error

    def give_up(self) -> None:
        """Tell it to stop. It ends by itself, and is waited for only a moment: it may be in the
        middle of a video that takes long."""
        self._stop.set()
        self._thread.join(PATIENCE_SECONDS)
