"""Uniform: every rollout of the draw, whoever is right; the draw is already uniform. No teacher."""

from __future__ import annotations

import polars as pl

from opd_core.config.sections import FocusSection
from opd_core.extensions import Curriculum
from opd_core.focus.picked import PICKED, SELECTED


def pick(units: pl.DataFrame, settings: FocusSection, seed: int) -> pl.DataFrame:
    """All of them."""
    absent = {name: pl.lit(None) for name in ("rank", "pool", "weight")}
    return units.with_columns(picked=pl.lit(SELECTED), **absent).select(
        pl.col(name).cast(kind) for name, kind in PICKED.items()
    )


CURRICULUM = Curriculum(
    about="every rollout of the draw; no teacher",
    pick=pick,
    needs_student=False,
)
