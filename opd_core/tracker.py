"""What a tracker is: told of points one after the other, it shows them as curves.

A point has one axis. `step` counts the optimiser steps of the run, `round` its rounds (policy 0,
the base, is round 0). Names are those of `flows/tracking/names.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

Axis = Literal["step", "round"]


@dataclass(frozen=True, slots=True)
class About:
    """The run, as a tracker names and describes it."""

    name: str
    """Folder and id of the run; another where stages were run again, because what a tracker was
    told stays."""
    project: str
    config: Mapping[str, object]
    """`section.key` -> value, with what identifies it: hashes, commit."""
    folder: Path
    """Of the tracker; it may hold other runs too."""


@dataclass(frozen=True, slots=True)
class Point:
    axis: Axis
    number: int
    """On the axis."""
    steps: int
    """Optimiser steps of the run before it: where a tracker has one axis for all."""
    values: Mapping[str, float]
    at: datetime
    """When the tables had it."""


class Tracker(Protocol):
    """An open one, of one run."""

    def has(self, axis: Axis, name: str, number: int) -> bool:
        """Whether it was told of a value before, also by another process."""

    def log(self, point: Point) -> None: ...

    def finish(self) -> None:
        """All that was told is in its files afterwards."""
