"""The curves of a report: over rounds, and over the steps of the updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.charts import curves
from flows.charts.curves import Chart, Of
from flows.charts.svg import Svg
from flows.report.side import Side


@dataclass(frozen=True, slots=True)
class Curves:
    """Charts."""

    charts: tuple[Svg, ...]
    nothing_of: tuple[str, ...]
    """Titles of those of which there are no numbers yet."""
    notes: tuple[str, ...] = ()


def over_rounds(sides: Sequence[Side]) -> Curves:
    """Draw what each policy's round was like, the sides in one chart."""
    return _told(curves.over_rounds([Of(side.name, side.rounds) for side in sides]))


def over_steps(sides: Sequence[Side]) -> Curves:
    """Draw what each optimiser step was like, those of a running update included."""
    running = ((side.name, int(side.steps["running"].sum())) for side in sides)
    notes = [
        f"The last {count} steps of {name} are of an update that is not finished."
        for name, count in running
        if count
    ]
    return _told(curves.over_steps([Of(side.name, side.steps) for side in sides]), notes)


def _told(charts: Sequence[Chart], notes: Sequence[str] = ()) -> Curves:
    return Curves(
        tuple(chart.svg for chart in charts if not chart.is_empty),
        tuple(chart.title for chart in charts if chart.is_empty),
        tuple(notes),
    )
