"""The file that `--out` names: whether it may be written, and writing it whole or not at all."""

from __future__ import annotations

from pathlib import Path

from opd_core.types import VideoOPDError
from storage.files import disk_troubles, write_bytes_whole


def check_out(out: Path, force: bool, otherwise: str = "") -> None:
    """Look before anything is computed; `otherwise`: what to do where `out` is a device or a pipe.

    Raises `VideoOPDError` for a folder, for a file that is there, for a folder that is not.
    """
    if out.is_dir():
        raise VideoOPDError(f"{out} is a folder; give --out the name of a file in it")
    if out.exists() and not out.is_file():
        fix = otherwise or "give --out the name of a file"
        raise VideoOPDError(f"{out} is no file but a device or a pipe; {fix}")
    if not out.parent.is_dir():
        raise VideoOPDError(
            f"there is no folder {out.parent} for --out; make it, or choose another"
        )
    if out.exists() and not force:
        raise VideoOPDError(f"{out} is there already; choose another --out, or add --force")


def write_out(out: Path, content: bytes | memoryview) -> None:
    """Raises `VideoOPDError` for a file that cannot be written."""
    try:
        with disk_troubles(out):
            write_bytes_whole(out.resolve(), content)
    except OSError as error:
        raise VideoOPDError(
            f"{out} cannot be written ({error.strerror}); choose another --out"
        ) from None
