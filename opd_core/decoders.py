"""What is done to a video file, inside the child process: count its frames, pick some of them.

PyAV reads every file's packets once before anything is decoded, for both decoders: the number of
frames and their times are counted, not believed. Frames are then picked by their time stamp, and
what cannot be delivered is an `UnusableVideo` with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

MAX_DECODER_THREADS = 4
SMALL_PICTURE = 256 * 256
"""Pixels. Starting threads costs more than decoding pictures below it (13 ms became 39 ms)."""
MAX_DRIFT_SECONDS = 1.0
"""A model is told `index / fps` as a frame's time; further off than this, the answer is wrong."""
MAX_MISSING_SECONDS = 1.0
"""How much earlier than its header says a file may end."""

Picker = Callable[["ProbedVideo", list[int]], Iterator[np.ndarray]]
"""Gives the frames of these indices, in order, [H, W, 3] uint8, upright."""


class UnusableVideo(Exception):
    """What is wrong with a file; the text goes on after the file's name."""


@dataclass(frozen=True, slots=True)
class ProbedVideo:
    """What was counted in a file."""

    path: str
    container: str
    """FFmpeg's names of the format, with commas."""
    codec: str
    stream_index: int
    total_frames: int
    frame_pts: list[int] | None
    """[total_frames] time stamps in order; None where they are not to be trusted and frames are
    counted instead."""
    frame_seconds: list[float] | None
    """[total_frames] the same in seconds, from the first frame on."""
    fps: float
    height: int
    """Of the upright picture."""
    width: int
    quarter_turns: int
    """Counter-clockwise, to be applied to a decoded frame."""


def probe(path: str) -> ProbedVideo:
    """Count frames, measure their times, decode the first. Raises `UnusableVideo`."""
    with _opened(path) as container:
        stream = _video_stream(container)
        stream_index = stream.index  # a stream's numbers are gone when its container is closed
        format_name, codec = container.format.name, stream.codec_context.name
        pts, end, unstamped = _read_packets(container, stream)
        time_base = float(stream.time_base or 0)
        # AVI stores frames in decoding order; the stamps that FFmpeg gives them are guesses
        stamped = format_name != "avi" and not unstamped and len(set(pts)) == len(pts)
        rate = float(stream.average_rate or 0)
        duration = (container.duration or 0) / av.time_base
        start = (container.start_time or 0) / av.time_base
    if unstamped and not pts:
        raise UnusableVideo("has no time stamps; put it into a container such as MP4")
    if stamped and duration - (end - start) > MAX_MISSING_SECONDS + 0.01 * duration:
        raise UnusableVideo(
            f"is truncated: its header says {duration:.1f} s, its data end at {end - start:.1f} s"
        )
    first = _first_frame(path, stream_index)
    quarter_turns = _quarter_turns(first)
    height, width = first.height, first.width
    if quarter_turns % 2:
        height, width = width, height
    total = len(pts) if stamped else _count_by_decoding(path, stream_index)
    if total < 2:
        raise UnusableVideo(f"has {total} frame(s); a video has at least 2")
    seconds = (np.sort(np.array(pts)) - min(pts)) * time_base if stamped else None
    return ProbedVideo(
        path=path,
        container=format_name,
        codec=codec,
        stream_index=stream_index,
        total_frames=total,
        frame_pts=sorted(pts) if stamped else None,
        frame_seconds=None if seconds is None else seconds.tolist(),
        fps=_frame_rate(rate, seconds),
        height=height,
        width=width,
        quarter_turns=quarter_turns,
    )


def decode(
    video: ProbedVideo, indices: list[int], height: int, width: int, pick: Picker
) -> np.ndarray:
    """The frames of these indices, [F, height, width, 3] uint8. Raises `UnusableVideo`."""
    frames = np.empty((len(indices), height, width, 3), dtype=np.uint8)
    count = 0
    for count, frame in enumerate(pick(video, indices), start=1):
        if frame.shape[:2] != (height, width):
            image = Image.fromarray(frame)
            frame = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        frames[count - 1] = frame
    if count != len(indices):
        raise UnusableVideo(
            f"gave {count} of the {len(indices)} frames asked for, of {video.total_frames}; "
            "it is damaged or truncated"
        )
    return frames


def pick_with_pyav(video: ProbedVideo, indices: list[int]) -> Iterator[np.ndarray]:
    """Decodes from the first frame to the last asked one; converts only those asked for.

    Frames are not sought: at 2 a second nearly every group of pictures holds one.
    """
    pts = None if video.frame_pts is None else [video.frame_pts[i] for i in indices]
    wanted = iter(indices if pts is None else pts)
    next_wanted = next(wanted, None)
    # One converter for all frames and one thread: 0.01 ms a small frame instead of 5 ms
    converter = VideoReformatter()
    for position, frame in enumerate(_frames(video.path, video.stream_index, pts)):
        if next_wanted is None:
            return
        stamp = position if video.frame_pts is None else frame.pts
        if stamp is None or stamp < next_wanted:
            continue
        if stamp > next_wanted or frame.is_corrupt:
            return
        image = converter.reformat(frame, format="rgb24", threads=1)
        yield np.rot90(image.to_ndarray(), video.quarter_turns)
        next_wanted = next(wanted, None)


def pick_with_decord(video: ProbedVideo, indices: list[int]) -> Iterator[np.ndarray]:
    """One `get_batch`, then the reader is dropped: an open, idle one grows without end.

    Its seeks silently give other frames than asked for in HEVC (open groups of pictures) and in
    MPEG-TS, so it is asked only for what it was seen to read exactly.
    """
    import decord

    if not (_DECORD_CONTAINERS & set(video.container.split(",")) and video.codec in _DECORD_CODECS):
        raise UnusableVideo(
            f"is {video.codec} in {video.container}, of which decord may give wrong frames; "
            "set video.decoder = 'pyav'"
        )
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(video.path, num_threads=_threads(video.height * video.width))
        if len(reader) != video.total_frames:
            raise UnusableVideo(
                f"has {video.total_frames} frames, of which decord sees {len(reader)}; "
                "set video.decoder = 'pyav'"
            )
        starts = reader.get_frame_timestamp(indices)[:, 0]
        frames = reader.get_batch(indices).asnumpy()
    except decord.DECORDError as error:
        raise UnusableVideo(f"cannot be decoded by decord: {_reason(error)}") from None
    finally:
        reader = None
    seconds = [(video.frame_seconds or [])[i] for i in indices]
    if np.abs((starts - starts[0]) - (np.array(seconds) - seconds[0])).max() > 0.5 / video.fps:
        raise UnusableVideo("has other frame times for decord; set video.decoder = 'pyav'")
    yield from frames


_DECORD_CONTAINERS = {"mp4", "matroska"}
_DECORD_CODECS = {"h264", "mpeg4", "vp8", "vp9", "libvpx", "libvpx-vp9"}

PICKERS: dict[str, Picker] = {"pyav": pick_with_pyav, "decord": pick_with_decord}


def _opened(path: str) -> InputContainer:
    try:
        return av.open(path, mode="r")
    except av.FFmpegError as error:
        raise UnusableVideo(f"cannot be opened: {_reason(error)}") from None


def _video_stream(container: InputContainer) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:  # a cover is no video
            context = stream.codec_context
            context.thread_count = _threads(context.height * context.width)
            stream.thread_type = "AUTO"
            return stream
    raise UnusableVideo("has no video stream")


def _read_packets(container: InputContainer, stream: VideoStream) -> tuple[list[int], float, bool]:
    """Stamps of the frames that will be shown, the last second of any stream, stamps missing?"""
    pts: list[int] = []
    end, unstamped = 0.0, False
    try:
        for packet in container.demux():
            if packet.size == 0:
                continue
            if packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index or packet.is_discard:
                continue
            if packet.pts is None:
                unstamped = True
            else:
                pts.append(packet.pts)
    except av.FFmpegError as error:
        raise UnusableVideo(f"cannot be read to its end: {_reason(error)}") from None
    return pts, end, unstamped


def _frames(path: str, stream_index: int, pts: list[int] | None = None) -> Iterator[VideoFrame]:
    """The frames that can be decoded, in order; a damaged packet costs its own frames only.

    With `pts`, at least the frames of these time stamps: others are left undecoded where no frame
    refers to them, which saves a third of the time.
    """
    needed = None if pts is None else set(pts)
    with _opened(path) as container:
        stream = _video_stream(container)
        if stream.index != stream_index:
            raise UnusableVideo("was changed while it was read")
        try:
            for packet in container.demux(stream):
                if needed is not None:
                    unwanted = packet.pts is not None and packet.pts not in needed
                    stream.codec_context.skip_frame = "NONREF" if unwanted else "DEFAULT"
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    continue
        except av.FFmpegError as error:
            raise UnusableVideo(f"cannot be decoded: {_reason(error)}") from None


def _threads(pixels: int) -> int:
    if pixels < SMALL_PICTURE:
        return 1
    return min(MAX_DECODER_THREADS, len(os.sched_getaffinity(0)))


def _first_frame(path: str, stream_index: int) -> VideoFrame:
    for frame in _frames(path, stream_index):
        return frame
    raise UnusableVideo("has no frame that can be decoded")


def _count_by_decoding(path: str, stream_index: int) -> int:
    return sum(1 for _ in _frames(path, stream_index))


def _quarter_turns(frame: VideoFrame) -> int:
    """How the display matrix turns the picture. FFmpeg and PyAV report it and leave it undone."""
    if frame.rotation % 90:
        raise UnusableVideo(f"is to be shown turned by {frame.rotation} degrees; re-encode it")
    return frame.rotation // 90 % 4


def _frame_rate(stated: float, seconds: np.ndarray | None) -> float:
    """Frames a second by which `index / fps` is every frame's time, within a second."""
    if seconds is None:
        if stated <= 0:
            raise UnusableVideo("has no frame rate")
        return stated
    measured = (len(seconds) - 1) / float(seconds[-1])
    drift = float("inf")
    for fps in (stated, measured):
        if fps > 0:
            drift = float(np.abs(np.arange(len(seconds)) / fps - seconds).max())
            if drift <= MAX_DRIFT_SECONDS:
                return fps
    raise UnusableVideo(
        f"has a variable frame rate: a frame is {drift:.1f} s off its index / fps; re-encode it "
        "with a constant one"
    )


def _reason(error: BaseException) -> str:
    """One line, without the paths and the numbers of the libraries."""
    if isinstance(error, av.FFmpegError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", lines[0])
