"""Batches of prompts and their answers, one after the other, so that no engine waits for prompts.

The prompts of a batch are encoded while the one before is answered. An engine in this process takes
this thread, so there they are encoded in another (`ExampleEncoder.encode_batches`). One that works
elsewhere is asked for the next batch before the answers to the last are waited for, and prepares it
in the meantime. What an engine computes together is a batch either way, so no number depends on how
fast anything was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from opd_core.engines import idle_time
from opd_core.engines.base import OpenedEngine, WorksElsewhere
from opd_core.prompts.batches import EncodedBatch

Answers = TypeVar("Answers")


@dataclass(slots=True)
class Turn(Generic[Answers]):
    """A batch that is asked."""

    encoded: EncodedBatch
    answers: Callable[[], Answers]
    """Waits for them."""
    since: float
    """When it was asked, by `time.perf_counter`."""


def in_turn(
    engine: OpenedEngine,
    batches: Iterator[EncodedBatch],
    ask: Callable[[EncodedBatch], Callable[[], Answers]],
) -> Iterator[Turn[Answers]]:
    """The batches in their order; `ask` hands one over and gives what waits for the answers.

    What is raised about a batch is raised in its place: after the answers to those before it.
    """
    if not isinstance(engine, WorksElsewhere):
        while True:
            began = time.perf_counter()
            encoded = next(batches, None)
            if encoded is None:
                return
            idle_time.passed(idle=time.perf_counter() - began)
            yield Turn(encoded, ask(encoded), time.perf_counter())
    asked: Turn[Answers] | None = None
    problem: Exception | None = None
    while problem is None:
        following: Turn[Answers] | None = None
        try:
            encoded = next(batches, None)
            if encoded is not None:
                following = Turn(encoded, ask(encoded), time.perf_counter())
        except Exception as error:
            problem = error
        if asked is not None:
            yield asked
        if following is None:
            break
        asked = following
    if problem is not None:
        raise problem
