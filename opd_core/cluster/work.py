"""A stage's work, cut into pieces, for whoever computes it: this process, or workers.

A piece is what is computed together. How a plan is cut into pieces depends on neither: so no row
does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol, TypeAlias, TypeVar

from opd_core import faults
from opd_core.config.load import Config
from opd_core.prompts.batches import cut_at_videos
from opd_core.types import Batch, GroundingExample, Policy, QuarantinedItem, Rollout

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Piece:
    """A batch of a stage's plan."""

    is_first: bool
    """Of its plan: its rows keep what the gate measured."""
    examples: tuple[GroundingExample, ...]
    needed: frozenset[str]
    """Ids of the examples of which rows are missing. The others are computed along with them, as
    they were the first time."""
    answers: Mapping[str, Sequence[Rollout]] = field(default_factory=dict)
    """Example id -> rollouts that are to be scored; read when the piece is handed out."""

    def by_video(self) -> list[Piece]:
        """A piece a video."""
        groups = groupby(self.examples, key=lambda e: e.video_path)
        parts = [tuple(sentences) for _, sentences in groups]
        return [
            replace(self, is_first=self.is_first and not n, examples=part, needed=needed)
            for n, part in enumerate(parts)
            if (needed := self.needed & {e.example_id for e in part})
        ]


class Feed(Protocol):
    """Pieces one after the other. Asking for the next may wait for somebody to hand it out."""

    def __iter__(self) -> Iterator[Piece]: ...

    def __next__(self) -> Piece: ...

    def following(self) -> Sequence[GroundingExample]:
        """The examples of the piece after, where it is known already."""
        ...


Compute: TypeAlias = Callable[[Feed], Iterator[Batch[Record]]]
"""A batch of records a piece, in the order of the pieces."""
Loaded: TypeAlias = Callable[[Piece], Piece]
"""A piece with all that computing it takes."""


class StageWork(Protocol[Record]):
    """What a stage computes. It is pickled for workers, and opens there what it needs."""

    @property
    def config(self) -> Config: ...

    @property
    def stage(self) -> str: ...

    @property
    def policy(self) -> Policy: ...

    def opened(self) -> AbstractContextManager[Compute[Record]]:
        """Encoder, engine and gate, warm for any number of feeds."""
        ...


def cut(
    examples: Iterable[GroundingExample], per_piece: int, needed: Callable[[GroundingExample], bool]
) -> list[Piece]:
    """The pieces of which something is needed; the cut depends on `examples` alone."""
    batches = cut_at_videos(list(examples), per_piece)
    pairs = ((batch, frozenset(e.example_id for e in batch if needed(e))) for batch in batches)
    wanted = ((batch, ids) for batch, ids in pairs if ids)
    return [Piece(not n, tuple(batch), ids) for n, (batch, ids) in enumerate(wanted)]


def as_it_is(piece: Piece) -> Piece:
    """The `Loaded` of work that needs its examples only."""
    return piece


class Examples:
    """The examples of a feed's pieces, as the encoder takes them, and the pieces it has taken."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.taken: deque[Piece] = deque()
        """Not yet computed, in order."""

    def __iter__(self) -> Iterator[Sequence[GroundingExample]]:
        return self

    def __next__(self) -> Sequence[GroundingExample]:
        piece = next(self._feed)
        self.taken.append(piece)
        return piece.examples

    def following(self) -> Sequence[GroundingExample]:
        return self._feed.following()


def given_up(work: StageWork[Record], piece: Piece, reason: str) -> Batch[Record]:
    """What is recorded of a piece that no worker has survived."""
    rows = tuple(
        QuarantinedItem(
            e.example_id, work.stage, e.video_path, reason, work.policy.version, faults.WORKER_LOST
        )
        for e in piece.examples
        if e.example_id in piece.needed
    )
    return Batch((), rows, len(rows))
