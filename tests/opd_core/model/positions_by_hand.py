"""Positions counted token by token, by the words of the Qwen2-VL paper: an independent formula."""

from __future__ import annotations

import math
from collections.abc import Sequence


def by_hand(
    is_video: Sequence[bool],
    grid: tuple[int, int, int],
    seconds: float | None,
    tokens_per_second: float | None,
    merge: int = 2,
) -> list[tuple[int, int, int]]:
    """(time, height, width) of each token, and of the one that follows.

    `tokens_per_second` None: each frame is a grid of its own, and its time is 0.
    """
    frames, height, width = grid[0], grid[1] // merge, grid[2] // merge
    places: list[tuple[int, int, int]] = []
    begin = seen = 0
    for n, video in enumerate([*is_video, False]):
        if not video:
            largest = max((p for place in places for p in place), default=-1)
            places.append((largest + 1,) * 3)
            continue
        if n == 0 or not is_video[n - 1]:
            begin = max((p for place in places for p in place), default=-1) + 1
        frame, cell = divmod(seen, height * width)
        row, column = divmod(cell, width)
        time = 0
        if tokens_per_second is not None:
            assert seconds is not None
            time = math.floor(frame * (seconds * tokens_per_second))
        places.append((begin + time, begin + row, begin + column))
        seen += 1
    assert seen == frames * height * width
    return places
