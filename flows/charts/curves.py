"""The curves of a run, of a page and of a report alike: what is drawn over rounds and over steps.

Of one run a chart has several columns; of several runs there is a chart a column with a line a run,
so that it can be read. Columns are those of `flows/numbers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.charts.lines import Point, Series, line_chart
from flows.charts.svg import Svg

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Curve:
    """A chart of columns."""

    title: str
    columns: Mapping[str, str]
    """What is said of a column -> its name."""
    unit: str = ""
    include: Sequence[float] = (0.0,)
    several: str = ""
    """Its title before the name of a column, where `title` would not fit."""

    @property
    def short(self) -> str:
        return self.several or self.title


@dataclass(frozen=True, slots=True)
class Of:
    """A run that is drawn: its name, and rows that hold the columns."""

    name: str
    rows: pl.DataFrame
    colour: int | None = None
    """None: its place among the runs."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart that is drawn."""

    title: str
    svg: Svg
    is_empty: bool
    """Whether there are no numbers of it yet."""


OF_ROUNDS = (
    Curve("Eval mIoU, 95 % interval by video", {"mIoU": "strict_miou"}),
    Curve(
        "Eval R1",
        {"IoU ≥ 0.3": "strict_r1_30", "IoU ≥ 0.5": "strict_r1_50", "IoU ≥ 0.7": "strict_r1_70"},
    ),
    Curve("KL to the teacher (k1)", {"of the round's rollouts": "teacher_kl"}, "nats a token"),
    Curve(
        "Disagreement: teacher's IoU - student's",
        {"considered": "disagreement", "selected": "disagreement_selected"},
        several="Disagreement",
    ),
    Curve(
        "Share of answers without a span",
        {"rollouts": "without_span", "eval": "parse_failures"},
        include=(0.0, 0.02),
    ),
    Curve(
        "Effective sample size of the update",
        {"share": "effective_sample_size"},
        include=(0.0, 1.0),
    ),
    Curve("IoU of the rollouts", {"mean": "mean_iou"}),
)
OF_STEPS = (
    Curve("Loss", {"loss": "loss"}, include=()),
    Curve(
        "KL", {"to the teacher (k1)": "teacher_kl", "to the policy before": "policy_kl"},
        "nats a token",
    ),
    Curve("Gradient norm", {"norm": "grad_norm"}),
    Curve("Learning rate", {"rate": "learning_rate"}),
    Curve("Effective sample size", {"share": "effective_sample_size"}, include=(0.0, 1.0)),
)  # fmt: skip


def over_rounds(runs: Sequence[Of], width: float = 400, height: float = 230) -> list[Chart]:
    """Draw `OF_ROUNDS` against the policies; the rows are of `flows/numbers/rounds.py`."""
    return [
        chart
        for curve in OF_ROUNDS
        for chart in _charts(curve, runs, "policy_version", "policy", width, height)
    ]


def over_steps(runs: Sequence[Of], width: float = 400, height: float = 230) -> list[Chart]:
    """Draw `OF_STEPS` against the steps of the run; the rows are of `flows/numbers/steps.py`."""
    return [
        chart
        for curve in OF_STEPS
        for chart in _charts(curve, runs, "run_step", "step", width, height)
    ]


def _charts(
    curve: Curve, runs: Sequence[Of], x: str, axis: str, width: float, height: float
) -> Iterator[Chart]:
    is_one = len(curve.columns) == 1
    if len(runs) == 1:
        charts = [
            (curve.title, [
                Series(said, _points(runs[0].rows, x, column, is_one))
                for said, column in curve.columns.items()
            ])
        ]  # fmt: skip
    else:
        charts = [
            (curve.title if is_one else f"{curve.short}: {said}", [
                Series(run.name, _points(run.rows, x, column, True), run.colour) for run in runs
            ])
            for said, column in curve.columns.items()
        ]  # fmt: skip
    for title, lines in charts:
        is_empty = all(point.y is None for line in lines for point in line.points)
        svg = line_chart(
            lines, title=title, x_label=axis, y_label=curve.unit,
            include=() if is_empty else curve.include, width=width, height=height,
        )  # fmt: skip
        yield Chart(title, svg, is_empty)


def _points(rows: pl.DataFrame, x: str, column: str, with_ends: bool) -> list[Point]:
    """With the interval where the rows have one, and it covers no other column's."""
    ends = [f"{column}_low", f"{column}_high"]
    names = [x, column, *(ends if with_ends and {*ends} <= {*rows.columns} else ())]
    return [Point(*row) for row in rows.select(names).iter_rows()]
