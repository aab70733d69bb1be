"""Which frames of a video a model sees: Qwen3-VL's own choice, made by time where a rate varies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from opd_core.config.sections import VideoSection

MAX_STEPS_IN_PATCH = 2.0
"""Steps of the grid between two frames of one temporal patch, which share a time in the prompt."""


def sample_frame_indices(
    total_frames: int,
    file_fps: float,
    settings: VideoSection,
    min_frames: int = 4,
    seconds: Sequence[float] | np.ndarray | None = None,
    temporal_patch_size: int = 2,
) -> list[int]:
    """The frames that `Qwen3VLVideoProcessor.sample_frames` would take: evenly, first and last.

    `seconds`: [total_frames] when each is shown; None where that is index / `file_fps`. With them
    the frames are those nearest to an even grid in time, each once: a picture that stays for ten
    seconds is one frame, and the next one tells when it went.
    """
    count = int(total_frames / file_fps * settings.fps)
    count = min(max(count, min_frames), settings.max_frames, total_frames)
    times = np.arange(total_frames, dtype=float) if seconds is None else np.asarray(seconds)
    grid = np.linspace(times[0], times[-1], count)
    if seconds is None:
        return [int(i) for i in grid.round()]
    chosen = set(np.interp(grid, times, np.arange(total_frames)).round().astype(int).tolist())
    step = float(times[-1] - times[0]) / max(count - 1, 1)
    _fill(chosen, total_frames, min(min_frames, count))
    spare = settings.max_frames - len(chosen)
    return _pair(sorted(chosen), times, MAX_STEPS_IN_PATCH * step, temporal_patch_size, spare)


def _fill(chosen: set[int], total_frames: int, count: int) -> None:
    """Bring `chosen` to `count`, by the middles of the longest runs that nobody has chosen."""
    while len(chosen) < count:
        ends = sorted({-1, total_frames, *chosen})
        start, end = max(itertools.pairwise(ends), key=lambda pair: pair[1] - pair[0])
        chosen.add((start + end) // 2)


def _pair(
    chosen: list[int], times: np.ndarray, longest: float, patch: int, spare: int
) -> list[int]:
    """Keep frames out of one patch that lie further apart than `longest` seconds: the model reads
    one time for both, the middle, when neither came. The earlier one shares its patch with the
    frame before it instead, if that is not there yet. Adds at most `spare` frames."""
    taken: list[int] = []
    for index, following in itertools.zip_longest(chosen, chosen[1:]):
        apart = following is not None and times[following] - times[index] > longest
        if apart and (len(taken) + 1) % patch and spare and index - 1 not in (-1, *taken[-1:]):
            taken.append(index - 1)
            spare -= 1
        taken.append(index)
    return taken
