"""Where a run's tables lie: in its folder, or in an object store that the folder names.

In a store Lance itself commits them: it puts a version under a name, and is refused where the name
is taken. The run's folder keeps what a store cannot give: the locks that let one writer in at a
time, and the file that says which format the tables are of, and where. Keys and address of the
store are the environment's (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, ...), never a file's of the run.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError
from storage.tables.schemas import TABLES

if TYPE_CHECKING:
    import lance

FORMAT_FILE = "format.json"
PLACE = "tables"
"""The key of `FORMAT_FILE` that names the store; absent where the tables are in the folder."""
_OF_STORE = ("Generic S3 error", "ObjectStore")
"""In what Lance says of a store that does not answer, or refuses."""


def new_place(folder: Path, store: str | None) -> str | None:
    """Below `store`, a place for the tables that `folder` is to name, and nobody has used yet."""
    if store is None:
        return None
    return f"{store.rstrip('/')}/{folder.parent.name}-{uuid.uuid4().hex[:12]}"


def store_of(folder: Path) -> str | None:
    """The place in a store that `folder` names; None where the tables are in the folder."""
    try:
        content = json.loads((folder / FORMAT_FILE).read_text())
    except (OSError, ValueError):
        return None  # no tables, or damaged: `older_formats.format_of` says so
    place = content.get(PLACE) if isinstance(content, dict) else None
    return place if isinstance(place, str) else None


def uri(folder: Path, name: str) -> str:
    """The table `name`, as Lance takes it."""
    return f"{store_of(folder) or folder}/{name}.lance"


def opened(
    folder: Path,
    name: str,
    version: int | str | None = None,
    session: lance.Session | None = None,
) -> lance.LanceDataset:
    """The table as Lance has it. Raises what Lance raises, and `VideoOPDError` where the store does
    not answer. `session`: what Lance has read of its files before; without it they are read."""
    import lance

    where = uri(folder, name)
    with answering(where):
        return lance.dataset(where, version=version, session=session)


def is_there(folder: Path, name: str) -> bool:
    """Whether there is a table of that name."""
    if store_of(folder) is None:
        return (folder / f"{name}.lance").exists()
    return any(True for _ in files(folder, name, "_versions"))


def files(folder: Path, name: str, below: str) -> Iterator[str]:
    """The names of a table's files in its folder `below`."""
    if store_of(folder) is None:
        yield from (p.name for p in (folder / f"{name}.lance" / below).glob("*"))
        return
    from lance.file import LanceFileSession

    where = f"{uri(folder, name)}/{below}"
    with answering(where):
        yield from LanceFileSession(where).list()


def size(folder: Path, name: str) -> int:
    """Bytes of a table: of all its files, or in a store of the rows as they are now."""
    if store_of(folder) is None:
        below = (folder / f"{name}.lance").rglob("*")
        return sum(file.lstat().st_size for file in below if file.is_file())
    fragments = opened(folder, name).get_fragments()
    return sum(f.file_size_bytes or 0 for part in fragments for f in part.data_files())


def drop(folder: Path) -> None:
    """Removes what a run that is refused has made in its store; nothing where it has none."""
    if (store := store_of(folder)) is None:
        return
    import lance

    for name in TABLES:
        with suppress(ValueError, OSError):
            lance.LanceDataset.drop(f"{store}/{name}.lance", ignore_not_found=True)


@contextmanager
def answering(where: str) -> Iterator[None]:
    """Turns what Lance says of a store that does not answer into one sentence that names it."""
    try:
        yield
    except (ValueError, OSError) as error:
        if "://" in where and (why := told_by_store(error)):
            raise VideoOPDError(
                f"{where} cannot be reached ({why}); see that the bucket is there, and that"
                " AWS_ENDPOINT, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set for"
                " it"
            ) from None
        raise


def told_by_store(error: BaseException) -> str | None:
    """What a store said, shortened; None where it is another error."""
    text = str(error)
    if not any(word in text for word in _OF_STORE):
        return None
    return text.split(", /")[0].split("<?xml")[0].replace("\n", " ").strip()[-200:]
