"""SCC: a frontier that the student has yet to learn, and anchors of what it knows.

Of teachers that reach 0.7 (focus.min_teacher_iou), units on which the student is below
`max_student_iou` are the frontier: the `frontier` largest disagreements are taken. Where it is not
below, the teacher need not score it, but for `anchors` of them, drawn uniformly by seed. They are
drawn before scoring, from numbers that need no score, and are then scored like the frontier: an
anchor is trained on too.
"""

from __future__ import annotations

import polars as pl

from opd_core.config.sections import FocusSection
from opd_core.extensions import Curriculum
from opd_core.focus.drawing import in_drawn_order
from opd_core.focus.picked import PICKED, SELECTED


def ranked(settings: FocusSection) -> pl.Expr:
    """The frontier is; anchors are drawn."""
    return pl.col("student_iou") < settings.max_student_iou


def pick(units: pl.DataFrame, settings: FocusSection, seed: int) -> pl.DataFrame:
    """Picks at most `frontier` and `anchors` units; each of the two pools has ranks of its own."""
    frontier = (
        units.filter(ranked(settings))
        .sort("measure", "unit", descending=[True, False])
        .with_row_index("rank")
        .with_columns(
            weight=pl.lit(None, pl.Float64),
            pool=pl.lit("frontier"),
            picked=_picked(settings.frontier, "disagreement outside the frontier"),
        )
    )
    anchors = in_drawn_order(units.filter(~ranked(settings)), pl.lit(0.0), seed).with_columns(
        pool=pl.lit("anchor"), picked=_picked(settings.anchors, "the student has it")
    )
    columns = [pl.col(name).cast(kind) for name, kind in PICKED.items()]
    return pl.concat([frontier.select(columns), anchors.select(columns)])


def _picked(room: int, otherwise: str) -> pl.Expr:
    return pl.when(pl.col("rank") < room).then(pl.lit(SELECTED)).otherwise(pl.lit(otherwise))


CURRICULUM = Curriculum(
    about="a frontier by disagreement, yet to be learned, and anchors of what is known",
    pick=pick,
    ranked=ranked,
    min_teacher_iou=0.7,
)
