"""The distribution over what a policy may say, from one over all tokens of which some are listed.

A server knows nothing of tokens that nobody may say (`opd_core/model/vocabulary.py`): it gives the
log-probs of the likeliest tokens, and some of the probability may lie on those. What is listed of
them is taken out exactly; what is not is bounded by the least likely token that is listed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listed:
    """The likeliest tokens of one position that a policy may say."""

    logprobs: Mapping[int, float]
    """Token id -> its log-prob among those that may be said, likeliest first."""
    off_by: float
    """Nats that these may be too small by, at most."""


def allowed(
    listed: Mapping[int, float], likeliest: Collection[int], excluded: Collection[int], size: int
) -> Listed:
    """`listed`: token id -> log-prob over all `size` tokens; `likeliest`: those of them that are
    the likeliest of all; `excluded`: those that nobody may say."""
    kept = {token: p for token, p in listed.items() if token not in excluded}
    missing = len(excluded) - (len(listed) - len(kept))
    unlisted = 0.0 if len(listed) == size else 1.0 - math.fsum(map(math.exp, listed.values()))
    unlisted = max(unlisted, 0.0)
    # Not 1 - what is taken out: that may be all but a billionth, and the rest is exact still.
    rest = _log_sum([*kept.values(), _log(unlisted)])
    if rest == -math.inf:
        return Listed({}, math.inf)
    ordered = sorted(kept.items(), key=lambda entry: -entry[1])
    hidden = min(missing * math.exp(min(listed[token] for token in likeliest)), unlisted)
    share = _log(hidden) - rest
    unsure = -math.log1p(-math.exp(share)) if share < 0.0 else math.inf
    return Listed({token: p - rest for token, p in ordered}, unsure)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0.0 else -math.inf


def _log_sum(logs: Sequence[float]) -> float:
    """log of the sum of the exponentials."""
    most = max(logs)
    if most == -math.inf:
        return most
    return most + math.log(math.fsum(math.exp(one - most) for one in logs))
