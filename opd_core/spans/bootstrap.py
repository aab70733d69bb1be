"""Bootstrap intervals of means over examples that come in clusters.

The sentences of a video are not independent (one hard video is hard for all of them), so whole
videos are drawn with replacement, as many as there are, and every mean is taken over the sentences
of what was drawn: a ratio of two sums. Intervals are percentiles of those means (Efron and
Tibshirani 1993, chapter 13). To compare two models, the same drawn videos serve both, which is the
bootstrap of the differences (paired). Where each example is its own cluster this is the ordinary
bootstrap.

Shapes: N examples, C clusters, M metrics, R resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 256
"""Resamples held in memory together."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its interval; None where there are fewer than two clusters to draw from."""

    value: float | None
    """None where some of the examples have no value."""
    low: float | None
    high: float | None
    share_not_above_zero: float | None = None
    """The share of resamples in which a difference is at or below 0. Read it as a one-sided
    p-value, with a resolution of one resample."""


def estimates(
    values_NM: Floats,
    clusters: Sequence[Hashable],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Estimate]:
    """One estimate a column of `values_NM`; the same seed and rows give the same numbers.

    `clusters`: N labels. A column with NaN in it has no mean. Raises `ValueError` for no rows, or
    labels of another number.
    """
    members = _members(values_NM, clusters)
    total_CM, size_C = _sums(values_NM, members)
    count = len(size_C)
    means = total_CM.sum(0) / size_C.sum()
    if count < 2:
        return [_known(mean, None, None) for mean in means]
    generator = np.random.default_rng(seed)
    parts = []
    for start in range(0, resamples, AT_ONCE):
        size = min(AT_ONCE, resamples - start)
        parts.append(resampled_means(total_CM, size_C, _drawn(generator, size, count)))
    resampled_RM = np.concatenate(parts)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(resampled_RM, [tail, 1.0 - tail], axis=0)
    share = (resampled_RM <= 0.0).mean(0)
    return [_known(*row) for row in zip(means, low, high, share, strict=True)]


def _known(mean: float, *rest: float | None) -> Estimate:
    if np.isnan(mean):
        return Estimate(None, None, None)
    return Estimate(float(mean), *(None if number is None else float(number) for number in rest))


def resampled_means(total_CM: Floats, size_C: Floats, drawn_RC: Floats) -> Floats:
    """[R, M] means of the resamples in which cluster c was drawn `drawn_RC[:, c]` times."""
    return (drawn_RC @ total_CM) / (drawn_RC @ size_C)[:, None]


def _drawn(generator: np.random.Generator, resamples: int, count: int) -> Floats:
    """[R, C] how often each of `count` clusters comes in `count` draws with replacement."""
    names = generator.integers(0, count, size=(resamples, count))
    names += np.arange(resamples)[:, None] * count  # a row of its own for each resample
    often = np.bincount(names.ravel(), minlength=resamples * count)
    return often.reshape(resamples, count).astype(np.float64)


def _members(values_NM: Floats, clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """[N] the number of each row's cluster, in the order of the labels: rows may come in any."""
    if len(clusters) != len(values_NM) or not len(clusters):
        raise ValueError(f"{len(values_NM)} rows of values and {len(clusters)} labels of clusters")
    number = {label: i for i, label in enumerate(sorted(set(clusters), key=str))}
    return np.array([number[label] for label in clusters])


def _sums(values_NM: Floats, members: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    count = int(members.max()) + 1
    total_CM = np.zeros((count, values_NM.shape[1]))
    np.add.at(total_CM, members, values_NM)
    return total_CM, np.bincount(members, minlength=count).astype(np.float64)
