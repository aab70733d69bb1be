"""A video file's packets, read once and not decoded: how many frames, and when each is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from opd_core.video.frame_times import UnusableVideo
from opd_core.video.hidden_pictures import shows_picture

MAX_DECODER_THREADS = 4
SMALL_PICTURE = 256 * 256
"""Pixels. Starting threads costs more than decoding pictures below it (13 ms became 39 ms)."""
MAX_MISSING_SECONDS = 1.0
"""How much earlier than its header says a file may end."""


@dataclass(slots=True)
class Packets:
    """What was read of a file whose frames are still to be decoded."""

    container: str
    """FFmpeg's names of the format, with commas."""
    codec: str
    stream_index: int
    tick: float
    """Seconds, the unit of stamps."""
    stated_rates: tuple[float, ...]
    """Frames a second by the header, and as FFmpeg guesses them; those that are there."""
    stated_seconds: float
    """Of the file by its header, or 0."""
    sound_from: float | None
    """Seconds."""
    pts: list[int] = field(default_factory=list)
    """When shown, of each packet that is a frame, in the file's order;"""
    dts: list[int] = field(default_factory=list)
    """when decoded, of those that say so;"""
    last: tuple[int, int] | None = None
    """Stamp of the one shown last, and how long it lasts, or 0."""
    unstamped: int = 0
    """Frames without a `pts`."""
    before_key: int = 0
    """Frames before the first key frame; 0 where no packet says that it is one."""
    first_key: int | None = None
    last_key: int | None = None
    """Their stamps."""
    open_groups: bool = False
    """Whether a key frame is followed by frames that are shown before it."""
    end: float = 0.0
    """Seconds, of all streams."""


def read_packets(path: str) -> Packets:
    """Raises `UnusableVideo` where the file cannot be read, or ends before its header says."""
    with opened(path) as container:
        stream = video_stream(container)
        packets = Packets(
            container=container.format.name,
            codec=stream.codec_context.name,
            stream_index=stream.index,
            tick=float(stream.time_base or 0),
            stated_rates=tuple(float(r) for r in (stream.average_rate, stream.guessed_rate) if r),
            stated_seconds=(container.duration or 0) / av.time_base,
            sound_from=_sound_from(container),
        )
        codec = stream.codec.canonical_name
        start = (container.start_time or 0) / av.time_base
        try:
            for packet in container.demux():
                if packet.size:
                    _read_packet(packets, packet, codec)
        except av.FFmpegError as error:
            raise UnusableVideo(f"cannot be read to its end: {reason(error)}") from None
    if packets.first_key is None:
        packets.before_key = 0
    # MP4 and Matroska count a file's length from zero, others from where it begins
    missing = packets.stated_seconds - max(packets.end, packets.end - start)
    if missing > MAX_MISSING_SECONDS + 0.01 * packets.stated_seconds:
        raise UnusableVideo(
            f"is truncated: its header says {packets.stated_seconds:.1f} s, "
            f"its data end at {packets.stated_seconds - missing:.1f} s"
        )
    return packets


def _read_packet(packets: Packets, packet: Packet[Stream], codec: str) -> None:
    stamp = packet.dts if packet.pts is None else packet.pts
    length = packet.duration or 0
    if stamp is not None and packet.time_base:
        packets.end = max(packets.end, float((stamp + length) * packet.time_base))
    if packet.stream_index != packets.stream_index:
        return
    if packet.is_keyframe and stamp is not None:
        packets.first_key = stamp if packets.first_key is None else packets.first_key
        packets.last_key = stamp
    if packet.is_discard or not shows_picture(codec, memoryview(packet)):
        return
    packets.before_key += packets.first_key is None
    if packets.last_key is not None and stamp is not None and stamp < packets.last_key:
        packets.open_groups = True
    if packet.dts is not None:
        packets.dts.append(packet.dts)
    if packet.pts is None:
        packets.unstamped += 1
        return
    if packets.last is None or packet.pts >= packets.last[0]:
        packets.last = packet.pts, length
    packets.pts.append(packet.pts)


def _sound_from(container: InputContainer) -> float | None:
    starts = [
        float(stream.start_time * stream.time_base)
        for stream in container.streams.audio
        if stream.start_time is not None and stream.time_base
    ]
    return min(starts, default=None)


@contextmanager
def opened(path: str) -> Iterator[InputContainer]:
    try:
        container = av.open(path, mode="r")
    except av.FFmpegError as error:
        raise UnusableVideo(f"cannot be opened: {reason(error)}") from None
    with container:
        yield container


def video_stream(container: InputContainer) -> VideoStream:
    """The first that is no cover. Raises `UnusableVideo` where there is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            context = stream.codec_context
            if context is None:
                raise UnusableVideo(
                    "has a video stream that FFmpeg has no decoder for; re-encode it"
                )
            context.thread_count = threads(context.height * context.width)
            stream.thread_type = "AUTO"
            return stream
    raise UnusableVideo("has no video stream")


def threads(pixels: int) -> int:
    if pixels < SMALL_PICTURE:
        return 1
    return min(MAX_DECODER_THREADS, len(os.sched_getaffinity(0)))


def reason(error: BaseException) -> str:
    """One line, without the paths and the numbers of the libraries."""
    if isinstance(error, av.FFmpegError) and error.strerror:
        return str(error.strerror)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |\[/[^\]]*\] ", "", lines[0]).rstrip(".")
