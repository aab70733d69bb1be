"""Where the tokens of a prompt stand: mRoPE positions, one rule for all who compute.

Sampler, scorer, trainer and gate ask here; nothing else in the project counts positions.
The rule is that of the released models and of vLLM. transformers' own rope index is not asked:
from 5.3 on it continues text inside a Qwen2.5-VL video, at `start + max(height, width)`
(transformers #45381), which is another model than the one that was released.

- Text counts on by one, all three rows alike.
- A grid of vision tokens begins one after what is before it, at p: token (t, y, x) stands at
  (p + the time of t, p + y, p + x).
- What follows a grid continues at its largest position over all three rows, plus one.
- Qwen3-VL: each pair of frames is a grid of its own with t = 0; times are words of the prompt.
- Qwen2.5-VL: the video is one grid, and the time of t is the whole part of
  t * second_per_grid * tokens_per_second. Its prompt names no times, so two videos of one grid
  have the same tokens and other positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opd_core.model.architectures import architecture_of
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.model.vision_input import VisionInput


@dataclass(frozen=True, slots=True)
class PositionRule:
    """The positions of one checkpoint's prompts."""

    video_token_id: int
    merge: int
    """Patches that a vision token spans, each way."""
    tokens_per_second: float | None
    """Positions that a second takes in time. None: every pair of frames is a grid of its own."""

    @classmethod
    def of(cls, config: Any) -> PositionRule:
        """The rule of a transformers config. Raises `VideoOPDError` for another architecture."""
        family = architecture_of(config)
        vision = family.vision_settings(config)
        one_grid = family.grids == "one a video"
        return cls(
            video_token_id=getattr(config, family.video_token_id),
            merge=vision.spatial_merge_size,
            tokens_per_second=vision.tokens_per_second if one_grid else None,
        )

    def key(self, token_ids: tuple[int, ...], vision: VisionInput) -> tuple[object, ...]:
        """All that the positions depend on, for who keeps them."""
        return token_ids, vision.grid_thw, vision.second_per_grid

    def positions(self, token_ids: Sequence[int], vision: VisionInput) -> np.ndarray:
        """[3, n + 1] int64: of a prompt's n tokens (time, height, width), and of what follows.

        Raises `VideoOPDError` when the prompt's video tokens are not those of its grid.
        """
        is_video_n = np.asarray(token_ids) == self.video_token_id
        grids = self._grids(vision)
        parts: list[np.ndarray] = []
        at = following = 0
        for grid_3V in grids:
            start = at + int(is_video_n[at:].argmax()) if is_video_n[at:].any() else len(is_video_n)
            parts.append(_text(following, start - at))
            following += start - at
            at = start + grid_3V.shape[1]
            if at > len(is_video_n) or not is_video_n[start:at].all():
                raise self._misfit(is_video_n, vision)
            parts.append(following + grid_3V)
            following = int(parts[-1].max()) + 1
        if is_video_n[at:].any():
            raise self._misfit(is_video_n, vision)
        parts.append(_text(following, len(is_video_n) - at + 1))
        return np.concatenate(parts, axis=1)

    def answer_position(self, token_ids: Sequence[int], vision: VisionInput) -> int:
        """Where the first token of an answer to this prompt stands."""
        return int(self.positions(token_ids, vision)[0, -1])

    def _grids(self, vision: VisionInput) -> list[np.ndarray]:
        """[3, tokens] of each grid, as if it began at 0."""
        t, h, w = vision.grid_thw
        shape = (h // self.merge, w // self.merge)
        if self.tokens_per_second is None:
            return [np.indices((1, *shape)).reshape(3, -1)] * t
        if vision.second_per_grid is None:
            raise VideoOPDError(
                "the processor says nothing of a video's seconds per grid (second_per_grid_ts), "
                "without which a qwen2_5_vl model has no positions; use the processor files of a "
                "Qwen2.5-VL checkpoint"
            )
        grid = np.indices((t, *shape))
        # In float64 and in this order, as vLLM: a product just below a whole number stays below.
        interval = vision.second_per_grid * self.tokens_per_second
        grid[0] = (grid[0] * interval).astype(np.int64)
        return [grid.reshape(3, -1)]

    def _misfit(self, is_video_n: np.ndarray, vision: VisionInput) -> VideoOPDError:
        t, h, w = vision.grid_thw
        return VideoOPDError(
            f"a prompt has {int(is_video_n.sum())} video tokens where its grid {vision.grid_thw} "
            f"needs {t * (h // self.merge) * (w // self.merge)}, together or a frame at a time; "
            "take video placeholders out of the sentence, or correct the processor files"
        )


def _text(start: int, length: int) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + length), (3, length))
