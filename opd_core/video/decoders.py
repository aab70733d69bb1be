"""What is done to a video file, inside the child process: count its frames, pick some of them.

PyAV reads every file's packets once before anything is decoded, for both decoders: the number of
frames and their times are counted, not believed. Frames are then picked by their time stamp, and
what cannot be delivered is an `UnusableVideo` with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from PIL import Image

from opd_core.video.frame_times import (
    FrameTimes,
    UnusableVideo,
    check_order,
    times_of_rate,
    times_of_stamps,
)
from opd_core.video.packets import Packets, opened, read_packets, reason, threads, video_stream

DECORD_CLOCK_SECONDS = 0.005
"""Within which decord's time of a frame is ours: it keeps them in float32."""

Picker = Callable[["ProbedVideo", list[int]], Iterator[np.ndarray]]
"""Gives the frames of these indices, in order, [H, W, 3] uint8, upright."""
_Stamp = tuple[int, int]
"""A time stamp, and how many frames before it have the same."""


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
    tick: float
    """Seconds, the unit of `frame_pts`."""
    last_key: int | None
    """Stamp of the last key frame, if any packet says that it is one."""
    open_groups: bool
    """Whether a key frame is followed by frames that are shown before it."""
    times: FrameTimes
    height: int
    """Of the upright picture."""
    width: int
    quarter_turns: int
    """Counter-clockwise, to be applied to a decoded frame."""

    @property
    def fps(self) -> float:
        return self.times.fps


def probe(path: str) -> ProbedVideo:
    """Count frames, measure their times, decode the first. Raises `UnusableVideo`."""
    packets = read_packets(path)
    if not packets.pts and not packets.dts and packets.unstamped:
        raise UnusableVideo("has no time stamps; put it into a container such as MP4")
    if packets.before_key:
        raise _headless(packets.before_key)
    first = _first_frame(path, packets.stream_index)
    quarter_turns = _quarter_turns(first)
    height, width = first.height, first.width
    if quarter_turns % 2:
        height, width = width, height
    # AVI stores frames in decoding order; the stamps that FFmpeg gives them are guesses
    stamped = packets.container != "avi" and not packets.unstamped
    pts = _shown(packets, first.pts) if stamped and first.pts is not None else None
    total = len(pts) if pts is not None else _count_by_decoding(path, packets.stream_index)
    if total < 2:
        raise UnusableVideo(f"has {total} frame(s); a video has at least 2")
    return ProbedVideo(
        path=path,
        container=packets.container,
        codec=packets.codec,
        stream_index=packets.stream_index,
        total_frames=total,
        frame_pts=pts,
        tick=packets.tick,
        last_key=packets.last_key,
        open_groups=packets.open_groups,
        times=_times_counted(packets, total) if pts is None else _times_stamped(packets, pts),
        height=height,
        width=width,
        quarter_turns=quarter_turns,
    )


def check_end(video: ProbedVideo) -> None:
    """Decode what follows the last key frame. Raises `UnusableVideo` where it does not end as its
    packets say, which would come out only when its last frame is asked for."""
    if video.frame_pts is None:  # all of it was decoded to count it
        return
    expected = Counter(p for p in video.frame_pts if p >= (video.last_key or 0))
    for start in (video.last_key, None):  # not every container can be sought in
        frames = _frames(video.path, video.stream_index, seek_to=start)
        missing = expected - Counter(
            f.pts for f in frames if f.pts is not None and not f.is_corrupt
        )
        if not missing:
            return
    raise UnusableVideo(
        f"ends with frames that cannot be decoded, {missing.total()} of the last "
        f"{expected.total()}; it is damaged or truncated"
    )


def _shown(packets: Packets, first: int) -> list[int]:
    """Stamps in order, from `first` on, the first that can be decoded. Before it there may be
    pictures that refer to what was before the file began: they follow its first key frame, and are
    shown before it (open groups of pictures)."""
    check_order(np.array(packets.pts))
    undecoded = [p for p in packets.pts if p < first]
    if any(packets.first_key is None or p >= packets.first_key for p in undecoded):
        raise _headless(len(undecoded))
    return sorted(p for p in packets.pts if p >= first)


def _headless(frames: int) -> UnusableVideo:
    return UnusableVideo(
        f"starts with {frames} frame(s) that cannot be decoded, because the key frame before them "
        "was cut off or is damaged; cut it at a key frame, or re-encode it"
    )


def _times_stamped(packets: Packets, pts: list[int]) -> FrameTimes:
    last = packets.last[1] * packets.tick if packets.last else 0.0
    stamps = np.array(pts)
    return times_of_stamps(stamps, packets.tick, packets.stated_rates, last, packets.sound_from)


def _times_counted(packets: Packets, total: int) -> FrameTimes:
    """AVI leaves a picture's place empty that is as the one before it: places count, not frames."""
    if len(packets.dts) == total:
        places = np.sort(packets.dts)
        return times_of_stamps(places, packets.tick, packets.stated_rates, 0.0, None)
    if not packets.stated_rates:
        raise UnusableVideo("has no frame rate")
    return times_of_rate(total, packets.stated_rates[0])


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
    stamps = None if video.frame_pts is None else _numbered(video.frame_pts)
    wanted = iter([(i, 0) if stamps is None else stamps[i] for i in indices])
    pts = None if video.frame_pts is None else {video.frame_pts[i] for i in indices}
    next_wanted = next(wanted, None)
    # One converter for all frames and one thread: 0.01 ms a small frame instead of 5 ms
    converter = VideoReformatter()
    last, same = None, 0
    for position, frame in enumerate(_frames(video.path, video.stream_index, pts)):
        if next_wanted is None:
            return
        same = same + 1 if stamps is not None and frame.pts == last else 0
        last = frame.pts
        stamp = (position, 0) if stamps is None else (frame.pts, same)
        if stamp[0] is None or stamp < next_wanted:
            continue
        if stamp > next_wanted or frame.is_corrupt:
            return
        image = converter.reformat(frame, format="rgb24", threads=1)
        yield np.rot90(image.to_ndarray(), video.quarter_turns)
        next_wanted = next(wanted, None)


def _numbered(pts: list[int]) -> list[_Stamp]:
    """[total_frames], in order: equal stamps are told from each other."""
    numbered: list[_Stamp] = []
    for stamp in pts:
        again = bool(numbered) and numbered[-1][0] == stamp
        numbered.append((stamp, numbered[-1][1] + 1 if again else 0))
    return numbered


def pick_with_decord(video: ProbedVideo, indices: list[int]) -> Iterator[np.ndarray]:
    """One `get_batch`, then the reader is dropped: an open, idle one grows without end.

    Its seeks silently give other frames than asked for in open groups of pictures, in HEVC and in
    MPEG-TS, so it is asked only for what it was seen to read exactly.
    """
    import decord

    _check_for_decord(video)
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(video.path, num_threads=threads(video.height * video.width))
        if len(reader) != video.total_frames:
            raise UnusableVideo(
                f"has {video.total_frames} frames, of which decord sees {len(reader)}; "
                "set video.decoder = 'pyav'"
            )
        starts = reader.get_frame_timestamp(indices)[:, 0]
        frames = reader.get_batch(indices).asnumpy()
    except decord.DECORDError as error:
        raise UnusableVideo(
            f"cannot be decoded by decord: {reason(error)}; set video.decoder = 'pyav'"
        ) from None
    finally:
        reader = None
    assert video.frame_pts is not None
    seconds = np.array([video.frame_pts[i] for i in indices]) * video.tick
    if np.abs((starts - starts[0]) - (seconds - seconds[0])).max() > DECORD_CLOCK_SECONDS:
        raise UnusableVideo("has other frame times for decord; set video.decoder = 'pyav'")
    yield from frames


def _check_for_decord(video: ProbedVideo) -> None:
    """Raises `UnusableVideo` for what decord was seen to get wrong, or not seen to get right."""
    if not (_DECORD_CONTAINERS & set(video.container.split(",")) and video.codec in _DECORD_CODECS):
        what = f"is {video.codec} in {video.container}"
    elif video.frame_pts is None or len(set(video.frame_pts)) < video.total_frames:
        what = "has time stamps missing or equal"
    elif video.open_groups:
        what = "has frames after a key frame that are shown before it"
    else:
        return
    raise UnusableVideo(
        f"{what}, of which decord may give wrong frames; set video.decoder = 'pyav'"
    )


_DECORD_CONTAINERS = {"mp4", "matroska"}
_DECORD_CODECS = {"h264", "mpeg4", "vp8", "vp9", "libvpx", "libvpx-vp9"}

PICKERS: dict[str, Picker] = {"pyav": pick_with_pyav, "decord": pick_with_decord}


def _frames(
    path: str, stream_index: int, needed: set[int] | None = None, seek_to: int | None = None
) -> Iterator[VideoFrame]:
    """The frames that can be decoded, in order; a damaged packet costs its own frames only.

    With `needed`, at least the frames of these time stamps: others are left undecoded where no
    frame refers to them, which saves a third of the time. `seek_to`: from the key frame of this
    stamp on, or an earlier one.
    """
    with opened(path) as container:
        stream = video_stream(container)
        if stream.index != stream_index:
            raise UnusableVideo("was changed while it was read")
        try:
            if seek_to is not None:
                container.seek(seek_to, stream=stream)
            for packet in container.demux(stream):
                if needed is not None:
                    unwanted = packet.pts is not None and packet.pts not in needed
                    stream.codec_context.skip_frame = "NONREF" if unwanted else "DEFAULT"
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    continue
        except av.FFmpegError as error:
            raise UnusableVideo(f"cannot be decoded: {reason(error)}") from None


def _first_frame(path: str, stream_index: int) -> VideoFrame:
    for frame in _frames(path, stream_index):
        if not frame.is_corrupt:
            return frame
    raise UnusableVideo("has no frame that can be decoded")


def _count_by_decoding(path: str, stream_index: int) -> int:
    return sum(1 for _ in _frames(path, stream_index))


def _quarter_turns(frame: VideoFrame) -> int:
    """How the display matrix turns the picture. FFmpeg and PyAV report it and leave it undone."""
    if frame.rotation % 90:
        raise UnusableVideo(f"is to be shown turned by {frame.rotation} degrees; re-encode it")
    return frame.rotation // 90 % 4
