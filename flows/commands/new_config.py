"""`videoopd init`: a config to fill in."""

from __future__ import annotations

from pathlib import Path

from opd_core.types import VideoOPDError
from storage.files import disk_troubles, write_whole


def write_config(file: Path) -> None:
    """Write a commented config into a new file. Raises `VideoOPDError` where something is there."""
    from opd_core.config.template import config_template

    if file.exists():
        raise VideoOPDError(f"{file} is there already, and init replaces nothing; name a new file")
    if not file.parent.is_dir():
        raise VideoOPDError(f"there is no folder {file.parent}; make it, or name a file elsewhere")
    try:
        with disk_troubles(file.parent):
            write_whole(file, config_template())
    except OSError as error:
        raise VideoOPDError(
            f"{file} cannot be written ({error.strerror}); name a file elsewhere"
        ) from None
    print(f"wrote {file}; fill in its paths, then `videoopd run {file}`")
