"""What Lance remembers of a table: its tags, who committed each version, files that no version has.

A table of ours is made once and only appended to and compacted. Anything else in its history was
not done by this program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError
from storage.tables import place
from storage.tables.schemas import RETIRED

if TYPE_CHECKING:
    import lance


MADE, GROWN = "Overwrite", {"Append", "Rewrite", "BaseOperation", "CreateIndex"}
"""Operations of Lance: how a table of ours begins, and what may happen to it afterwards.

`BaseOperation` is one that pylance has no class for, such as a compaction that reserves fragment
numbers; all that change rows (Update, Delete, Merge, Overwrite, Restore, ...) have theirs."""
MIGRATED = {"Merge", "Project"}
"""Columns that came or went, where `only_absent_columns` says that no value did."""


@dataclass(frozen=True, slots=True)
class Commit:
    version: int
    operation: str
    """Lance's name of it: `Append`, `Rewrite` (compaction), `Overwrite`, `Update`, `Delete`, ..."""
    properties: dict[str, str]
    """What our own commits say of themselves (`Provenance.transaction_properties`)."""


def tags(folder: Path, name: str) -> dict[str, int]:
    """tag -> version, of the table `name` below `folder`."""
    by_tag = _dataset(folder, name).tags.list()
    return {tag: int(content["version"]) for tag, content in by_tag.items()}


def commits(folder: Path, name: str) -> Iterator[Commit]:
    """The commits of the versions that are kept, oldest first."""
    dataset = _dataset(folder, name)
    for entry in dataset.versions():
        yield commit(dataset, int(entry["version"]))


def commit(dataset: lance.LanceDataset, version: int) -> Commit:
    try:
        transaction = dataset.read_transaction(version)
    except TypeError as error:
        # pylance 14.0.2 cannot build the Python object of a compaction that moved an index.
        if "RewrittenIndex" not in str(error):
            raise
        return Commit(version, "Rewrite", {})
    if transaction is None:
        return Commit(version, "unknown", {})
    properties = dict(transaction.transaction_properties or {})
    return Commit(version, type(transaction.operation).__name__, properties)


def is_ours(commit: Commit, run_id: str) -> bool:
    """Whether this program, working on the run, may have made the version."""
    if commit.operation == "Append":
        return commit.properties.get("run_id") == run_id
    return commit.operation in GROWN


def only_absent_columns(folder: Path, name: str, version: int) -> bool:
    """Whether a version differs from the one before by columns without a value or by retired ones,
    and nothing else: what `older_formats.migrate` does."""
    dataset = _dataset(folder, name)
    try:
        before, after = dataset.checkout_version(version - 1), dataset.checkout_version(version)
    except (ValueError, OSError):  # cleared away: a migration of ours keeps both under a tag
        return False
    gone = set(before.schema.names) - set(after.schema.names)
    return gone <= set(RETIRED.get(name, ())) and _files(before) == _files(after)


def _files(dataset: lance.LanceDataset) -> list[tuple[str, tuple[int, ...]]]:
    """(path, the ids of its columns) of each data file."""
    return [
        (file.path, tuple(file.fields))
        for fragment in dataset.get_fragments()
        for file in fragment.data_files()
    ]


def rows_at(folder: Path, name: str, version: int) -> int:
    return int(_dataset(folder, name).checkout_version(version).count_rows())


def orphans(folder: Path, name: str) -> list[str]:
    """Data files that no kept version has: what a process killed in a write left behind."""
    dataset = _dataset(folder, name)
    in_use = {
        file.path
        for entry in dataset.versions()
        for fragment in dataset.checkout_version(int(entry["version"])).get_fragments()
        for file in fragment.data_files()
    }
    data = place.files(folder, name, "data")
    return sorted(file for file in data if file.endswith(".lance") and file not in in_use)


def _dataset(folder: Path, name: str) -> lance.LanceDataset:
    try:
        return place.opened(folder, name)
    except (ValueError, OSError) as error:
        raise VideoOPDError(
            f"table {name} of {folder} cannot be opened ({str(error).splitlines()[0][:200]});"
            " restore it from a copy of the run"
        ) from None
