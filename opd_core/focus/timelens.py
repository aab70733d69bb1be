"""TimeLens (arXiv 2512.14698): drawn by difficulty, a Gaussian over the student's IoU; no teacher.

Mean 0.05 and sigma 0.2 are those of its released training script: it trains on what the model
hardly solves. There the IoU is of one offline pass of the base model over the data set; here it is
of the round's own rollouts, so the draw follows the student.
"""

from __future__ import annotations

import polars as pl

from opd_core.config.sections import FocusSection
from opd_core.extensions import Curriculum
from opd_core.focus.drawing import gaussian, in_drawn_order
from opd_core.focus.picked import PICKED, SELECTED


def pick(units: pl.DataFrame, settings: FocusSection, seed: int) -> pl.DataFrame:
    """`top_k` units drawn without replacement, or all where there are not as many."""
    weight = gaussian(pl.col("student_iou"), settings.timelens_mean, settings.timelens_sigma)
    drawn = pl.col("rank") < settings.top_k
    picked = pl.when(drawn).then(pl.lit(SELECTED)).otherwise(pl.lit("not drawn"))
    return (
        in_drawn_order(units, weight, seed)
        .with_columns(pool=pl.lit(None, pl.String), picked=picked)
        .select(pl.col(name).cast(kind) for name, kind in PICKED.items())
    )


CURRICULUM = Curriculum(
    about="focus.top_k drawn by difficulty, a Gaussian over the student's IoU; no teacher",
    pick=pick,
)
