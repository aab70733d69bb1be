"""What a top-k of an engine leaves to all other tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence


def tail_logprob(topk_logprobs: Sequence[float]) -> float:
    """log of the probability that the tokens of `topk_logprobs` leave to all others.

    From float32 log-probs it is known to about 1e-7, so below that it is 1e-7: the exact tail is
    what the HF scorer keeps.
    """
    return math.log(max(1.0 - math.fsum(map(math.exp, topk_logprobs)), 1e-7))
