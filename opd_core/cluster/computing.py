"""Computes a stage's work: here, or by workers where the config has `[cluster]`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

from opd_core.cluster.work import Loaded, Piece, StageWork, as_it_is
from opd_core.prompts.videos_there import VideosThere
from opd_core.types import Batch, GroundingExample

Record = TypeVar("Record")


def computed(
    work: StageWork[Record],
    plan: Sequence[Piece],
    among: Sequence[GroundingExample] = (),
    loaded: Loaded = as_it_is,
) -> Iterator[Batch[Record]]:
    """The records of all pieces, batch by batch: in their order in this process, and with
    `[cluster]` as workers have them ready.

    `among`: all examples of the stage, of which the plan may be what is left. Raises
    `VideoOPDError` where most of their videos are missing, at the start or later.
    """
    if not plan:
        return
    company = among or [example for piece in plan for example in piece.examples]
    there = VideosThere(work.config, work.stage, company)
    there.check()
    if work.config.cluster is None:
        batches = _here(work, plan, loaded)
    else:
        from opd_core.cluster.workers import by_workers

        batches = by_workers(work, plan, loaded)
    for batch in batches:
        there.check(batch.quarantined)
        yield batch


def _here(
    work: StageWork[Record], plan: Sequence[Piece], loaded: Loaded
) -> Iterator[Batch[Record]]:
    with work.opened() as compute:
        yield from compute(Planned(plan, loaded))


class Planned:
    """A `Feed` of which all is known."""

    def __init__(self, plan: Sequence[Piece], loaded: Loaded = as_it_is) -> None:
        self._rest, self._loaded = deque(plan), loaded

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if not self._rest:
            raise StopIteration
        return self._loaded(self._rest.popleft())

    def following(self) -> Sequence[GroundingExample]:
        return self._rest[0].examples if self._rest else ()
