"""From a video file to the frames a model sees, or to the reason why it cannot see them.

The parts: which frames (`frame_selection.py`), at what size (`frame_size.py`); a child process in
which files are opened and decoded (`decoding.py`), with a hard timeout (`child.py`);
here, what holds them together, remembers clips, and works ahead.
"""

from __future__ import annotations

import contextlib
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from opd_core.child_process import ChildCrash, ChildTimeout
from opd_core.config.sections import VideoSection
from opd_core.model.architectures import QWEN3_VL
from opd_core.types import VideoOPDError
from opd_core.video.child import DecoderProcess
from opd_core.video.clip import ClipStore, Codec, VideoClip, frame_spec, from_bytes, to_bytes
from opd_core.video.frame_selection import sample_frame_indices
from opd_core.video.frame_size import SizeRule, import_resize_rules
from opd_core.video.frame_times import UnusableVideo

MAX_CACHE_BYTES = 4 << 30
"""A video at 8,192 tokens is 50 MB of pixels: `cached_videos` alone would not bound the memory."""
MAX_AHEAD = 4
"""Prefetched videos that nobody has read yet."""

_Key = tuple[str, int, int]


class VideoError(Exception):
    """A video that cannot be used; str(error) is the reason for `quarantine` (one sentence)."""


class NoFileError(VideoError):
    """There is no file, or the system cannot read it. Not remembered: it may come back."""


class DecoderLostError(VideoError):
    """The decoder hung or crashed on it. Not remembered: another try may succeed."""


class VideoReader:
    """Reads videos through one child process, which is started when first needed.

    May be used from several threads. A context manager; `close` kills the child.
    """

    def __init__(
        self,
        settings: VideoSection,
        *,
        size_rule: SizeRule | None = None,
        min_frames: int = QWEN3_VL.min_frames,
        max_cache_bytes: int = MAX_CACHE_BYTES,
        codec: Codec = "raw",
        store: ClipStore | None = None,
    ) -> None:
        size_rule = size_rule or SizeRule()
        temporal_patch_size = size_rule.temporal_patch_size
        fewest = -(-settings.max_frames // temporal_patch_size)
        if settings.max_video_tokens < fewest:
            raise VideoOPDError(
                f"video.max_frames = {settings.max_frames} needs at least {fewest} tokens; "
                f"set video.max_video_tokens >= {fewest}, or lower video.max_frames"
            )
        if settings.max_frames < temporal_patch_size:
            raise VideoOPDError(
                f"video.max_frames = {settings.max_frames} is less than the "
                f"{temporal_patch_size} frames of one patch; set it to {temporal_patch_size}"
            )
        import_resize_rules()  # takes seconds: now, not in the background or against a deadline
        self._settings = settings
        self._size_rule = size_rule
        self._min_frames = min_frames
        self._max_cache_bytes = max_cache_bytes
        self._codec = codec
        self._spec = frame_spec(settings, codec, size_rule, min_frames)
        self.store = store
        """Asked before a video is decoded, told what was. May be changed at any time."""
        self._decoding = threading.Lock()
        """Held by whoever talks to the child."""
        self._child: DecoderProcess | None = None
        self._closed = False
        self._state = threading.Condition()
        """Guards all below; never held while decoding."""
        self._cache: OrderedDict[_Key, VideoClip | VideoError] = OrderedDict()
        self._cache_bytes = 0
        self._readers_waiting = 0
        self._ahead: deque[Path] = deque()
        self._unread: set[Path] = set()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: Path) -> VideoClip:
        """The clip of one file. Raises `VideoError` with the reason why there is none."""
        path = Path(path)
        if self._closed:
            raise RuntimeError("this VideoReader is closed")
        with self._state:
            self._readers_waiting += 1
            if path in self._ahead:
                self._ahead.remove(path)
        try:
            entry = self._entry(path)
        finally:
            with self._state:
                self._readers_waiting -= 1
                self._unread.discard(path)
                self._state.notify_all()
        if isinstance(entry, VideoError):
            raise type(entry)(*entry.args)
        return entry

    def prefetch(self, paths: Iterable[Path]) -> None:
        """Decode these in the background, in order, a few ahead of `read`.

        Replaces what an earlier call asked for. What goes wrong is raised by `read`.
        """
        with self._state:
            self._ahead = deque(Path(path) for path in paths)
            self._unread.clear()
            if self._thread is None and self._ahead:
                self._thread = threading.Thread(target=self._work_ahead, daemon=True)
                self._thread.start()
            self._state.notify_all()

    def close(self) -> None:
        with self._state:
            self._closed = True
            self._ahead.clear()
            self._state.notify_all()
        child = self._child
        if child is not None:
            child.kill()  # whoever waits for it lets go
        if self._thread is not None:
            self._thread.join()
        with self._decoding:
            if self._child is not None:
                self._child.end()
                self._child = None

    def _work_ahead(self) -> None:
        limit = min(MAX_AHEAD, self._settings.cached_videos)
        while True:
            with self._state:
                while not self._closed and (
                    not self._ahead or self._readers_waiting or len(self._unread) >= limit
                ):
                    self._state.wait()
                if self._closed:
                    return
                path = self._ahead.popleft()
                self._unread.add(path)
            with contextlib.suppress(VideoOPDError, RuntimeError):  # `read` will raise its own
                self._entry(path, keep_lost=True)

    def _entry(self, path: Path, keep_lost: bool = False) -> VideoClip | VideoError:
        """Clip from the cache, or decoded now. `keep_lost`: for the `read` still to come."""
        try:
            key = _file_key(path)
        except VideoError as error:
            return error
        with self._decoding:
            if self._closed:
                raise RuntimeError("this VideoReader was closed meanwhile")
            with self._state:
                entry = self._cache.get(key)
                if entry is not None:
                    self._cache.move_to_end(key)
                    if isinstance(entry, DecoderLostError) and not keep_lost:
                        del self._cache[key]
                    return entry
            try:
                entry = self._stored_or_decoded(path)
            except VideoError as error:
                entry = _not_there_any_more(path) or error
            if isinstance(entry, NoFileError):
                return entry
            if keep_lost or not isinstance(entry, DecoderLostError):
                self._remember(key, entry)
            return entry

    def _remember(self, key: _Key, entry: VideoClip | VideoError) -> None:
        with self._state:
            self._cache[key] = entry
            self._cache_bytes += _size(entry)
            while len(self._cache) > 1 and (
                len(self._cache) > self._settings.cached_videos
                or self._cache_bytes > self._max_cache_bytes
            ):
                _, old = self._cache.popitem(last=False)
                self._cache_bytes -= _size(old)

    def _stored_or_decoded(self, path: Path) -> VideoClip:
        store = self.store
        if store is not None and (stored := store.get(path, self._spec)) is not None:
            try:
                return from_bytes(stored)
            except (ValueError, KeyError, TypeError):
                store.discard(path, self._spec)
        clip = self._decode(path)
        if store is None and self._codec == "raw":
            return clip
        payload = to_bytes(clip, self._codec)
        if store is not None:
            store.put(path, self._spec, payload)
        # What is lossy is so the first time, too: every stage sees the pixels that are kept.
        return clip if self._codec == "raw" else from_bytes(payload)

    def _decode(self, path: Path) -> VideoClip:
        seconds = self._settings.decode_timeout_seconds
        if self._child is None or self._child.is_ended:
            self._child = DecoderProcess(self._settings.decoder)
        try:
            return self._ask_child(self._child, path, time.monotonic() + seconds)
        except ChildTimeout:
            reason = f"{path.name}: decoding took longer than {seconds:g} s"
            raise DecoderLostError(reason) from None
        except ChildCrash as error:
            raise DecoderLostError(f"{path.name}: the decoding process {error}") from None
        except UnusableVideo as error:
            raise VideoError(f"{path.name} {error}") from None

    def _ask_child(self, child: DecoderProcess, path: Path, deadline: float) -> VideoClip:
        settings = self._settings
        probed = child.ask({"do": "probe", "path": str(path.absolute())}, deadline)
        total, fps = int(probed["total_frames"]), float(probed["fps"])
        seconds: np.ndarray = probed["seconds"]
        indices = sample_frame_indices(
            total,
            fps,
            settings,
            self._min_frames,
            None if probed["constant"] else seconds,
            self._size_rule.temporal_patch_size,
        )
        try:
            height, width = self._size_rule.target_size(
                len(indices),
                probed["height"],
                probed["width"],
                settings.max_video_tokens,
                settings.max_frame_tokens,
            )
        except ValueError as error:
            size = f"{probed['width']}x{probed['height']}"
            raise VideoError(f"{path.name} is {size}, which no model takes: {error}") from None
        request = {"do": "decode", "indices": indices, "height": height, "width": width}
        return VideoClip.of(
            child.ask(request, deadline)["frames"],
            tuple(indices),
            fps,
            total,
            settings.decoder,
            timestamps=tuple(seconds[indices].tolist()),
            duration=float(probed["duration"]),
        )


def _file_key(path: Path) -> _Key:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:  # rights, a stale mount: not for the decoder to find out
                file.read(1)
    except FileNotFoundError:
        raise NoFileError(f"there is no file {path}") from None
    except OSError as error:
        raise NoFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise VideoError(f"{path} cannot be read: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path} is no regular file")
    if status.st_size == 0:
        raise VideoError(f"{path.name} is empty (0 bytes)")
    return str(path.absolute()), status.st_mtime_ns, status.st_size


def _not_there_any_more(path: Path) -> NoFileError | None:
    """Why a file is gone that was there before it was decoded: its folder may have been unmounted,
    of which the decoder makes a damaged file."""
    try:
        _file_key(path)
    except NoFileError as error:
        return error
    except VideoError:
        pass
    return None


def _size(entry: VideoClip | VideoError) -> int:
    return entry.frames.nbytes if isinstance(entry, VideoClip) else 0
