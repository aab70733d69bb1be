"""At what size a model sees a video: by the rule of its own processor, at the budget of [video]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opd_core.model.architectures import QWEN3_VL, SizeRuleName

SHORTEST_EDGE = 4096
"""Pixels below which Qwen3-VL's released processors enlarge a video."""
LEAST_SHARE = 1.05
"""Of the smallest allowed size, which a cap on a frame never goes below (Qwen's own number)."""


@dataclass(frozen=True, slots=True)
class SizeRule:
    """The part of a processor that its sizes depend on; its budget is [video]'s."""

    name: SizeRuleName = QWEN3_VL.size_rule
    """Qwen3-VL counts the pixels of a video, Qwen2-VL and Qwen2.5-VL those of each frame."""
    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    shortest_edge: int = SHORTEST_EDGE
    """Pixels below which it enlarges: `size["shortest_edge"]` of the processor."""

    @classmethod
    def of(cls, video_processor: Any, name: SizeRuleName) -> SizeRule:
        """The rule of a Hugging Face video processor, of the family's kind."""
        return cls(
            name,
            video_processor.patch_size,
            video_processor.merge_size,
            video_processor.temporal_patch_size,
            int(video_processor.size["shortest_edge"]),
        )

    def target_size(
        self,
        frames: int,
        height: int,
        width: int,
        max_video_tokens: int,
        max_frame_tokens: int | None = None,
    ) -> tuple[int, int]:
        """(height, width) to which the processor resizes, both multiples of a merged patch.

        Its budgets are counted in merged tokens: of the video, `size["longest_edge"]` of a Qwen3-VL
        processor over the pixels of a token; of a frame, what `cap_pixels_per_frame` caps. As with
        the processor, very wide pictures and odd numbers of frames may cost more than the budget;
        other than with it, the least that a cap leaves to a frame may not (a processor whose
        `shortest_edge` is 128 tokens gives 768 frames 51,000 of a budget of 8,192). Raises
        ValueError for aspect ratios beyond 200.
        """
        token = (self.patch_size * self.merge_size) ** 2
        longest = max_video_tokens * self.temporal_patch_size * token
        share = longest // frames
        if max_frame_tokens is None:
            capped = None
        else:
            least = int(self.shortest_edge * LEAST_SHARE)
            capped = min(share, max(max_frame_tokens * token, least))
        import_resize_rules()
        if self.name == QWEN3_VL.size_rule:
            from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

            size: tuple[int, int] = smart_resize(
                num_frames=frames,
                height=height,
                width=width,
                temporal_factor=self.temporal_patch_size,
                factor=self.patch_size * self.merge_size,
                min_pixels=self.shortest_edge,
                max_pixels=longest if capped is None else capped * frames,
            )
            return size
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize as by_frame

        most = share if capped is None else capped
        size = by_frame(
            height,
            width,
            factor=self.patch_size * self.merge_size,
            min_pixels=min(self.shortest_edge, most),
            max_pixels=most,
        )
        return size


def import_resize_rules() -> None:
    """Both; the first call imports transformers, which takes seconds."""
    from opd_core import torchvision_guard

    torchvision_guard.install()
    import transformers.models.qwen2_vl.video_processing_qwen2_vl
    import transformers.models.qwen3_vl.video_processing_qwen3_vl  # noqa: F401
