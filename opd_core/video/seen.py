"""The frames that a rollout's model saw, again: kept ones, else decoded as they were then.

A row names its frames by their indices in the file, their size and the hash of their pixels. So a
clip that is kept is theirs where its hash is, by whatever settings it was kept; and what is decoded
again is told to be the same pixels, or to be others.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from opd_core.child_process import ChildCrash, ChildTimeout
from opd_core.config.sections import VideoSection
from opd_core.video.child import DecoderProcess
from opd_core.video.clip import JPEG_QUALITY, Codec, VideoClip, from_bytes, pixel_hash_in, to_bytes
from opd_core.video.frame_times import UnusableVideo
from opd_core.video.reader import VideoError

LOSSLESS_PIXELS = 128 * 128
"""As PNG; a larger frame would be a large file."""


@dataclass(frozen=True, slots=True)
class SeenFrames:
    """Frames to be shown."""

    frames: np.ndarray
    """[F, H, W, 3] uint8, RGB."""
    source: Literal["kept", "decoded"]
    same: bool
    """Whether they are the pixels that the row names."""


def kept(files: Iterable[Path], pixel_hash: str) -> SeenFrames | None:
    """The clip of these pixels among kept ones (`FrameStore.clips_of`); None: there is none."""
    for file in files:
        if pixel_hash_in(file) != pixel_hash:
            continue
        try:
            return SeenFrames(from_bytes(file.read_bytes()).frames, "kept", True)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # evicted meanwhile, or spoilt
    return None


def decoded_again(
    path: Path,
    indices: Sequence[int],
    size: tuple[int, int],
    pixel_hash: str,
    settings: VideoSection,
    codec: Codec,
) -> SeenFrames:
    """The frames of these indices at this (height, width), decoded in a child process of its own.

    Raises `VideoError` with the reason where they cannot be.
    """
    height, width = size
    deadline = time.monotonic() + settings.decode_timeout_seconds
    child = DecoderProcess(settings.decoder)
    try:
        probed = child.ask({"do": "probe", "path": str(path.absolute())}, deadline)
        total, fps = int(probed["total_frames"]), float(probed["fps"])
        if max(indices) >= total:
            raise VideoError(
                f"{path.name} has {total} frames now, and frame {max(indices)} was seen"
            )
        request = {"do": "decode", "indices": list(indices), "height": height, "width": width}
        frames = child.ask(request, deadline)["frames"]
    except UnusableVideo as error:
        raise VideoError(f"{path.name} {error}") from None
    except (ChildTimeout, ChildCrash) as error:
        raise VideoError(f"{path.name}: the process that decodes it gave up ({error})") from None
    finally:
        child.end()
    clip = VideoClip.of(frames, tuple(indices), fps, total, settings.decoder)
    if codec != "raw":  # what is lossy was so for the model, too
        clip = from_bytes(to_bytes(clip, codec))
    return SeenFrames(clip.frames, "decoded", clip.pixel_hash == pixel_hash)


def picture(frame_HWC: np.ndarray) -> tuple[bytes, str]:
    """A frame as a file that browsers show, and its type; without loss where it is small."""
    from PIL import Image

    height, width, _ = frame_HWC.shape
    file = io.BytesIO()
    image = Image.fromarray(frame_HWC)
    if height * width <= LOSSLESS_PIXELS:
        image.save(file, "PNG")
        return file.getvalue(), "image/png"
    image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue(), "image/jpeg"
