"""The last saved step of the update in progress: `RUN/trainer/steps/step-<number>`.

Written beside it and renamed, so it is whole or not there; the one before goes after that. Once the
policy is committed, or the update is begun again, nothing of it stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from storage.files import put_folder, remove_folder
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
            put_folder(staging, self._folder / f"{_NAME}{step}")
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        for folder in older:
            shutil.rmtree(folder)

    def clear(self) -> None:
        """Removes what is saved."""
        for leftover in self._folder.parent.glob(f".{self._folder.name}.*-*"):
            shutil.rmtree(leftover)
        if self._folder.exists():
            remove_folder(self._folder)
