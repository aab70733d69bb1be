"""A decoded video, the rule by which its frames were made, and the store that may keep both.

A `ClipStore` keeps bytes: it knows videos by what is in their files, and nothing of pixels. What
the bytes mean is here. Everything is checked when they are read again, so a store may lose or spoil
a clip at any time: it is then decoded again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from opd_core.config.sections import VideoSection
from opd_core.video.frame_size import SizeRule

Codec = Literal["raw", "jpeg"]

SPEC_VERSION = 2
"""Raise it when the rules change by which frames, their size or their times are chosen."""
JPEG_QUALITY = 95
"""With full colour resolution: sentences ask for small and colourful things."""
_HEADER = struct.Struct("!16sI")
"""Digest and length of the JSON that precedes the frames."""


class ClipStore(Protocol):
    """Keeps clips as bytes, by the content of a video file and a frame spec.

    None of it raises for a clip that it cannot keep or has no more: the video is then decoded.
    """

    def get(self, path: Path, spec: str) -> bytes | None:
        """What was put for the file's present content, or None."""

    def put(self, path: Path, spec: str, payload: bytes) -> None:
        """Keep this, made from the file that the latest `get` of `path` did not have."""

    def discard(self, path: Path, spec: str) -> None:
        """What `get` gave is spoilt: forget it, and take the next `put` in its place."""


@dataclass(frozen=True, slots=True)
class VideoClip:
    """The frames of one video that a model sees. Shared by all who read it: do not write to it."""

    frames: np.ndarray
    """[F, H, W, 3] uint8, RGB, resized, contiguous."""
    frame_indices: tuple[int, ...]
    """[F] of the file, increasing."""
    fps: float
    """Of the file; where its rate varies, on average."""
    total_frames: int
    """Of the file, counted."""
    duration: float
    """Seconds of the file, to the end of its last frame."""
    timestamps: tuple[float, ...]
    """[F] seconds at which each is shown, as a player counts them (`frame_times.py`)."""
    pixel_hash: str
    """16 hex digits over shape and bytes of `frames`."""
    decoder: str = "pyav"

    @classmethod
    def of(
        cls,
        frames: np.ndarray,
        frame_indices: tuple[int, ...],
        fps: float,
        total_frames: int,
        decoder: str,
        *,
        timestamps: tuple[float, ...] | None = None,
        duration: float | None = None,
    ) -> VideoClip:
        """A clip of these frames; what follows from them is worked out. Times are those of a
        constant rate where none are given."""
        if timestamps is None:
            timestamps = tuple(index / fps for index in frame_indices)
        return cls(
            frames=frames,
            frame_indices=frame_indices,
            fps=fps,
            total_frames=total_frames,
            duration=total_frames / fps if duration is None else duration,
            timestamps=timestamps,
            pixel_hash=hash_pixels(frames),
            decoder=decoder,
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What the processors and vLLM want to know of a video whose frames are chosen.

        They take index / fps for a frame's time, and frames / (total / fps) for the sampled rate.
        Where that is not so, because the rate varies or the picture starts late, they are told
        milliseconds as if a frame lasted one.
        """
        if self.timestamps == tuple(index / self.fps for index in self.frame_indices):
            fps, total, indices = self.fps, self.total_frames, list(self.frame_indices)
        else:
            fps, total = 1000.0, round(1000 * self.duration)
            indices = [round(1000 * time) for time in self.timestamps]
        return {
            "fps": fps,
            "total_num_frames": total,
            "frames_indices": indices,
            "duration": self.duration,
            "video_backend": self.decoder,
            "do_sample_frames": False,
        }

    @property
    def unevenness(self) -> float:
        """Seconds by which a frame is off where a model expects it that takes all for evenly spread
        over the file, as Qwen2.5-VL does."""
        spacing = self.duration / len(self.timestamps)
        return max(abs(t - i * spacing) for i, t in enumerate(self.timestamps))


def hash_pixels(frames: np.ndarray) -> str:
    """16 hex digits over the shape and the bytes of uint8 frames."""
    digest = hashlib.sha256(repr(frames.shape).encode() + b"\n")
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()[:16]


def frame_spec(settings: VideoSection, codec: Codec, size: SizeRule, min_frames: int) -> str:
    """All on which the frames of a given file depend, as canonical JSON.

    The libraries are part of it: another version of them may give other pixels.
    """
    spec: dict[str, Any] = {
        "rules": SPEC_VERSION,
        "fps": settings.fps,
        "max_frames": settings.max_frames,
        "min_frames": min_frames,
        "max_video_tokens": settings.max_video_tokens,
        "max_frame_tokens": settings.max_frame_tokens,
        "size": asdict(size),
        "decoder": settings.decoder,
        "libraries": [_version(name) for name in ("av", "decord", "pillow")],
        "codec": codec if codec == "raw" else f"jpeg {JPEG_QUALITY} 4:4:4",
    }
    return json.dumps(spec, sort_keys=True)


def to_bytes(clip: VideoClip, codec: Codec) -> bytes:
    """A clip as bytes. With `jpeg`, `from_bytes` gives other pixels, and their hash."""
    header: dict[str, Any] = {
        "shape": clip.frames.shape,
        "frame_indices": clip.frame_indices,
        "timestamps": clip.timestamps,
        "duration": clip.duration,
        "fps": clip.fps,
        "total_frames": clip.total_frames,
        "decoder": clip.decoder,
        "pixel_hash": clip.pixel_hash,
    }
    if codec == "raw":
        body = [clip.frames.tobytes()]
    else:
        body = [_to_jpeg(frame) for frame in clip.frames]
        header["jpeg_bytes"] = [len(part) for part in body]
        header["pixel_hash"] = hash_pixels(_from_jpegs(body, clip.frames.shape))
    text = json.dumps(header).encode()
    return b"".join([_HEADER.pack(_digest(text), len(text)), text, *body])


def from_bytes(payload: bytes) -> VideoClip:
    """The clip of `to_bytes`. Raises ValueError when these are not its bytes, or not its pixels."""
    try:
        header, start = _header(payload)
        shape = tuple(header["shape"])
        if "jpeg_bytes" in header:
            parts = []
            for size in header["jpeg_bytes"]:
                parts.append(payload[start : start + size])
                start += size
            frames = _from_jpegs(parts, shape)
        else:  # copied, because torch wants pixels that may be written
            frames = np.frombuffer(payload, np.uint8, offset=start).reshape(shape).copy()
    except (struct.error, OSError, SyntaxError) as error:  # PIL raises the last two
        raise ValueError(str(error)) from None
    indices, fps = tuple(header["frame_indices"]), float(header["fps"])
    clip = VideoClip.of(
        frames,
        indices,
        fps,
        header["total_frames"],
        header["decoder"],
        timestamps=tuple(header["timestamps"]),
        duration=header["duration"],
    )
    if clip.pixel_hash != header["pixel_hash"]:
        raise ValueError("the pixels are not those that were kept")
    return clip


def pixel_hash_in(file: Path) -> str | None:
    """What the header of a kept clip says of its pixels, without reading them; None: unreadable."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_HEADER.size)
            header, _ = _header(start + stream.read(_HEADER.unpack_from(start)[1]))
        return str(header["pixel_hash"])
    except (OSError, struct.error, ValueError, KeyError):
        return None


def _header(payload: bytes) -> tuple[dict[str, Any], int]:
    """What precedes the frames, and where they begin. Raises ValueError, `struct.error`."""
    digest, length = _HEADER.unpack_from(payload)
    text = payload[_HEADER.size : _HEADER.size + length]
    if _digest(text) != digest:
        raise ValueError("the header is damaged")
    return json.loads(text), _HEADER.size + length


def _to_jpeg(frame: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _from_jpegs(parts: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    frames = np.empty(shape, np.uint8)
    for frame, part in zip(frames, parts, strict=True):
        with Image.open(io.BytesIO(part), formats=["JPEG"]) as image:
            frame[:] = np.asarray(image)
    return frames


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:16]


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} none"
