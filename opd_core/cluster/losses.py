"""How many workers this process has lost, and how many pieces were computed again for it: the only
place that knows."""

from __future__ import annotations

from typing import NamedTuple


class Losses(NamedTuple):
    workers: int = 0
    again: int = 0
    """Pieces that were handed out once more."""

    def since(self, before: Losses) -> Losses:
        return Losses(self.workers - before.workers, self.again - before.again)


_total = Losses()


def happened(again: int) -> None:
    """A worker is gone, and so many pieces with it."""
    global _total
    _total = Losses(_total.workers + 1, _total.again + again)


def total() -> Losses:
    """Since the process began."""
    return _total
