"""When the frames of a file are on the screen, from the stamps of its packets. Pure.

Seconds are counted as a player counts them: zero is where the first of picture and sound begins, a
frame stands until the next one comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

TICKS_OF_ROUNDING = 1.5
"""Of a stamp against the first one: both are rounded to the container's unit of time."""
LEAST_ROUNDING = 0.001
"""Seconds: some multiplexers round again."""
MAX_ROUNDING = 0.1
"""Of a frame's length: a unit of time may be as long as a frame is."""
MAX_REORDERED = 64
"""Frames that a codec may send ahead of one that is shown before them: 16 of H.264, with room."""


class UnusableVideo(Exception):
    """What is wrong with a file; the text goes on after the file's name."""


@dataclass(frozen=True, slots=True)
class FrameTimes:
    seconds: np.ndarray
    """[total_frames] float64, of each frame, not decreasing."""
    fps: float
    """Frames a second: of all but the last, which has none after it."""
    constant: bool
    """Whether frame i is at seconds[0] + i / fps, but for the rounding of stamps."""
    duration: float
    """Seconds from zero to the end of the last frame."""


def check_order(stamps: np.ndarray) -> None:
    """`stamps`: [total_frames] in the file's order. Raises where they go back, as in a file that
    was joined from several: no player agrees with another about its times."""
    places = np.empty(len(stamps), dtype=int)
    places[np.argsort(stamps, kind="stable")] = np.arange(len(stamps))
    if np.abs(places - np.arange(len(stamps))).max() > MAX_REORDERED:
        raise UnusableVideo("has time stamps that go back (joined from several?); re-encode it")


def times_of_stamps(
    stamps: np.ndarray,
    tick: float,
    stated: Sequence[float],
    last_seconds: float,
    sound_from: float | None,
) -> FrameTimes:
    """`stamps`: [total_frames] in order, in units of `tick` seconds. `stated`: frame rates that the
    header says. `last_seconds`: how long the last frame lasts, or 0 where nothing says.
    `sound_from`: seconds on the same clock.

    Raises `UnusableVideo` where all stamps are one.
    """
    after_first = (stamps - stamps[0]) * tick
    if not after_first[-1] > 0:
        raise UnusableVideo("has one time stamp for all of its frames; re-encode it")
    count = len(stamps)
    measured = (count - 1) / float(after_first[-1])
    offset = 0.0 if sound_from is None else max(0.0, float(stamps[0]) * tick - sound_from)
    if offset < 1 / measured:  # what encoders put before the first sound, which nobody notices
        offset = 0.0
    for fps in (*stated, measured):
        drift = np.abs(np.arange(count) / fps - after_first).max()
        rounding = max(TICKS_OF_ROUNDING * tick, LEAST_ROUNDING)
        if drift <= min(rounding, MAX_ROUNDING / fps) + 1e-6:
            times = times_of_rate(count, fps, offset)
            if last_seconds > 1.5 / fps:  # the last picture stays
                times = replace(times, duration=float(times.seconds[-1]) + last_seconds)
            return times
    if last_seconds <= 0:
        last_seconds = float(np.median(np.diff(after_first)))
    seconds = offset + after_first
    return FrameTimes(seconds, measured, False, round(float(seconds[-1]) + last_seconds, 6))


def times_of_rate(count: int, fps: float, offset: float = 0.0) -> FrameTimes:
    """Frame i at offset + i / fps."""
    return FrameTimes(offset + np.arange(count) / fps, fps, True, offset + count / fps)
