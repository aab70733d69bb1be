"""How long the engines of this process have worked, and have had nothing to do: the only place that
knows.

An engine is idle from when it has answered all that it was asked (at first: from when it is open)
until it is asked again: while prompts are decoded and encoded, and, of one in another process
(vLLM, which tells its own times), while what it answered is looked at. What an engine does beside
answering, as loading weights, is neither.
"""

from __future__ import annotations

from typing import NamedTuple


class EngineTime(NamedTuple):
    """Seconds."""

    working: float = 0.0
    idle: float = 0.0

    @property
    def idle_share(self) -> float | None:
        """None where no engine was asked anything."""
        return self.idle / (self.working + self.idle) if self.working else None


_total = EngineTime()


def passed(working: float = 0.0, idle: float = 0.0) -> None:
    """So many seconds more."""
    global _total
    _total = EngineTime(_total.working + working, _total.idle + idle)


def total() -> EngineTime:
    """Since the process began."""
    return _total
