"""What a model is given of a clip: pixels, and how they lie in time and space."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class VisionInput:
    """What the model needs for the vision tokens of one clip."""

    patches: Tensor
    """[patches, channels * temporal * patch * patch] normalised pixels."""
    grid_thw: tuple[int, int, int]
    second_per_grid: float | None
    """Seconds between vision tokens in time, which Qwen2.5-VL's positions count: the processor's
    `second_per_grid_ts`. None where the processor has none, because times are in the prompt.

    It is temporal_patch_size / sampled fps, the sampled fps being frames seen / total_num_frames *
    fps of the clip's metadata, in float32: frames / duration, whatever the unit in which the
    metadata count (frames of the file; or milliseconds, where fps = 1000 and total_num_frames is
    the duration in milliseconds). vLLM asks the same processor with the same metadata."""
