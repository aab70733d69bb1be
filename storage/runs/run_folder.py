"""A run's folder before it is a run: built so that a kill at any moment can be made good.

`run.json` is written last. A folder without it is a run whose creation was interrupted, or is none
of ours and left alone.
"""

from __future__ import annotations

import json
import shlex
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opd_core.hub.name import cached_model
from opd_core.types import VideoOPDError, join_hashes
from storage import locks
from storage.file_system import PROBE, refuse_lacking
from storage.files import (
    disk_troubles,
    make_folder,
    short,
    told_by_disk,
    write_json,
    write_whole,
)
from storage.hashes import WeightsCache
from storage.runs.policies import published_hash
from storage.tables import place
from storage.tables.provenance import git_commit
from storage.tables.schemas import SCHEMA_VERSION, TABLES
from storage.tables.lance_tables import Tables

RUN_FILE = "run.json"
CONFIG_SOURCE_FILE = "config_source.json"
HUB_FILE = "hub.json"
_OWN_NAMES = {"configs", "tables", "policies", "trainer", "logs", ".locks", ".cache"}
_MADE_FIRST = _OWN_NAMES | {RUN_FILE, CONFIG_SOURCE_FILE, HUB_FILE}
_NEEDED = {"run_id", "created_at", "config_hash", "student"}
_LEFTOVERS = (".tables.creating-", f".{RUN_FILE}.")


def lock_file(path: Path, stage: str) -> Path:
    return path / ".locks" / f"{stage}.lock"


def refuse_file_system(path: Path) -> None:
    """Makes the folder of the run's locks, and raises `VideoOPDError` where its file system does
    not give what a run needs."""
    locks_folder = lock_file(path, "").parent
    make_folder(locks_folder)
    refuse_lacking(locks_folder)


def weights_cache(path: Path) -> WeightsCache:
    return WeightsCache(path / ".cache" / "weights.json")


def build(
    path: Path,
    config_hash: str,
    student: Path,
    teachers: Sequence[Path],
    known_hashes: Mapping[Path, str],
    store: str | None = None,
) -> None:
    """Tables (below `store`, where one is given), folders and `run.json`, where there is none; the
    caller holds the run's lock."""
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

    def model(folder: Path) -> dict[str, str]:
        named = cached_model(folder)
        digest = known_hashes.get(folder) or published_hash(folder, cache)
        told = {"path": str(folder), "weights_hash": digest}
        return told if named is None else told | {"hub": str(named)}

    content["student"] = model(student)
    if len(teachers) == 1:
        content["teacher"] = model(teachers[0])
    else:
        content["teachers"] = [model(teacher) for teacher in teachers]
    for leftover in [p for p in path.iterdir() if p.name.startswith(_LEFTOVERS)]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    Tables.create(path / "tables", store)
    (path / "policies").mkdir(exist_ok=True)
    write_json(path / RUN_FILE, content)


def refuse_foreign(path: Path) -> None:
    """Raises `VideoOPDError` when `path` holds anything that is no run, finished or begun."""
    if not path.exists() or (path / RUN_FILE).exists():
        return
    ours = (*_LEFTOVERS, PROBE)
    if path.is_dir() and all(
        p.name in _OWN_NAMES or p.name.startswith(ours) for p in path.iterdir()
    ):
        return
    raise VideoOPDError(f"{path} is not empty and no run; set run.path to a new or empty folder")


def read(path: Path) -> dict[str, Any]:
    """`run.json`. Raises `VideoOPDError` when `path` is no run."""
    try:
        content: dict[str, Any] = json.loads((path / RUN_FILE).read_text())
        if not (isinstance(content, dict) and content.keys() >= _NEEDED):
            raise ValueError
        if not teachers(content):
            raise ValueError
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


def teachers(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Path and hash of the weights of each teacher that the run of a `run.json` began with."""
    one = [content["teacher"]] if "teacher" in content else []
    return list(content.get("teachers", one))


def teacher_hash(content: Mapping[str, Any]) -> str:
    """Of all its teachers, as `updates` names them: `opd_core.types.join_hashes`."""
    return join_hashes(teacher["weights_hash"] for teacher in teachers(content))


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """The config file that a run was continued with last, and how it was overridden."""

    file: Path
    overrides: tuple[str, ...]

    @property
    def words(self) -> str:
        """The file and its `--set`s, as one types them."""
        sets = (word for override in self.overrides for word in ("--set", override))
        return shlex.join([str(short(self.file)), *sets])


def remember_config(path: Path, file: Path, overrides: Sequence[str]) -> None:
    """Keep it for people who go on with a run by its folder; no number depends on it."""
    source = ConfigSource(file.resolve(), tuple(overrides))
    if config_source(path) != source:
        content = {"file": str(source.file), "overrides": list(overrides)}
        write_json(path / CONFIG_SOURCE_FILE, content)


def refresh_config(path: Path, config_hash: str, config_json: str) -> None:
    """Let the run's copy of a config say what it says by now of what is in no hash: the address of a
    server, which an audit asks again."""
    copy = path / "configs" / f"{config_hash}.json"
    if copy.read_bytes() != config_json.encode():
        write_whole(copy, config_json)


def config_source(path: Path) -> ConfigSource | None:
    """The run's; None where it does not say (made by an earlier program, or file damaged)."""
    try:
        content = json.loads((path / CONFIG_SOURCE_FILE).read_text())
        return ConfigSource(Path(content["file"]), tuple(map(str, content["overrides"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def hub_commits(path: Path) -> dict[str, str]:
    """Name of a model on the hub, as a config of the run writes it -> the commit that it means in
    this run, whatever its branch is at by now. Raises `VideoOPDError` where the file is damaged."""
    file = path / HUB_FILE
    try:
        return {str(name): str(commit) for name, commit in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise VideoOPDError(
            f"{file}, which says at which commits this run's models are, cannot be read ({error}); "
            "restore it from a copy of the run"
        ) from None


def remember_hub_commits(path: Path, commits: Mapping[str, str]) -> None:
    """Keep what names of the hub mean in a run; what it knows already stays."""
    known = hub_commits(path)
    if commits.keys() - known.keys():
        write_json(path / HUB_FILE, {**commits, **known})


def refuse_other_store(path: Path, store: str | None) -> None:
    """Raises `VideoOPDError` where the tables of a run are elsewhere than in the `store` that its
    config asks for; one that asks for none takes them where they are."""
    if store is None or not (path / "tables").exists():
        return
    here = place.store_of(path / "tables")
    if here is None or not here.startswith(f"{store.rstrip('/')}/"):
        raise VideoOPDError(
            f"the tables of {path} are in {here or 'its folder'}, and storage.tables = {store}; take"
            " that key out of the config (tables stay where their run began), or set run.path to"
            " another folder"
        )


def check_place(path: Path) -> None:
    """Raises `VideoOPDError` where a run cannot be made or written at `path`."""
    there = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
    if not there.is_dir():
        raise VideoOPDError(f"{there} is a file, and run.path = {path}; set run.path to a folder")
    with disk_troubles(there):
        try:  # the answer of the disk itself: /proc lets root in and takes nothing
            refuse_lacking(there)
        except OSError as error:
            if told_by_disk(error):
                raise
            raise VideoOPDError(
                f"nothing can be written in {there} ({error.strerror}); set run.path to another "
                "folder"
            ) from None
    refuse_foreign(path)


@contextmanager
def no_run_if_refused(path: Path) -> Iterator[None]:
    """A command that is refused leaves no folder: where this block makes a run and ends with a
    `VideoOPDError` before anything was computed, what it made is removed.

    An import of annotations is no computation: the next command does it again.
    """
    if (path / RUN_FILE).exists():
        yield
        return
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        yield
    except locks.InUseError:
        raise  # the run is another process's
    except VideoOPDError:
        if _nothing_computed(path):
            _remove(path, missing)
        raise


def _nothing_computed(path: Path) -> bool:
    """Whether the folder holds only what is made before the first stage."""
    if not path.is_dir() or any(p.name not in _MADE_FIRST and not p.name.startswith(_LEFTOVERS)
                                for p in path.iterdir()):  # fmt: skip
        return False
    if any((path / "policies").glob("*")):
        return False
    if not (path / "tables").exists():
        return True
    import polars as pl

    tables = Tables.open(path / "tables")
    for name in TABLES:
        rows = tables.scan(name)
        if name == "quarantine":
            rows = rows.filter(pl.col("stage") != "import")
        if name != "examples" and not rows.head(1).collect().is_empty():
            return False
    return True


def _remove(path: Path, missing: Sequence[Path]) -> None:
    """The run's files; the folders too that were missing before, as far as nothing is in them."""
    try:
        with (
            locks.held(lock_file(path, "create"), "remove", timeout=0.0),
            locks.held(lock_file(path, "round"), "remove", timeout=0.0),
        ):
            place.drop(path / "tables")
            for content in path.iterdir():
                if content.name in _MADE_FIRST or content.name.startswith(_LEFTOVERS):
                    shutil.rmtree(content) if content.is_dir() else content.unlink()
        for folder in missing:
            folder.rmdir()
    except (OSError, locks.InUseError):
        return  # another process is at it, or put something there; the refusal is what counts
