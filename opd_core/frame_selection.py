"""Which frames of a video a model sees, and at what size: the models' own rules, in a budget."""

from __future__ import annotations

import numpy as np

from opd_core.architectures import QWEN3_VL, smart_resize
from opd_core.config_sections import VideoSection


def sample_frame_indices(
    total_frames: int, file_fps: float, settings: VideoSection, min_frames: int = 4
) -> list[int]:
    """The frames that `Qwen3VLVideoProcessor.sample_frames` would take: evenly, first and last."""
    count = int(total_frames / file_fps * settings.fps)
    count = min(max(count, min_frames), settings.max_frames, total_frames)
    indices = np.linspace(0, total_frames - 1, count).round().astype(int)
    return [int(i) for i in indices]


def target_size(
    frames: int,
    height: int,
    width: int,
    max_video_tokens: int,
    *,
    patch_size: int = 16,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
    resize: str = QWEN3_VL.resize,
) -> tuple[int, int]:
    """(height, width) at which a video costs at most `max_video_tokens` merged tokens.

    By the family's own rule (`Architecture.resize`), which by itself lets odd frame counts and very
    wide videos exceed the budget. Raises ValueError for aspect ratios beyond 200.
    """
    factor = patch_size * merge_size
    padded = -(-frames // temporal_patch_size) * temporal_patch_size
    max_pixels = max_video_tokens * temporal_patch_size * factor**2
    new_height, new_width = smart_resize(resize)(
        num_frames=padded,
        height=height,
        width=width,
        temporal_factor=temporal_patch_size,
        factor=factor,
        min_pixels=temporal_patch_size * factor**2,
        max_pixels=max_pixels,
    )
    longest = max(factor, max_pixels // padded // min(new_height, new_width) // factor * factor)
    return min(new_height, longest), min(new_width, longest)
