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
import threading
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Self

from opd_core.types import VideoOPDError
from storage import clip_index, clip_table, eviction, locks
from storage.clip_table import FORMAT, FORMAT_FILE, NewClip
from storage.files import disk_troubles
from storage.last_use import LastUse
from storage.video_hashes import VideoHashes

FLUSH_CLIPS = 32
FLUSH_BYTES = 64 << 20
FLUSH_SECONDS = 5.0
"""Clips are written together; what is not written yet is all that a killed process loses."""
KEEP_BYTES = 256 << 20
"""Clips that wait for another process to finish writing; the oldest are given up."""
CLOSE_SECONDS = 10.0
"""How long `close` waits for another writer."""


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
        self._waiting: OrderedDict[str, NewClip] = OrderedDict()
        self._waiting_since = 0.0
        self._spoilt: set[str] = set()
        self._writable = True
        self._index = clip_index.newest(self.folder)

    @classmethod
    def open(cls, folder: Path, max_bytes: int) -> Self:
        """The store in `folder`, made where there is none.

        Raises `VideoOPDError` when the folder holds something else or cannot be written.
        """
        if not (folder / FORMAT_FILE).exists():
            clip_table.create(folder)
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
        if video_hash != asked or len(payload) > eviction.EVICT_TO * self._max_bytes:
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
            self._waiting[key] = NewClip(row, payload)
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
        self._index = clip_index.newest(self.folder, self._index)

    # --- writing; under the lock ---------------------------------------------------------------

    def _write_or_start_over(self) -> None:
        try:
            with disk_troubles(self.folder):
                return self._write()
        except (OSError, ValueError, RuntimeError) as error:  # a file of the table is damaged
            reason = _first_line(error)
        clip_table.empty(self.folder)
        self._index = clip_index.newest(self.folder)
        self._write()
        warnings.warn(
            f"the frame store {self.folder} was damaged ({reason}) and begins anew",
            RuntimeWarning,
            stacklevel=5,
        )

    def _write(self) -> None:
        self._refresh()
        rows = self._index.rows
        gone = {key for key in self._spoilt if key in rows}
        fresh = [w for key, w in self._waiting.items() if key not in rows or key in gone]
        needed = sum(len(w.payload) for w in fresh)
        left = {key: kept for key, kept in rows.items() if key not in gone}
        evicted = eviction.oldest(left, self._last_use.times, needed, self._max_bytes)
        if gone or evicted:
            names = ", ".join(f"'{key}'" for key in sorted(gone | evicted))  # hexadecimal digits
            self._index.dataset.delete(f"key IN ({names})")
        if fresh:
            clip_table.add(self.folder, fresh)
        self._spoilt -= gone | {w.row["key"] for w in fresh}
        self._waiting.clear()
        mean = max(1, self._index.bytes // max(1, len(self._index.rows)))
        if eviction.clear_up(clip_table.newest(self.folder), mean, bool(evicted)):
            self._last_use.tidy(self._index.rows)
            self._hashes.tidy()
        self._refresh()

    def _waiting_bytes(self) -> int:
        return sum(len(w.payload) for w in self._waiting.values())

    def _stop_writing(self, reason: str) -> None:
        """A cache that cannot be written is no reason to stop a stage; silence is none either."""
        self._writable = False
        self._waiting.clear()
        warnings.warn(f"no more frames are kept: {reason}", RuntimeWarning, stacklevel=3)


def _key(video_hash: str, spec: str) -> str:
    return hashlib.sha256(f"{video_hash}\n{spec}".encode()).hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
