"""Tells a tracker what it does not know yet of a run.

The same while a round goes on and afterwards: the points are made of the tables each time, and what
the tracker has of them is left out. So it does not matter how often it is done, nor by whom.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows.tracking import points
from flows.tracking.about import about, name_of
from opd_core.extensions import installed_tracker
from opd_core.tracker import Axis, Point, Tracker
from storage import locks

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class Told:
    steps: int = 0
    rounds: int = 0
    """Points that were new to the tracker."""


class Telling:
    """One tracker, and what it was told in this process."""

    def __init__(self, name: str, project: str, folder: Path) -> None:
        """`folder`: of all trackers; each has one inside."""
        self._kind, self._project = installed_tracker(name), project
        self._folder = folder / name
        self._open: tuple[str, Tracker] | None = None
        self._lock = ExitStack()
        """One process at a time tells a tracker of a run: two would each take the points of the
        other for missing, or its files for old ones."""
        self._told: set[tuple[Axis, str, int]] = set()

    def steps(self, run: Run) -> int:
        """Tell it of the steps so far; how many are new to it."""
        return self._tell(run, points.of_steps(run))

    def all(self, run: Run) -> Told:
        """Tell it of steps and rounds. Raises `InUseError` while another process tells it of the
        run."""
        return Told(self.steps(run), self._tell(run, points.of_rounds(run)))

    def finish(self) -> None:
        if self._open is not None:
            self._open[1].finish()
            self._open = None
        self._lock.close()

    def look(self, run: Run) -> str:
        """The command that shows what it keeps."""
        return self._kind.look.format(folder=self._folder, project=self._project, name=name_of(run))

    def _tell(self, run: Run, made: Iterable[Point]) -> int:
        new = 0
        for point in made:
            tracker = self._tracker(run)
            values = {
                name: value
                for name, value in point.values.items()
                if (point.axis, name, point.number) not in self._told
                and not tracker.has(point.axis, name, point.number)
            }
            if values:
                tracker.log(replace(point, values=values))
                new += 1
            self._told |= {(point.axis, name, point.number) for name in point.values}
        return new

    def _tracker(self, run: Run) -> Tracker:
        """Opened at the first point; a rerun makes another run of it to the tracker."""
        name = name_of(run)
        if self._open is not None and self._open[0] == name:
            return self._open[1]
        self.finish()
        self._told.clear()
        lock = self._folder.parent / ".locks" / f"{self._folder.name}-{name}.lock"
        self._lock.enter_context(locks.held(lock, "track", 0.0))
        tracker = self._kind.opened(about(run, self._project, self._folder))
        self._open = (name, tracker)
        return tracker
