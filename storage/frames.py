"""The frame store: the resized frames of videos, decoded once for all stages and processes.

    format.json   clips.lance/   one row a clip: whose video, which frame spec, its bytes (a blob)
    files.jsonl   used.log       hashes of video files; when each clip was last used
    .locks/                      who is writing now

It is a cache. Whatever is missing, spoilt or cannot be written costs another decode and nothing
else, so nobody waits for it: readers take no lock, and a writer that finds another one at work
keeps its clips for the next time. What the bytes mean, and whether they are still what was put, is
for `opd_core/clip.py` to say.

Lance keeps what was deleted or rewritten for its older versions. Nobody reads these here, so the
writer removes them at once; a reader that was about to read one opens the newest and asks again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pyarrow as pa

from opd_core.types import VideoOPDError
from storage import locks
from storage.files import disk_troubles, write_json
from storage.last_use import LastUse
from storage.video_hashes import VideoHashes

if TYPE_CHECKING:
    import lance

FORMAT = 1
FORMAT_FILE = "format.json"
TABLE = "clips.lance"

FLUSH_CLIPS = 32
FLUSH_BYTES = 64 << 20
FLUSH_SECONDS = 5.0
"""Clips are written together; what is not written yet is all that a killed process loses."""
KEEP_BYTES = 256 << 20
"""Clips that wait for another process to finish writing; the oldest are given up."""
CLOSE_SECONDS = 10.0
"""How long `close` waits for another writer."""

EVICT_ABOVE, EVICT_TO = 0.9, 0.7
"""Shares of the bound. What is between 0.9 and 1 is for rows that are deleted and not yet cleared:
a fragment is rewritten once a tenth of it is gone."""
FRAGMENT_BYTES = 64 << 20
JOIN_ABOVE = 16
"""Small fragments and old versions that are let be."""

_SCHEMA = pa.schema(
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
_PLAIN = [name for name in _SCHEMA.names if name != "clip"]


class Usage(NamedTuple):
    """What a store holds."""

    videos: int
    """Different ones, by content."""
    clips: int
    """Videos times frame specs."""
    bytes: int
    """Of its folder."""


class _Kept(NamedTuple):
    address: int
    """Of the row, in the version that is open."""
    bytes: int
    stored_at: int
    video_hash: str


class _Waiting(NamedTuple):
    row: dict[str, Any]
    payload: bytes


class _Index:
    """The keys of one version of the table. The next version costs what is new in it."""

    def __init__(self, dataset: lance.LanceDataset, before: _Index | None = None) -> None:
        self.dataset = dataset
        self.version = int(dataset.version)
        known = before.fragments if before else {}
        self.fragments: dict[str, dict[str, _Kept]] = {}
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
                kept = _Kept(row["_rowaddr"], row["bytes"], row["stored_at"], row["video_hash"])
                self.fragments[name][row["key"]] = kept
        self.rows = {key: kept for part in self.fragments.values() for key, kept in part.items()}

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self.rows.values())


class FrameStore:
    """Clips as bytes, by (content of the video file, frame spec). May be used from many threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._hashes = VideoHashes(folder / "files.jsonl")
        self._last_use = LastUse(folder / "used.log")
        self._guard = threading.RLock()
        """Guards all below; never held while waiting for another process, but in `close`."""
        self._asked: dict[Path, str] = {}
        """Content of the file when it was asked for: what is put must be made of the same."""
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._waiting_since = 0.0
        self._spoilt: set[str] = set()
        self._writable = True
        self._index = _Index(self._newest())

    @classmethod
    def open(cls, folder: Path, max_bytes: int) -> Self:
        """The store in `folder`, made where there is none.

        Raises `VideoOPDError` when the folder holds something else or cannot be written.
        """
        if not (folder / FORMAT_FILE).exists():
            _create(folder)
        try:
            found = json.loads((folder / FORMAT_FILE).read_text())["frame_store"]
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        if found != FORMAT:
            raise VideoOPDError(
                f"{folder} is no frame store of this program (format {found}, not {FORMAT}); remove"
                " the folder, which is only a cache, or set frames.path to another"
            )
        try:
            return cls(folder, max_bytes)
        except (OSError, ValueError, RuntimeError) as error:
            raise VideoOPDError(
                f"the frame store {folder} is damaged ({_first_line(error)}); remove the folder,"
                " which is only a cache, and run the same command again"
            ) from None

    # --- what opd_core/clip.py calls a ClipStore -----------------------------------------------

    def get(self, path: Path, spec: str) -> bytes | None:
        """What was put for the file's present content and this spec, or None."""
        try:
            video_hash = self._hashes.of(path)
        except OSError:
            return None  # who decodes it says what is wrong
        key = _key(video_hash, spec)
        with self._guard:
            self._asked[path] = video_hash
            if key in self._waiting:
                return self._waiting[key].payload
            if key in self._spoilt:
                return None
            payload = self._read(key)
        if payload is not None:
            self._last_use.note(key)
        return payload

    def put(self, path: Path, spec: str, payload: bytes) -> None:
        """Keep this, made from the file that the latest `get` of `path` did not have."""
        asked = self._asked.get(path)
        try:
            video_hash = self._hashes.of(path)
        except OSError:
            return
        if video_hash != asked or len(payload) > EVICT_TO * self._max_bytes:
            return
        key = _key(video_hash, spec)
        row = {
            "key": key,
            "video_hash": video_hash,
            "spec": spec,
            "path": str(path).encode(errors="replace").decode(),
            "bytes": len(payload),
            "stored_at": time.time_ns(),
        }
        with self._guard:
            if not self._writable:
                return
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting[key] = _Waiting(row, payload)
            size = self._waiting_bytes()
            if (
                len(self._waiting) >= FLUSH_CLIPS
                or size >= FLUSH_BYTES
                or time.monotonic() - self._waiting_since >= FLUSH_SECONDS
            ):
                self.flush()
            while self._waiting_bytes() > KEEP_BYTES:
                self._waiting.popitem(last=False)

    def discard(self, path: Path, spec: str) -> None:
        """What `get` gave is spoilt: forget it, and take the next `put` in its place."""
        with self._guard:
            if path in self._asked:
                key = _key(self._asked[path], spec)
                self._spoilt.add(key)
                self._waiting.pop(key, None)

    # --- for who opened it ---------------------------------------------------------------------

    def flush(self, wait_seconds: float = 0.0) -> bool:
        """Write what is waiting; False when another process is writing for longer than that."""
        with self._guard:
            if not self._waiting or not self._writable:
                return True
            try:
                lock = self.folder / ".locks" / "frames.lock"
                with disk_troubles(self.folder), locks.held(lock, "frames", wait_seconds):
                    self._write_or_start_over()
            except locks.InUseError:
                return False
            except VideoOPDError as error:
                self._stop_writing(str(error))
            except (OSError, ValueError, RuntimeError) as error:
                self._stop_writing(f"{self.folder} cannot be written: {_first_line(error)}")
            return True

    def close(self) -> None:
        """Write what is waiting. The store may be used afterwards."""
        if not self.flush(CLOSE_SECONDS):
            with self._guard:
                self._waiting.clear()

    def __len__(self) -> int:
        """Clips that are written."""
        with self._guard:
            self._refresh()
            return len(self._index.rows)

    # --- reading -------------------------------------------------------------------------------

    def _read(self, key: str) -> bytes | None:
        for _ in range(3):
            try:
                if key not in self._index.rows:
                    self._refresh()
                kept = self._index.rows.get(key)
                if kept is None:
                    return None
                files = self._index.dataset.take_blobs("clip", addresses=[kept.address])
                if files and files[0] is not None:
                    payload: bytes = files[0].readall()
                    if len(payload) == kept.bytes:
                        return payload
            except (OSError, ValueError, RuntimeError):
                pass  # cleared away under us, or damaged
            before = self._index.version
            try:
                self._refresh()
            except (OSError, ValueError, RuntimeError):
                return None
            if self._index.version == before:
                break
        self._spoilt.add(key)
        return None

    def _refresh(self) -> None:
        newest = self._newest()
        if int(newest.version) != self._index.version:
            self._index = _Index(newest, self._index)

    def _newest(self) -> lance.LanceDataset:
        import lance

        for _ in range(5):  # between its listing and its reading a manifest may be cleared away
            try:
                return lance.dataset(self.folder / TABLE)
            except (OSError, ValueError):
                time.sleep(0.02)
        return lance.dataset(self.folder / TABLE)

    # --- writing; under the lock ---------------------------------------------------------------

    def _write_or_start_over(self) -> None:
        try:
            with disk_troubles(self.folder):
                return self._write()
        except (OSError, ValueError, RuntimeError) as error:  # a file of the table is damaged
            reason = _first_line(error)
        self._empty_table()
        self._write()
        warnings.warn(
            f"the frame store {self.folder} was damaged ({reason}) and begins anew",
            RuntimeWarning,
            stacklevel=5,
        )

    def _empty_table(self) -> None:
        import lance

        lance.write_dataset(_SCHEMA.empty_table(), self.folder / TABLE, mode="overwrite")
        self._index = _Index(self._newest())

    def _write(self) -> None:
        import lance

        self._refresh()
        rows = self._index.rows
        gone = {key for key in self._spoilt if key in rows}
        fresh = [w for key, w in self._waiting.items() if key not in rows or key in gone]
        needed = sum(len(w.payload) for w in fresh)
        evicted = self._oldest(needed, gone)
        if gone or evicted:
            names = ", ".join(f"'{key}'" for key in sorted(gone | evicted))  # hexadecimal digits
            self._index.dataset.delete(f"key IN ({names})")
        if fresh:
            lance.write_dataset(_table(fresh), self.folder / TABLE, mode="append")
        self._spoilt -= gone | {w.row["key"] for w in fresh}
        self._waiting.clear()
        self._clear_up(bool(evicted))
        self._refresh()

    def _oldest(self, needed: int, gone: set[str]) -> set[str]:
        """The clips to remove, so that `needed` bytes have room."""
        rows = {key: kept for key, kept in self._index.rows.items() if key not in gone}
        size = sum(kept.bytes for kept in rows.values()) + needed
        evicted: set[str] = set()
        if size <= EVICT_ABOVE * self._max_bytes:
            return evicted
        used = self._last_use.times()
        for key in sorted(rows, key=lambda key: max(used.get(key, 0), rows[key].stored_at)):
            if size <= EVICT_TO * self._max_bytes:
                break
            size -= rows[key].bytes
            evicted.add(key)
        return evicted

    def _clear_up(self, evicted: bool) -> None:
        """Join small fragments, give back the space of deleted rows, forget older versions."""
        dataset = self._newest()
        counts = [fragment.count_rows() for fragment in dataset.get_fragments()]
        mean = max(1, self._index.bytes // max(1, len(self._index.rows)))
        target = max(1, FRAGMENT_BYTES // mean)
        small = sum(count < target for count in counts)
        if evicted or small > JOIN_ABOVE:
            dataset.optimize.compact_files(target_rows_per_fragment=target, num_threads=1)
        if evicted or small > JOIN_ABOVE or len(dataset.versions()) > JOIN_ABOVE:
            # The lock is held, so what nobody refers to was left by a writer that was killed.
            dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
            self._last_use.tidy(self._index.rows)
            self._hashes.tidy()

    def _waiting_bytes(self) -> int:
        return sum(len(w.payload) for w in self._waiting.values())

    def _stop_writing(self, reason: str) -> None:
        """A cache that cannot be written is no reason to stop a stage; silence is none either."""
        self._writable = False
        self._waiting.clear()
        warnings.warn(f"no more frames are kept: {reason}", RuntimeWarning, stacklevel=3)


def usage(folder: Path) -> Usage | None:
    """What the store in `folder` holds; None where there is none."""
    if not (folder / FORMAT_FILE).exists():
        return None
    import lance

    rows = lance.dataset(folder / TABLE).to_table(columns=["video_hash"])
    size = 0
    for file in folder.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # cleared away meanwhile
            continue
    return Usage(len(set(rows["video_hash"].to_pylist())), rows.num_rows, size)


def _create(folder: Path) -> None:
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
            lance.write_dataset(_SCHEMA.empty_table(), aside / TABLE, mode="create")
            created = datetime.now(UTC).isoformat()
            write_json(aside / FORMAT_FILE, {"frame_store": FORMAT, "created_at": created})
            try:
                aside.rename(folder)  # onto an empty folder is allowed
            except OSError:
                if not (folder / FORMAT_FILE).exists():  # else: made by another process
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _table(clips: Iterable[_Waiting]) -> pa.Table:
    clips = list(clips)
    columns = [
        pa.array([clip.row[name] for clip in clips], _SCHEMA.field(name).type) for name in _PLAIN
    ]
    payloads = pa.array([clip.payload for clip in clips], pa.large_binary())
    return pa.Table.from_arrays([*columns, payloads], schema=_SCHEMA)


def _key(video_hash: str, spec: str) -> str:
    return hashlib.sha256(f"{video_hash}\n{spec}".encode()).hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
