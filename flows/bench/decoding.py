"""How many frames of a video file one core decodes a second, those that no model sees included.

A file of 30 frames a second is decoded from its first frame to the last that is asked for, at 2 a
second. The pictures move and are grainy, at about the bit rate of films on the web.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

from flows.bench.interleaved import Row

SIZES = {"640x360": (360, 640), "1280x720": (720, 1280)}
FRAMES = 150
EVERY = 15
"""2 of 30 frames a second."""
SEEN = (112, 192)
"""Height and width, about as 768 frames in 8,192 tokens are."""
TURNS = 5


def decoding_rows() -> Iterator[Row]:
    """Frames a second of CPU time: counting them, decoding, and resizing those that are seen."""
    # By name, because what makes videos and opens them is no import of this package.
    world, decoders = (
        import_module(f"opd_core.{name}") for name in ("tinyworld.world", "video.decoders")
    )
    with tempfile.TemporaryDirectory(prefix="videoopd-bench-") as scratch:
        for name, (height, width) in SIZES.items():
            path = Path(scratch) / f"{name}.mp4"
            world.encode_mp4(_pictures(height, width), path)
            seconds = []
            for _ in range(TURNS):
                began = time.process_time()
                video = decoders.probe(str(path))
                indices = list(range(0, FRAMES, EVERY))
                decoders.decode(video, indices, *SEEN, decoders.pick_with_pyav)
                seconds.append(time.process_time() - began)
            rate = FRAMES / statistics.median(seconds)
            bits = path.stat().st_size * 8 * 30 / FRAMES
            yield Row(
                f"decoding: frames of a {name} file a second of one core", rate, "/s", "measured",
                None, {"Mbit/s": bits / 1e6, "spread": [min(seconds), max(seconds)]},
            )  # fmt: skip


def _pictures(height: int, width: int) -> np.ndarray:
    """[FRAMES, height, width, 3] uint8: waves that move, with grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grain = rng.normal(0, 5.0, (8, height, width, 1)).astype(np.float32)
    frames = np.empty((FRAMES, height, width, 3), np.uint8)
    for number in range(FRAMES):
        for colour in range(3):
            wave = np.sin((x + 3 * number) / (19 + 7 * colour)) + np.cos((y - number) / 23)
            wave += np.sin((x * y) / 4000 + number / 9)
            frames[number, ..., colour] = 128 + 38 * wave
        frames[number] = np.clip(frames[number] + grain[number % 8], 0, 255)
    return frames
