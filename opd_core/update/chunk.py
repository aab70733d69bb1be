"""What a training loss is computed from: some whole completions and what is known of them.

Shape suffixes: C completion tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from opd_core.types import Rollout, TeacherScore


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of a rollout that is trained on."""

    rollout: Rollout
    score: TeacherScore | None
    """None where no objective needs the teacher."""
    advantage: float | None = None
    """Among its example's rollouts, for `grpo`."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The student's side of some whole completions, and what it was computed from."""

    facts: Sequence[Fact]
    token_ids_C: Tensor
    chosen_C: Tensor
    """Log-probs of the tokens, with gradient."""
    old_C: Tensor
    """Log-probs of the tokens by the policy before its first step, pi_v."""
    logprobs_CV: Tensor
    reference_C: Tensor | None
    """Log-probs of the tokens by the base student, where `grpo.reference_kl` asks for them."""
