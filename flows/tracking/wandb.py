"""Weights & Biases, offline: what `wandb sync` uploads.

A file of it is not gone on with: each session writes the whole run from the tables, and takes the
files of the sessions before away, so that one folder holds one run once.
"""

from __future__ import annotations

import os
import shutil

from opd_core.extensions import TrackerKind
from opd_core.tracker import About, Axis, Point


class Wandb:
    def __init__(self, about: About) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder = about.folder / about.name
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / "wandb").glob("offline-run-*"):  # all of it is in the tables
            shutil.rmtree(path)
        self._run = wandb.init(
            project=about.project,
            name=about.name,
            id=about.name,
            config=dict(about.config),
            dir=folder,
            mode="offline",
            settings=wandb.Settings(
                console="off", disable_git=True, save_code=False, silent=True, x_disable_stats=True
            ),
        )
        self._axes: set[str] = set()

    def has(self, axis: Axis, name: str, number: int) -> bool:
        return False

    def log(self, point: Point) -> None:
        for name in sorted(point.values.keys() - self._axes):
            self._run.define_metric(name, step_metric=point.axis)
        self._axes |= point.values.keys()
        self._run.log({**point.values, point.axis: point.number})

    def finish(self) -> None:
        self._run.finish()


TRACKER = TrackerKind(
    about="Weights & Biases, as files that `wandb sync` uploads.",
    opened=Wandb,
    needs=("wandb",),
    look="wandb sync {folder}/{name}/wandb/offline-run-*",
)
