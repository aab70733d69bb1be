"""Damaged tables, told in one sentence: which file of which table, and what to do.

Lance says what is wrong with a file's bytes and leaves out whose they are, so that is looked for
when something has gone wrong, and only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opd_core.types import VideoOPDError
from storage.tables import place
from storage.tables.schemas import TABLES

_MAGIC = b"LANC"
"""How a data file and a manifest of Lance end."""
_LANCE = ("LanceError", "/rust/lance", "lance-file", ".lance")
"""In the text of every error of Lance, by whatever library it comes out."""
_MEND = "restore it from a copy of the run"


@contextmanager
def told(folders: Sequence[Path]) -> Iterator[None]:
    """Turns what Lance raises on damaged tables of these runs into a `VideoOPDError`."""
    try:
        yield
    except VideoOPDError:
        raise
    except BaseException as error:  # polars' panics are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or not _is_lances(error):
            raise
        for folder in folders:
            if broken_table := first_damage(folder / "tables"):
                raise VideoOPDError(broken_table) from error
        raise


def first_damage(tables: Path) -> str | None:
    """The first table that cannot be read, with its first bad file; None where all can."""
    for name in TABLES:
        if bad := _bad_file(tables / f"{name}.lance"):
            return f"{bad} is damaged or cut off, a file of table {name}; {_MEND}"
        if problem := _unreadable(tables, name):
            return f"table {name} in {tables} cannot be read ({problem}); {_MEND}"
    return None


def _bad_file(table: Path) -> Path | None:
    files = [*sorted((table / "_versions").glob("*.manifest")), *sorted(table.glob("data/*.lance"))]
    for file in files:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - len(_MAGIC)))
            if opened.read() != _MAGIC:
                return file
    return None


def _unreadable(tables: Path, name: str) -> str | None:
    try:
        dataset = place.opened(tables, name)
        for batch in dataset.to_batches():
            del batch
        dataset.tags.list()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, VideoOPDError)):
            raise
        return str(error).split(", /")[0].replace("\n", " ")[:200]
    return None


def _is_lances(error: BaseException) -> bool:
    return any(word in str(error) for word in _LANCE)
