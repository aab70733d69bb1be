"""Refuses to score a rollout against another prompt than it answered."""

from __future__ import annotations

from opd_core.prompts.batches import EncodedExample
from opd_core.types import Rollout, VideoOPDError


def check_same_prompt(item: EncodedExample, rollout: Rollout) -> None:
    """Raise unless a rollout answered exactly this prompt, with these pixels."""
    for what, was, now in (
        ("prompt token ids", tuple(rollout.prompt_token_ids), item.prompt.token_ids),
        ("grid", tuple(rollout.grid_thw), item.prompt.vision.grid_thw),
        ("seconds per grid", rollout.second_per_grid, item.prompt.vision.second_per_grid),
        ("pixels", rollout.pixel_hash, item.clip.pixel_hash),
    ):
        if was != now:
            raise VideoOPDError(
                f"rollout {rollout.rollout_id} was sampled from other {what} than "
                f"{item.example.video_path} gives now; restore the video and the processor files, "
                "or start a new run"
            )
