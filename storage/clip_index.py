"""Where the clips of the frame store's table are, read once a version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage import clip_table

if TYPE_CHECKING:
    import lance


class Kept(NamedTuple):
    address: int
    """Of the row, in the version that is open."""
    bytes: int
    stored_at: int
    video_hash: str


class Index:
    """The keys of one version of the table. The next version costs what is new in it."""

    def __init__(self, dataset: lance.LanceDataset, before: Index | None = None) -> None:
        self.dataset = dataset
        self.version = int(dataset.version)
        known = before.fragments if before else {}
        self.fragments: dict[str, dict[str, Kept]] = {}
        fresh = {}
        for fragment in dataset.get_fragments():
            name = str(fragment.metadata)  # its number, files, and what is deleted of it
            if name in known:
                self.fragments[name] = known[name]
            else:
                fresh[fragment.fragment_id] = (name, fragment)
        if fresh:
            rows = dataset.scanner(
                columns=["key", "bytes", "stored_at", "video_hash"],
                fragments=[fragment for _, fragment in fresh.values()],
                with_row_address=True,
            ).to_table()
            for name, _ in fresh.values():
                self.fragments[name] = {}
            for row in rows.to_pylist():
                name, _ = fresh[row["_rowaddr"] >> 32]
                kept = Kept(row["_rowaddr"], row["bytes"], row["stored_at"], row["video_hash"])
                self.fragments[name][row["key"]] = kept
        self.rows = {key: kept for part in self.fragments.values() for key, kept in part.items()}

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self.rows.values())


def newest(folder: Path, before: Index | None = None) -> Index:
    """Of the table as it is now; `before` itself where nothing is new.

    While a version is read another process may clear its files away, having committed a newer one:
    that is then read instead. Raises what Lance raises where the newest cannot be read.
    """
    while True:
        dataset = clip_table.newest(folder)
        if before is not None and int(dataset.version) == before.version:
            return before
        try:
            return Index(dataset, before)
        except (OSError, ValueError, RuntimeError):
            if int(clip_table.newest(folder).version) == int(dataset.version):
                raise


class Usage(NamedTuple):
    """What a store holds."""

    videos: int
    """Different ones, by content."""
    clips: int
    """Videos times frame specs."""
    bytes: int
    """Of its folder."""


def usage(folder: Path) -> Usage | None:
    """What the store in `folder` holds; None where there is none."""
    if not (folder / clip_table.FORMAT_FILE).exists():
        return None
    rows = newest(folder).rows.values()
    size = 0
    for file in folder.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # cleared away meanwhile
            continue
    return Usage(len({kept.video_hash for kept in rows}), len(rows), size)
