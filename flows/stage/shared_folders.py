"""What every machine of a cluster has to see as this one does: the run's folder, models, videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opd_core.cluster.connection import connected
from opd_core.cluster.machines import on_other_machines
from opd_core.config.load import Config
from opd_core.types import VideoOPDError
from storage.file_system import Shown, lacking_there, lacks, shown
from storage.runs.run_folder import lock_file


def refuse_unshared(config: Config) -> None:
    """Raise `VideoOPDError` naming a machine of the cluster that does not see a folder of the run
    as this one does, and the folder. Asks nobody where Ray starts on this machine alone."""
    if config.cluster is None or config.cluster.address is None:
        return
    folders = [config.run.path, *config.model_paths().values(), config.data.videos]
    with connected(config), shown(lock_file(config.run.path, "").parent) as here:
        for host, (missing, lacking) in on_other_machines(_seen, here, folders).items():
            if missing is not None:
                raise VideoOPDError(
                    f"machine {host} of the cluster has no folder {missing}; put it on a file "
                    "system that all machines mount at the same place"
                )
            if lacking is not None:
                raise VideoOPDError(f"seen from machine {host} {lacks(config.run.path, lacking)}")


def _seen(here: Shown, folders: Sequence[Path]) -> tuple[Path | None, str | None]:
    """On another machine: a folder that is not there, and what `lacking_there` says."""
    return next((f for f in folders if not f.is_dir()), None), lacking_there(here)
