"""What was computed of a run, kept as long as what it was computed from is the same.

A page that is kept up to date while an update runs would compute a million rows again for a step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

Value = TypeVar("Value")


class Kept:
    """The newest value of each thing; of several threads that ask at once one computes it, the
    others wait: windows that are open on a run all ask when it has changed."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Hashable, object]] = {}
        self._guard = threading.Lock()
        self._computing: dict[Hashable, threading.Lock] = {}

    def __call__(self, what: Hashable, source: Hashable, compute: Callable[[], Value]) -> Value:
        """`compute()`, or what it was when `what` was last asked for with this `source`."""
        with self._guard:
            computing = self._computing.setdefault(what, threading.Lock())
        with computing:
            known = self._known.get(what)
            if known is None or known[0] != source:
                known = (source, compute())
                self._known[what] = known
            return cast("Value", known[1])
