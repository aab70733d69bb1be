"""Whether a packet shows a picture, read from its first bits: some only prepare the next ones.

VP8, VP9 and AV1 send reference pictures that are never shown (alt-ref). Most files hold them in one
packet with a shown one, some in a packet of their own, which is then no frame of the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

OBU_FRAME_HEADER, OBU_FRAME = 3, 6


def shows_picture(codec: str, data: memoryview) -> bool:
    """`codec`: FFmpeg's name. Of other codecs than these three every packet shows a picture."""
    shows = _SHOWS.get(codec)
    try:
        return True if shows is None else shows(data)
    except IndexError:  # a cut or damaged packet: the decoder is to say so
        return True


def _vp8(data: memoryview) -> bool:
    """RFC 6386, 9.1: bit 4 of the frame tag."""
    return bool(data[0] >> 4 & 1)


def _vp9(data: memoryview) -> bool:
    return any(_vp9_frame(frame) for frame in _vp9_frames(data))


def _vp9_frames(data: memoryview) -> Iterator[memoryview]:
    """VP9 bitstream specification, annex B: the index of a superframe is at its end."""
    marker = data[-1]
    count, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index_bytes = 2 + count * size_bytes
    if marker >> 5 != 0b110 or len(data) < index_bytes or data[-index_bytes] != marker:
        yield data
        return
    start, sizes = 0, data[1 - index_bytes : -1]
    for at in range(0, len(sizes), size_bytes):
        size = int.from_bytes(sizes[at : at + size_bytes], "little")
        if size:
            yield data[start : start + size]
        start += size


def _vp9_frame(data: memoryview) -> bool:
    """VP9 bitstream specification, 6.2: marker 2 bits, profile 2 or 3, show_existing_frame,
    frame_type, show_frame."""
    header = data[0]
    at = 3 if header >> 4 & 3 == 3 else 4  # a reserved bit follows profile 3
    show_existing = header >> (at - 1) & 1
    # show_frame is two bits on
    return bool(show_existing or header >> (at - 3) & 1)


def _av1(data: memoryview) -> bool:
    """AV1 bitstream specification, 5.3 and 5.9: any shown frame among the units of a packet."""
    at, has_header = 0, False
    while at < len(data):
        header = data[at]
        kind = header >> 3 & 15
        at += 2 if header >> 2 & 1 else 1
        size = len(data) - at
        if header >> 1 & 1:
            size, at = _leb128(data, at)
        if kind in (OBU_FRAME_HEADER, OBU_FRAME):
            has_header = True
            first = data[at]  # show_existing_frame 1 bit, frame_type 2, show_frame 1
            if first >> 7 or first >> 4 & 1:
                return True
        at += size
    return not has_header


def _leb128(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


_SHOWS: dict[str, Callable[[memoryview], bool]] = {"vp8": _vp8, "vp9": _vp9, "av1": _av1}
