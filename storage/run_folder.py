"""A run's folder before it is a run: built so that a kill at any moment can be made good.

`run.json` is written last. A folder without it is a run whose creation was interrupted, or is none
of ours and left alone.
"""

from __future__ import annotations

import json
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opd_core.types import VideoOPDError
from storage.files import write_json
from storage.hashes import WeightsCache
from storage.policies import published_hash
from storage.provenance import git_commit
from storage.schemas import SCHEMA_VERSION
from storage.tables import Tables

RUN_FILE = "run.json"
_OWN_NAMES = {"configs", "tables", "policies", "logs", ".locks", ".cache"}
_LEFTOVERS = (".tables.creating-", f".{RUN_FILE}.")


def lock_file(path: Path, stage: str) -> Path:
    return path / ".locks" / f"{stage}.lock"


def weights_cache(path: Path) -> WeightsCache:
    return WeightsCache(path / ".cache" / "weights.json")


def build(path: Path, config_hash: str, student: Path, teacher: Path) -> None:
    """Tables, folders and `run.json`, where there is none; the caller holds the run's lock."""
    if (path / RUN_FILE).exists():
        return
    cache = weights_cache(path)
    content: dict[str, Any] = {
        "run_id": str(uuid.uuid4()),
        "created_at": datetime.now(UTC).isoformat(),
        "schema_version": SCHEMA_VERSION,
        "git_commit": git_commit(),
        "config_hash": config_hash,
    }
    for name, folder in (("student", student), ("teacher", teacher)):
        digest = published_hash(folder, cache)
        content[name] = {"path": str(folder), "weights_hash": digest}
    for leftover in [p for p in path.iterdir() if p.name.startswith(_LEFTOVERS)]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    Tables.create(path / "tables")
    (path / "policies").mkdir(exist_ok=True)
    write_json(path / RUN_FILE, content)


def refuse_foreign(path: Path) -> None:
    """Raises `VideoOPDError` when `path` holds anything that is no run, finished or begun."""
    if not path.exists() or (path / RUN_FILE).exists():
        return
    if path.is_dir() and all(
        p.name in _OWN_NAMES or p.name.startswith(_LEFTOVERS) for p in path.iterdir()
    ):
        return
    raise VideoOPDError(f"{path} is not empty and no run; set run.path to a new or empty folder")


def read(path: Path) -> dict[str, Any]:
    """`run.json`. Raises `VideoOPDError` when `path` is no run."""
    try:
        content: dict[str, Any] = json.loads((path / RUN_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise VideoOPDError(
            f"{path} is no run (it has no {RUN_FILE}); give the run.path of a config that was run"
        ) from None
    except OSError as error:
        raise VideoOPDError(
            f"{path / RUN_FILE} cannot be read ({error.strerror}); change the permissions"
        ) from None
    except ValueError:
        raise VideoOPDError(
            f"{path / RUN_FILE} is damaged; restore it from a copy of the run"
        ) from None
    return content
