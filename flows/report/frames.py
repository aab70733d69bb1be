"""Frames of a video as small pictures inside the report, from the frame store."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.report.side import Side
from opd_core.config.sections import FRAMES_FOLDER
from opd_core.types import Span
from opd_core.video.clip import VideoClip, from_bytes
from storage.frames.store import FrameStore

FRAMES_SHOWN = 8
LONGEST_EDGE = 160
"""Pixels; a smaller frame is enlarged to about this, so that it can be seen on paper."""
QUALITY = 80


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as a JPEG in a data URI."""

    uri: str
    seconds: float
    width: int
    height: int
    in_truth: bool
    """Whether it is shown while the sentence is true."""


def strip(side: Side, video: str, truth: Sequence[Span]) -> tuple[Frame, ...]:
    """Take frames of a video of the run's, evenly over it; none where the store has none of it.

    Where it has several clips of the video, of other settings, it is the one that was used last.
    """
    clip = _clip(side, video)
    if clip is None:
        return ()
    count = len(clip.frames)
    places = np.linspace(0, count - 1, min(FRAMES_SHOWN, count)).round().astype(int)
    return tuple(_frame(clip, int(at), truth) for at in places)


def _clip(side: Side, video: str) -> VideoClip | None:
    kept, videos = side.settings.get("frames.path"), side.settings.get("data.videos")
    folder = Path(str(kept)) if kept else side.run.path.parent / FRAMES_FOLDER
    store = FrameStore.reading(folder)
    if store is None or videos is None:
        return None
    files = store.clips_of(Path(str(videos)) / video)
    for file in sorted(files, key=_used, reverse=True):
        try:
            return from_bytes(file.read_bytes())
        except (OSError, ValueError, KeyError, TypeError):
            continue  # evicted meanwhile, or spoilt
    return None


def _used(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _frame(clip: VideoClip, at: int, truth: Sequence[Span]) -> Frame:
    from PIL import Image

    image, seconds = Image.fromarray(clip.frames[at]), clip.timestamps[at]
    scale = LONGEST_EDGE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if scale < 1:
        image = image.resize(size)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    in_truth = any(span.start <= seconds < span.end for span in truth)
    return Frame(uri, seconds, *size, in_truth)
