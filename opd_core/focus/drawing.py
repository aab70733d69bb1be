"""Draws that depend on a seed and on ids, never on the order of rows or on the process.

Each id has a uniform number of its own, hashed from seed and id. A weighted draw without
replacement orders ids by log weight + Gumbel noise (Efraimidis and Spirakis 2006; the Gumbel-top-k
trick): the first k are distributed as k draws, one after the other, each in proportion to the
weights that are left. Weights come as logarithms, so that none is too small to be drawn last.
"""

from __future__ import annotations

import hashlib
import math

import polars as pl


def uniform_number(seed: int, unit: str) -> float:
    """A number in (0, 1), without its ends: 52 bits of a hash, in the middle of their interval."""
    digest = hashlib.sha256(f"{seed}\x1f{unit}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2.0**52


def in_drawn_order(units: pl.DataFrame, log_weight: pl.Expr, seed: int) -> pl.DataFrame:
    """The units in the order in which they are drawn, with `rank` and `weight`, no logarithm."""

    def noise(ids: pl.Series) -> pl.Series:
        numbers = [-math.log(-math.log(uniform_number(seed, unit))) for unit in ids]
        return pl.Series(numbers, dtype=pl.Float64)

    gumbel = pl.col("unit").map_batches(noise, return_dtype=pl.Float64)
    return (
        units.with_columns(weight=log_weight.exp(), key=log_weight + gumbel)
        .sort("key", "unit", descending=[True, False])
        .drop("key")
        .with_row_index("rank")
    )


def gaussian(value: pl.Expr, center: float, sigma: float) -> pl.Expr:
    """Logarithm of exp(-(value - center)^2 / (2 sigma^2)): a weight of 1 at the centre."""
    return -((value - center) ** 2) / (2.0 * sigma**2)
