"""A run's config as one types it: for the commands that messages tell people to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from storage.runs.run import Run


def config_words(run: Run) -> str:
    """The config file that the run was continued with last, and its `--set`s; else, of a run by an
    earlier program, the config of this project whose run it is; CONFIG where none is known."""
    from storage.runs.run_folder import config_source

    known = config_source(run.path)
    if known is not None:
        return known.words
    from opd_core.config.load import load_config

    for file in sorted(Path("configs").glob("*.toml")):
        try:
            if load_config(file).run.path == run.path:
                return str(file)
        except VideoOPDError:  # a broken neighbour must not spoil the sentence
            continue
    return "CONFIG"
