"""The Lance table of the frame store: one row a clip, and the folder that it stands in.

format.json   clips.lance/   one row a clip: whose video, which frame spec, its bytes (a blob)
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from opd_core.types import VideoOPDError
from storage.files import disk_troubles, write_json

if TYPE_CHECKING:
    import lance

FORMAT = 1
FORMAT_FILE = "format.json"
TABLE = "clips.lance"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("video_hash", pa.string(), nullable=False),
        pa.field("spec", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("stored_at", pa.int64(), nullable=False),
        pa.field("clip", pa.large_binary(), metadata={"lance-encoding:blob": "true"}),
    ]
)
_PLAIN = [name for name in SCHEMA.names if name != "clip"]


class NewClip(NamedTuple):
    row: dict[str, Any]
    payload: bytes


def newest(folder: Path) -> lance.LanceDataset:
    """The table as it is now."""
    import lance

    for _ in range(5):  # between its listing and its reading a manifest may be cleared away
        try:
            return lance.dataset(folder / TABLE)
        except (OSError, ValueError):
            time.sleep(0.02)
    return lance.dataset(folder / TABLE)


def add(folder: Path, clips: Iterable[NewClip]) -> None:
    """Append the clips, in one commit."""
    import lance

    clips = list(clips)
    columns = [
        pa.array([clip.row[name] for clip in clips], SCHEMA.field(name).type) for name in _PLAIN
    ]
    payloads = pa.array([clip.payload for clip in clips], pa.large_binary())
    rows = pa.Table.from_arrays([*columns, payloads], schema=SCHEMA)
    lance.write_dataset(rows, folder / TABLE, mode="append")


def empty(folder: Path) -> None:
    """Begin the table anew."""
    import lance

    lance.write_dataset(SCHEMA.empty_table(), folder / TABLE, mode="overwrite")


def create(folder: Path) -> None:
    """An empty store, built aside and renamed, so that a killed `open` leaves no half of one."""
    import lance

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if (folder / FORMAT_FILE).exists():  # made meanwhile by another process
            return
        raise VideoOPDError(
            f"{folder} is there already and no frame store; set frames.path to a new or empty"
            " folder"
        )
    aside = folder.with_name(f".{folder.name}.creating-{uuid.uuid4().hex[:8]}")
    try:
        with disk_troubles(folder):
            aside.mkdir(parents=True)
            lance.write_dataset(SCHEMA.empty_table(), aside / TABLE, mode="create")
            created = datetime.now(UTC).isoformat()
            write_json(aside / FORMAT_FILE, {"frame_store": FORMAT, "created_at": created})
            try:
                aside.rename(folder)  # onto an empty folder is allowed
            except OSError:
                if not (folder / FORMAT_FILE).exists():  # else: made by another process
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
