"""Batches that come one after the other, and what is known of the one after the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from opd_core.types import GroundingExample


class Upcoming(Protocol):
    """Examples, batch by batch. Asking for the next may wait for somebody to hand it out."""

    def __iter__(self) -> Iterator[Sequence[GroundingExample]]: ...

    def __next__(self) -> Sequence[GroundingExample]: ...

    def following(self) -> Sequence[GroundingExample]:
        """The batch after the last that was asked for, as far as it is known: its videos may be
        decoded already."""
        ...


class Listed:
    """An `Upcoming` of which all is known."""

    def __init__(self, batches: Sequence[Sequence[GroundingExample]]) -> None:
        self._batches, self._number = batches, 0

    def __iter__(self) -> Iterator[Sequence[GroundingExample]]:
        return self

    def __next__(self) -> Sequence[GroundingExample]:
        if self._number == len(self._batches):
            raise StopIteration
        self._number += 1
        return self._batches[self._number - 1]

    def following(self) -> Sequence[GroundingExample]:
        rest = self._batches[self._number : self._number + 1]
        return rest[0] if rest else ()
