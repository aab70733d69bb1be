"""What a worker has used, for the meters of the process that dealt out the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opd_core.engines import idle_time
from opd_core.model import peak_memory, token_count


@dataclass(frozen=True, slots=True)
class Use:
    """Since the last report."""

    tokens: int
    working: float
    idle: float
    """Seconds of its engine."""
    peak: int
    """Bytes, since it opened."""
    memory_of: Literal["cuda", "process"]


class Meter:
    """Of a worker's process, in it."""

    def __init__(self) -> None:
        peak_memory.begin()
        self._tokens, self._engine = token_count.total(), idle_time.total()

    def report(self) -> Use:
        """What was used since the last one."""
        before = self._tokens, self._engine
        self._tokens, self._engine = token_count.total(), idle_time.total()
        return Use(
            self._tokens - before[0],
            self._engine.working - before[1].working,
            self._engine.idle - before[1].idle,
            *peak_memory.peak(),
        )


def add(use: Use) -> None:
    """To the meters of this process."""
    token_count.passed(use.tokens)
    idle_time.passed(use.working, use.idle)
    peak_memory.held_elsewhere(use.peak, use.memory_of)
