"""The frame store: the resized frames of videos, decoded once for all stages and processes.

    format.json    clips/ab/<video>-<spec>    one file a clip; its mtime says when it was last used
    files.jsonl    hashes of video files

It is a cache. Whatever is missing, spoilt or cannot be written costs another decode and nothing
else. So there is no lock: a clip is written aside and renamed, a reader finds all of it or nothing,
and whoever has written a twentieth of the bound removes what was not used for longest. What the
bytes mean, and whether they are still what was put, is for `opd_core/video/clip.py` to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from opd_core.types import VideoOPDError
from storage.files import disk_troubles, write_json
from storage.frames.video_hashes import VideoHashes

FORMAT = 2
FORMAT_FILE = "format.json"
CLIPS = "clips"
_OLDER = ("clips.lance", "used.log", ".locks")
"""What format 1 left in the folder."""

EVICT_ABOVE, EVICT_TO = 0.9, 0.75
"""Shares of the bound. What is above is for what several processes write between two looks,"""
LOOK_EVERY = 0.05
"""each after it has written this share."""
ABANDONED_SECONDS = 600.0
"""A file that is still aside after so long was left by a process that was killed."""


class Usage(NamedTuple):
    """What a store holds."""

    videos: int
    """Different ones, by content."""
    clips: int
    """Videos times frame specs."""
    bytes: int
    """What its folder takes on the disk."""


def _ours(folder: Path) -> bool:
    """Whether it is empty, or holds only what another process, perhaps killed, began a store with.

    Ask before whether there is a `format.json`: it may appear meanwhile.
    """
    return folder.is_dir() and all(
        entry.name == CLIPS or entry.name.startswith(f".{FORMAT_FILE}.")
        for entry in folder.iterdir()
    )


class FrameStore:
    """Clips as bytes, by (content of the video file, frame spec). May be used from many threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._clips = folder / CLIPS
        self._max_bytes = max_bytes
        self._hashes = VideoHashes(folder / "files.jsonl")
        self._asked: dict[Path, str] = {}
        """Content of the file when it was asked for: what is put must be made of the same."""
        self._unseen = max_bytes
        """Bytes written since the last look at how much there is; the first put looks."""
        self._guard = threading.Lock()
        self._writable = True

    def __reduce__(self) -> tuple[Callable[[Path, int], FrameStore], tuple[Path, int]]:
        """In another process it is opened anew."""
        return FrameStore, (self.folder, self._max_bytes)

    @classmethod
    def open(cls, folder: Path, max_bytes: int) -> Self:
        """The store in `folder`, made where there is none; an older format's begins anew.

        Raises `VideoOPDError` when the folder holds something else or cannot be written.
        """
        file = folder / FORMAT_FILE
        if folder.exists() and not _ours(folder) and not file.exists():
            raise VideoOPDError(
                f"{folder} is there already and no frame store; set frames.path to a new or empty"
                " folder"
            )
        try:
            format_read = json.loads(file.read_text())["frame_store"] if file.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            format_read = "unknown"
        if format_read not in (None, 1, FORMAT):
            raise VideoOPDError(
                f"{folder} is no frame store of this program (format {format_read}, not {FORMAT}); "
                "remove the folder, which is only a cache, or set frames.path to another"
            )
        with disk_troubles(folder):
            (folder / CLIPS).mkdir(parents=True, exist_ok=True)
            for name in _OLDER if format_read == 1 else ():
                former = folder / name
                shutil.rmtree(former) if former.is_dir() else former.unlink(missing_ok=True)
            if format_read != FORMAT:
                created = datetime.now(UTC).isoformat()
                write_json(file, {"frame_store": FORMAT, "created_at": created})
        store = cls(folder, max_bytes)
        store._hashes.tidy()
        return store

    @classmethod
    def reading(cls, folder: Path) -> Self | None:
        """The store in `folder` as it is, for looking at it; None where there is none."""
        return cls(folder, 0) if (folder / FORMAT_FILE).exists() else None

    def clips_of(self, path: Path) -> list[Path]:
        """The files of all clips of a video file, whatever their frame spec; of one that is gone,
        those of what it held when it was last looked at."""
        try:
            video_hash: str | None = self._hashes.of(path)
        except OSError:
            video_hash = self._hashes.last_known(path)
        if video_hash is None:
            return []
        return sorted((self._clips / video_hash[:2]).glob(f"{video_hash[:32]}-*"))

    # --- what opd_core/video/clip.py calls a ClipStore -----------------------------------------

    def get(self, path: Path, spec: str) -> bytes | None:
        """What was put for the file's present content and this spec, or None."""
        try:
            video_hash = self._hashes.of(path)
        except OSError:
            return None  # who decodes it says what is wrong
        self._asked[path] = video_hash
        file = self._file(video_hash, spec)
        try:
            payload = file.read_bytes()
        except OSError:
            return None
        try:
            os.utime(file)
        except OSError:
            pass  # evicted meanwhile, or a store on a read-only disk: it can be read, too
        return payload

    def put(self, path: Path, spec: str, payload: bytes) -> None:
        """Keep this, made from the file that the latest `get` of `path` did not have."""
        try:
            video_hash = self._hashes.of(path)
        except OSError:
            return
        if (
            not self._writable
            or video_hash != self._asked.get(path)
            or len(payload) > EVICT_TO * self._max_bytes
        ):
            return
        try:
            with disk_troubles(self.folder):
                self._make_room(len(payload))
                self._write(self._file(video_hash, spec), payload)
        except (VideoOPDError, OSError) as error:
            self._stop_writing(error)

    def discard(self, path: Path, spec: str) -> None:
        """What `get` gave is spoilt: forget it, and take the next `put` in its place."""
        if path in self._asked:
            _remove(self._file(self._asked[path], spec))

    def _file(self, video_hash: str, spec: str) -> Path:
        spec_hash = hashlib.sha256(spec.encode()).hexdigest()[:16]
        return self._clips / video_hash[:2] / f"{video_hash[:32]}-{spec_hash}"

    def _write(self, file: Path, payload: bytes) -> None:
        file.parent.mkdir(exist_ok=True)
        aside = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
        try:
            aside.write_bytes(payload)
            aside.replace(file)
        finally:
            _remove(aside)

    def _make_room(self, needed: int) -> None:
        with self._guard:
            self._unseen += needed
            if self._unseen <= LOOK_EVERY * self._max_bytes:
                return
            self._unseen = needed
            clips = sorted(_files(self._clips), key=lambda found: found[1].st_mtime_ns)
            size = needed + sum(status.st_size for _, status in clips)
            evicting = size > EVICT_ABOVE * self._max_bytes
            for entry, status in clips:
                aside = entry.name.startswith(".")
                abandoned = aside and time.time() - status.st_mtime > ABANDONED_SECONDS
                too_much = evicting and not aside and size > EVICT_TO * self._max_bytes
                if abandoned or too_much:
                    _remove(Path(entry.path))
                    size -= status.st_size

    def _stop_writing(self, error: BaseException) -> None:
        """A cache that cannot be written is no reason to stop a stage; silence is none either."""
        with self._guard:
            if not self._writable:
                return
            self._writable = False
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"no more frames are kept: {first_line}", RuntimeWarning, stacklevel=3)


def usage(folder: Path) -> Usage | None:
    """What the store in `folder` holds; None where there is none."""
    if not (folder / FORMAT_FILE).exists():
        return None
    size = sum(status.st_size for _, status in _files(folder))
    clips = [entry.name for entry, _ in _files(folder / CLIPS) if not entry.name.startswith(".")]
    return Usage(len({name.partition("-")[0] for name in clips}), len(clips), size)


def _files(folder: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """The files below a folder; what goes away meanwhile is left out."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield entry, entry.stat(follow_symlinks=False)
        except OSError:
            continue


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        pass  # of a read-only disk
