"""What a teacher's score depends on, as one hash: equal hashes, equal numbers.

So that a score which exists anywhere is found by its content, whichever rollout, round or run it
was computed for, and is copied instead of computed again. Within float32 rounding, that is: a
forward pass rounds by what else is in its pack.
"""

from __future__ import annotations

import hashlib
from array import array

from opd_core.extensions import Quantise
from opd_core.types import Rollout

FORMAT = "teacher score 1"
"""Raise the number when scoring itself changes what it computes."""


def content_hash(scorer: str, teacher_hash: str, rollout: Rollout) -> str:
    """32 hex digits over the weights, the scorer (`scoring.describe_scorer`: engine, precision,
    attention, processor, what is kept), and what is scored: pixels, prompt and completion."""
    digest = hashlib.sha256()
    for text in (FORMAT, scorer, teacher_hash, rollout.pixel_hash):
        digest.update(f"{len(text)} {text}\n".encode())
    for kind, numbers in (
        ("q", rollout.grid_thw),
        ("d", rollout.frame_timestamps),
        ("q", rollout.prompt_token_ids),
        ("q", rollout.completion_token_ids),
    ):
        packed = array(kind, numbers)
        digest.update(f"{len(packed)} ".encode())
        digest.update(packed.tobytes())
    if rollout.second_per_grid is not None:  # Qwen2.5-VL's positions count in it
        digest.update(b"second_per_grid " + array("d", [rollout.second_per_grid]).tobytes())
    return digest.hexdigest()[:32]


def quantised_text(quantise: Quantise) -> str:
    """The part of a `scorer` that tells of a quantised teacher; of others there is none."""
    return f"{quantise} weights"


def quantised_in(scorer: str) -> Quantise:
    """What `quantised_text` was told of, by a `scorer`."""
    parts = scorer.split("; ")
    quantised: tuple[Quantise, ...] = ("fp8", "int4")
    return next((how for how in quantised if quantised_text(how) in parts), "none")
