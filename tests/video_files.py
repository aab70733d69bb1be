"""Real video files for tests, good and bad, made through PyAV in milliseconds.

Every frame shows its own number: as a row of 16 blocks, black or white, along the top. So a test
can ask any decoded picture which frame of the file it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import av.bitstream
import numpy as np

BLOCK = 8
"""Pixels of a side of one block of the number; a picture is at least 16 blocks wide."""


def picture(number: int, height: int = 64, width: int = 128) -> np.ndarray:
    """[height, width, 3] uint8: the number in binary along the top, a smooth gradient below."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y + 3 * number) % 256], axis=-1)
    for bit in range(16):
        image[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return image.astype(np.uint8)


def number_of(image: np.ndarray) -> int:
    """The number that an upright, unresized `picture` shows."""
    middle = image[BLOCK // 2, BLOCK // 2 : 16 * BLOCK : BLOCK].mean(axis=-1)
    return sum(1 << bit for bit, value in enumerate(middle) if value > 127)


def write_video(
    path: Path,
    *,
    frames: int = 48,
    fps: int | Fraction = 8,
    height: int = 64,
    width: int = 128,
    codec: str = "libx264",
    b_frames: int = 2,
    keyframe_every: int = 12,
    rotation: int = 0,
    audio_seconds: float = 0.0,
    times: list[float] | None = None,
    faststart: bool = False,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """One file; the container follows from the suffix. `times`: seconds of each frame."""
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000) if times else 1 / Fraction(fps)
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=16000) if audio_seconds else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            frame.pts = round(times[number] * 1000) if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _write_silence(container, audio, audio_seconds)
    return path


def copy_packets(
    source: Path,
    path: Path,
    change: Callable[[int, av.Packet], av.Packet | None] = lambda number, packet: packet,
    bitstream_filter: str | None = None,
) -> Path:
    """The video stream of `source` in another file, undecoded. `change` gets the number and the
    packet, and gives None for those that are to be left out."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        split = None
        if bitstream_filter:
            split = av.bitstream.BitStreamFilterContext(bitstream_filter, given.streams.video[0])
        number = 0
        for packet in given.demux(video=0):
            if not packet.size:
                continue
            for part in split.filter(packet) if split else [packet]:
                changed = change(number, part)
                number += 1
                if changed is not None:
                    changed.stream = stream
                    container.mux(changed)
    return path


def write_audio_only(path: Path, seconds: float = 2.0) -> Path:
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=16000), seconds)
    return path


def write_zero_frames(path: Path) -> Path:
    """An mp4 with a video track in which nothing is."""
    with av.open(str(path), "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        stream.codec_context.open()
        container.start_encoding()
    return path


def write_truncated(path: Path, keep: float = 0.5, **kwargs: object) -> Path:
    """The index is at the front and whole, so that the file opens; the end of the data is gone."""
    write_video(path, faststart=True, **kwargs)  # type: ignore[arg-type]
    data = path.read_bytes()
    start = data.index(b"mdat")
    path.write_bytes(data[: start + int((len(data) - start) * keep)])
    return path


def write_without_index(path: Path) -> Path:
    """As a broken download leaves it: the index, at the end, is gone."""
    data = write_video(path).read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    return path


def write_wrong_duration(path: Path, factor: float, **kwargs: object) -> Path:
    """All frames are there, but every header says another duration than they have."""
    data = bytearray(write_video(path, **kwargs).read_bytes())  # type: ignore[arg-type]
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20), (b"elst", 12)):
        at = data.index(box) + offset
        (duration,) = struct.unpack_from("!I", data, at)
        struct.pack_into("!I", data, at, int(duration * factor))
    path.write_bytes(data)
    return path


def _write_silence(
    container: av.container.OutputContainer, stream: av.AudioStream, seconds: float
) -> None:
    for position in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, position
        frame.time_base = Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
