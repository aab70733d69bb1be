"""TVDF (arXiv 2602.02994): of reliable teachers, `top_k` units of the ranking by disagreement.

Four ways to take them (focus.selection), the paper's method first, then its ablations:

- `top_k`: the largest disagreements (DBTP).
- `stride`: every n-th of the ranking, so that `top_k` remain: ranks floor(i * units / top_k).
- `buckets`: the ranking cut into 5 parts of the same length, the largest disagreements of each, the
  same number from each (what cannot be shared out goes to the upper ones). By rank and not by equal
  width of disagreement, because of those some are empty, and give nothing.
- `gaussian`: drawn by weight, a Gaussian (centre 0.9, sigma 0.2) over the disagreement scaled to
  [0, 1] within the round: mostly large ones, and few of the very largest.
"""

from __future__ import annotations

from itertools import pairwise

import polars as pl

from opd_core.config.sections import FocusSection
from opd_core.extensions import Curriculum
from opd_core.focus.drawing import gaussian, in_drawn_order
from opd_core.focus.picked import PICKED, SELECTED

LEFT = {
    "top_k": "disagreement outside top k",
    "stride": "between the strides",
    "buckets": "disagreement below its bucket's share",
    "gaussian": "not drawn",
}


def ranked(settings: FocusSection) -> pl.Expr:
    """All units are ranked."""
    return pl.lit(True)


def pick(units: pl.DataFrame, settings: FocusSection, seed: int) -> pl.DataFrame:
    """`top_k` units, or all where there are not as many."""
    if settings.selection == "gaussian":
        low, span = pl.col("measure").min(), pl.col("measure").max() - pl.col("measure").min()
        scaled = pl.when(span > 0).then((pl.col("measure") - low) / span).otherwise(1.0)
        weight = gaussian(scaled, settings.gaussian_center, settings.gaussian_sigma)
        ranked = in_drawn_order(units, weight, seed)
    else:
        ranked = units.sort("measure", "unit", descending=[True, False]).with_row_index("rank")
        ranked = ranked.with_columns(weight=pl.lit(None, pl.Float64))
    pool = pl.lit(None, pl.String)
    wanted = pl.col("rank") < settings.top_k
    if settings.selection == "stride" and settings.top_k < units.height:
        wanted = pl.col("rank").is_in(stride(units.height, settings.top_k))
    elif settings.selection == "buckets":
        cut = [range(a, b) for a, b in _cuts(units.height, settings.buckets)]
        names = [f"bucket {i}" for i, part in enumerate(cut) for _ in part]
        pool = pl.Series("pool", names, dtype=pl.String)  # type: ignore[assignment]
        room = _cuts(settings.top_k, settings.buckets)
        taken = [r for part, (a, b) in zip(cut, room, strict=True) for r in part[: b - a]]
        wanted = pl.col("rank").is_in(taken)
    return ranked.with_columns(
        pool=pool,
        picked=pl.when(wanted).then(pl.lit(SELECTED)).otherwise(pl.lit(LEFT[settings.selection])),
    ).select(pl.col(name).cast(kind) for name, kind in PICKED.items())


def stride(units: int, wanted: int) -> list[int]:
    """`wanted` ranks of `units`, evenly spaced from the first on.

    >>> stride(10, 4)
    [0, 2, 5, 7]
    """
    return [i * units // wanted for i in range(wanted)]


def _cuts(length: int, parts: int) -> list[tuple[int, int]]:
    """`length` cut into `parts`, the first ones longer by one where it does not divide.

    >>> _cuts(7, 3)
    [(0, 3), (3, 5), (5, 7)]
    """
    each, more = divmod(length, parts)
    starts = [i * each + min(i, more) for i in range(parts + 1)]
    return list(pairwise(starts))


CURRICULUM = Curriculum(
    about="of reliable teachers, focus.top_k by disagreement with the student",
    pick=pick,
    ranked=ranked,
)
