"""`videoopd track`: tells a tracker of a run, from its tables."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from flows.numbers.round_state import last_config
from flows.tracking.telling import Telling
from opd_core.config.sections import TRACKERS_FOLDER, TrackingSection
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from storage.runs.run import Run


def track(run: Run, name: str, out: Path | None) -> None:
    """Tell the tracker `name` what it does not know yet of the run, and print how to look at it.

    `out`: the folder of all trackers. Raises `VideoOPDError` for a tracker that is not known or not
    installed.
    """
    # Without `to`: its trackers may have gone since.
    kept = {k: v for k, v in last_config(run).get("tracking", {}).items() if k != "to"}
    settings = TrackingSection.model_validate(kept)
    folder = out or settings.folder or run.path.parent / TRACKERS_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoOPDError(
            f"the folder {folder} of trackers cannot be made ({error.strerror}); "
            "give another by --out"
        ) from None
    telling = Telling(name, settings.project, folder)
    with redirect_stdout(sys.stderr):  # trackers talk
        told = telling.all(run)
        telling.finish()
    print(f"{name}: {told.steps:,} steps and {told.rounds:,} rounds were new; see them with")
    print(f"  {telling.look(run)}")
