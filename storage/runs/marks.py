"""What a policy's manifest says of it since it was committed: its names, and that it was let go.

Weights are let go on purpose: said in the manifest first, then removed. The manifest stays, with
the hash of what was there, when that went and why. Weights that are missing without a record are
damage.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opd_core.types import VideoOPDError
from storage.files import disk_troubles, sync_folder, write_json
from storage.runs.policies import MANIFEST_FILE, read_manifest

_LET_GO, _TAGS = "let_go", "tags"


@dataclass(frozen=True, slots=True)
class LetGo:
    """That the weights of a policy are gone on purpose."""

    at: str
    """UTC."""
    because: str
    """By which settings."""

    def told(self) -> str:
        """
        >>> LetGo("2026-11-27T07:00:00+00:00", 'policies.keep = ["best"]').told()
        'let go on 2026-11-27 (policies.keep = ["best"])'
        """
        return f"let go on {self.at[:10]} ({self.because})"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed policy's folder, and what its manifest says of it since."""

    version: int
    folder: Path
    in_force: bool
    """False: an update that was run again has superseded it."""
    tags: tuple[str, ...] = field(default=())
    let_go: LetGo | None = None


def let_go_in(manifest: dict[str, Any]) -> LetGo | None:
    """What a manifest says of letting go; None: nothing."""
    said = manifest.get(_LET_GO)
    return None if said is None else LetGo(**said)


def checkpoint(version: int, folder: Path, in_force: bool) -> Checkpoint | None:
    """A committed folder as it is now; None where it has no manifest that can be read."""
    try:
        manifest = read_manifest(folder)
    except VideoOPDError:
        return None  # a link of the audit, and whoever needs the weights, says so
    tags = tuple(manifest.get(_TAGS, ()))
    return Checkpoint(version, folder, in_force, tags, let_go_in(manifest))


def record(folder: Path, because: str) -> None:
    """Says in a policy's manifest that its weights are let go; `remove` then takes them.

    From then on the policy is never used again, whatever its folder still holds.
    """
    said = LetGo(datetime.now(UTC).isoformat(timespec="seconds"), because)
    _write(folder, {_LET_GO: asdict(said)})


def remove(folder: Path) -> None:
    """Takes all but the manifest out of a policy's folder, as far as it is there."""
    with disk_troubles(folder):
        for content in [p for p in folder.iterdir() if p.name != MANIFEST_FILE]:
            shutil.rmtree(content) if content.is_dir() else content.unlink()
        sync_folder(folder)


def name(folder: Path, tags: tuple[str, ...]) -> None:
    """Gives a policy exactly these names."""
    _write(folder, {_TAGS: list(tags)})


def _write(folder: Path, more: dict[str, Any]) -> None:
    with disk_troubles(folder):
        write_json(folder / MANIFEST_FILE, read_manifest(folder) | more)
