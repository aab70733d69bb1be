"""Trackio: a SQLite file of the project, which its own dashboard and SQL read."""

from __future__ import annotations

import os

from opd_core.extensions import TrackerKind
from opd_core.tracker import About, Axis, Point
from opd_core.types import VideoOPDError


class Trackio:
    """One axis for all: a round stands at the step that it ended with, and has its number."""

    def __init__(self, about: About) -> None:
        about.folder.mkdir(parents=True, exist_ok=True)
        os.environ["TRACKIO_DIR"] = str(about.folder)  # read when it is imported
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        if about.folder != TRACKIO_DIR:
            raise VideoOPDError(
                f"trackio keeps to one folder a process, and this one has {TRACKIO_DIR}; tell it "
                f"in another process of {about.folder}"
            )
        self._known: set[tuple[Axis, str, int]] = set()
        for row in SQLiteStorage.get_logs(about.project, about.name):
            axis: Axis = "round" if "round" in row else "step"
            self._known |= {(axis, name, int(row[axis])) for name in row}
        self._run = trackio.init(
            about.project,
            name=about.name,
            config=dict(about.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def has(self, axis: Axis, name: str, number: int) -> bool:
        return (axis, name, number) in self._known

    def log(self, point: Point) -> None:
        at = {} if point.axis == "step" else {"round": point.number}
        self._run.log({**point.values, **at}, step=point.steps)

    def finish(self) -> None:
        self._run.finish()  # type: ignore[no-untyped-call]


TRACKER = TrackerKind(
    about="A local dashboard by Hugging Face, kept in SQLite.",
    opened=Trackio,
    needs=("trackio",),
    look="TRACKIO_DIR={folder} trackio show --project {project}",
)
