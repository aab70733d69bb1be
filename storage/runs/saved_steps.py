"""The last saved step of the update in progress: `RUN/trainer/steps/step-<number>`.

Written beside it and renamed, so it is whole or not there; the one before goes after that. Once the
policy is committed, or the update is begun again, nothing of it stays.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from storage.files import sync_folder, sync_tree
from storage.runs.trainer_folders import TRAINER

_NAME = "step-"


class SavedSteps:
    """Those of one run. Whoever calls works on the run alone (`exclusive("round")`)."""

    def __init__(self, run: Path) -> None:
        self._folder = run / TRAINER / "steps"

    def newest(self) -> Path | None:
        """The folder of the last step that was saved whole."""
        folders = list(self._folder.glob(f"{_NAME}*"))
        return max(folders, key=lambda f: int(f.name.removeprefix(_NAME)), default=None)

    def publish(self, step: int, write: Callable[[Path], None]) -> None:
        """Keeps what `write` puts into a folder as step number `step`; earlier ones are removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(".*"):  # of a kill; its space may be needed
            shutil.rmtree(leftover)
        older = list(self._folder.iterdir())
        staging = self._folder / f".{_NAME}{step}"
        try:
            staging.mkdir()
            write(staging)
            sync_tree(staging)
            staging.rename(self._folder / f"{_NAME}{step}")
            sync_folder(self._folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        for folder in older:
            shutil.rmtree(folder)

    def clear(self) -> None:
        """Removes what is saved."""
        for leftover in self._folder.parent.glob(f".{self._folder.name}-*"):
            shutil.rmtree(leftover)
        if self._folder.exists():  # at once: half of a step must not be taken for one
            gone = self._folder.with_name(f".{self._folder.name}-{uuid.uuid4().hex[:8]}")
            self._folder.rename(gone)
            shutil.rmtree(gone)
