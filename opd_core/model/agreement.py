"""How far log-probs of the same tokens may lie apart that two computations of one model give.

A wrong position, mask or normalisation moves most tokens a little; rounding moves few tokens, some
of them far. So one bound is not enough where arithmetic is coarse: there the mean of the
differences is held as well, which is where faults show.

Measured on one thread of a CPU, |trainer - engine| of the answers' tokens, with the tiny world's
student and teacher and an untrained Qwen2.5-VL ("the three"); on CUDA by the project's own
functions on an H200, torch 2.11:

| sampler | trainer | largest | mean |
|---|---|---|---|
| hf, float32, CPU; 19,700 tokens of the three | float32 | 2.8e-5 | 4e-7 |
| vLLM, float32, CPU; 7,452 tokens of the student | float32 | 2.1e-5 | 3e-7 |
| float32, CUDA, tiny teacher | float32 on the CPU | 2.1e-3 (TF32) | |
| hf, bfloat16, CPU; 19,800 tokens of the three | bfloat16 autocast | 0.03, 0.45, 1.95 | 0.005 |
| vLLM, bfloat16, CPU; 8,000 tokens of the three | bfloat16 autocast | 0.03, 0.15, 1.75 | 0.005 |
| hf, bfloat16, CUDA, a random 2B shape | bfloat16 | 0.04 to 0.06 | |

The largest are an untrained Qwen2.5-VL's, the student's and the teacher's: the surer a model, the
further a token of bfloat16 can be off. A thousand tokens of the teacher had a mean of 0.009.

What faults do to that Qwen2.5-VL: text that continues 20 positions too early 0.95 and 0.145
(largest, mean), a third more seconds per grid 0.56 and 0.066, text one position off 0.09 and 0.015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opd_core.extensions import ENGINES

if TYPE_CHECKING:
    from opd_core.config.load import Config

FINE = "float32"


@dataclass(frozen=True, slots=True)
class Bound:
    """What differences of log-probs may be, nats."""

    largest: float
    """The largest difference of any token."""
    mean: float | None = None
    """The mean difference of many tokens; None: only the largest counts."""
    spread: float = 0.0
    """Four times the root mean square of a difference: what the mean of few tokens may be more."""
    reason: str = "as the config says"

    def mean_of(self, tokens: int) -> float | None:
        """The bound on the mean of so many tokens' differences."""
        if self.mean is None or not tokens:
            return None
        return self.mean + self.spread / math.sqrt(tokens)

    def mean_fault(self, differences: Sequence[float]) -> tuple[float, float] | None:
        """(mean, its bound) where the mean is beyond it, or is no number."""
        bound = self.mean_of(len(differences))
        if bound is None:
            return None
        mean = math.fsum(differences) / len(differences)
        return None if mean <= bound else (mean, bound)


def served_dtype(config: Config, engine: str, dtype: str) -> str:
    """The precision in which `engine` runs a model whose section of the config says `dtype`."""
    own = ENGINES[engine].dtype if engine in ENGINES else None  # `truth` is no engine
    return (own and own(config)) or dtype


EXACT = Bound(0.0, reason="the same computation again")


def bound_for(configured: float | None, dtypes: Sequence[str], device: str) -> Bound:
    """The bound that the config gives, where it does (`configured`); else what rounding makes of
    these `dtypes` (of sampler and trainer) on a `cpu` or `cuda` device, with room. The engine makes
    no difference: see above.
    """
    if configured is not None:
        return Bound(configured)
    coarse = next((dtype for dtype in dtypes if dtype != FINE), None)
    if coarse is not None:
        return Bound(4.0, 0.02, 0.35, f"more than rounding in {coarse} does")
    if device == "cpu":
        return Bound(1e-3, reason="more than rounding in float32 on a CPU does")
    return Bound(1e-2, 1e-3, 4e-2, f"more than TF32 does on {device}")
