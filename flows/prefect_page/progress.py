"""The progress that the terminal shows, as an artifact, of what takes longer than ten seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

from flows.console.progress import Advance, watched
from flows.prefect_page.artifacts import key
from flows.prefect_page.sending import sent

if TYPE_CHECKING:
    from uuid import UUID

FIRST_SECONDS = 10.0
EVERY_SECONDS = 5.0


@contextmanager
def progress_artifact(run: str, title: str) -> Iterator[None]:
    """Show how far the block is, under its title (`rollout-round-3`); at its end, 100."""

    @contextmanager
    def shown(what: str, total: int) -> Iterator[Advance]:
        artifact = _Artifact(key(run, f"{what} progress"), title, total)
        yield artifact.advance
        artifact.finish()

    with watched(shown):
        yield


class _Artifact:
    def __init__(self, name: str, title: str, total: int) -> None:
        self._name, self._title, self._total = name, title, total
        self._done = 0
        self._id: UUID | None = None
        self._next = time.monotonic() + FIRST_SECONDS

    def advance(self, count: int, saying: str = "", made_before: bool = False) -> None:
        self._done = min(self._total, self._done + count)
        if time.monotonic() >= self._next:
            self._show()

    def finish(self) -> None:
        """Where it is shown: after a failure it stays where it was."""
        if self._id is not None:
            self._done = self._total
            self._show()

    def _show(self) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        percent = 100 * self._done / self._total
        about = f"{self._title}: {self._done:,} of {self._total:,}"
        if self._id is None:
            created = sent(partial(create_progress_artifact, percent, self._name, about))
            self._id = cast("UUID | None", created)
        else:
            sent(partial(update_progress_artifact, self._id, percent, about))
        self._next = time.monotonic() + EVERY_SECONDS
