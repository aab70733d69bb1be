"""What each curriculum takes of the units it may take: one small module a source.

A unit is an example with all its rollouts, or a single rollout (focus.unit). `curriculum.select`
gives a `pick` only units whose numbers are known (unit, teacher_iou, student_iou, measure: none is
null or NaN) and gets them back with what was decided (`PICKED`). The order of rows does not matter.
"""

from __future__ import annotations

import polars as pl

SELECTED = "selected"

PICKED = pl.Schema(
    {
        "unit": pl.String,
        "rank": pl.Int32,
        "pool": pl.String,
        "weight": pl.Float64,
        "picked": pl.String,
    }
)
"""What a `pick` returns, one row a unit; `picked` is SELECTED or why not."""
