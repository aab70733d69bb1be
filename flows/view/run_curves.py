"""The charts of the run page: its curves, those of several runs beside each other, and what stages
took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.charts.bars import Stack, stacked_bars
from flows.charts.curves import Of, over_rounds, over_steps
from flows.charts.svg import Svg

if TYPE_CHECKING:
    import polars as pl


THREE, FOUR, HEIGHT = 360.0, 290.0, 220.0
"""About what a chart has where so many stand in a row: its text is as large as small print."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A run that is drawn: its numbers, under its name, in its colour on all pages."""

    name: str
    colour: int
    rounds: pl.DataFrame
    steps: pl.DataFrame
    stages: pl.DataFrame


def round_charts(runs: Sequence[Drawn]) -> list[Svg]:
    """Draws each run's rounds against the policies."""
    of = [Of(run.name, run.rounds, run.colour) for run in runs]
    return [chart.svg for chart in over_rounds(of, THREE, HEIGHT)]


def step_charts(runs: Sequence[Drawn]) -> list[Svg]:
    """Draws each run's optimiser steps."""
    of = [Of(run.name, run.steps, run.colour) for run in runs]
    return [chart.svg for chart in over_steps(of, FOUR, HEIGHT)]


def stage_charts(runs: Sequence[Drawn]) -> list[Svg]:
    """Draws what each round of each run took: seconds, and tokens through the models, by stage."""
    return [
        stacked_bars(
            _stacks(run.stages, column), title=f"{title}: {run.name}" if len(runs) > 1 else title,
            x_label="round", y_label=unit, width=THREE, height=HEIGHT,
        )
        for column, title, unit in (
            ("seconds", "Time by stage", "s"),
            ("tokens", "Tokens through the models by stage", "tokens"),
        )
        for run in runs
    ]  # fmt: skip


def _stacks(stages: pl.DataFrame, column: str) -> list[Stack]:
    by_round: dict[int, dict[str, float | None]] = {}
    for number, stage, value in stages.select("round", "stage", column).iter_rows():
        by_round.setdefault(number, {})[stage] = value
    return [Stack(str(number), parts) for number, parts in by_round.items()]
