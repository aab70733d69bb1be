"""One row an optimiser step of the run, those of the update that runs now included."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import polars as pl

from flows.numbers import frames
from opd_core.types import UpdateStep

if TYPE_CHECKING:
    from storage.runs.run import Run

_OF_RUN = {
    "policy_version": (pl.Int64(), "Of the policy that the update makes."),
    "run_step": (pl.Int64(), "0, 1, ... within the run."),
    "running": (pl.Boolean(), "Whether the update is not committed yet."),
}
RENAMED = {"reverse_kl": "teacher_kl"}
"""The view `tokens` has another `reverse_kl`; the number is the k1 estimate of that KL."""


def columns() -> dict[str, str]:
    """Column -> what it means; `step`: 0, 1, ... within its update."""
    of_step = {RENAMED.get(n, n): text for n, text in frames.meanings(UpdateStep).items()}
    return {name: meaning for name, (_, meaning) in _OF_RUN.items()} | of_step


def steps(run: Run) -> pl.DataFrame:
    """The columns of `columns()`, in the order of the steps.

    Steps of the running update are those that it has told so far; as of a round there are none.
    """
    own = frames.schema(UpdateStep)
    committed = (
        run.updates()
        .select("policy_version", "steps")
        .collect()
        .explode("steps")
        .drop_nulls("steps")
        .unnest("steps")
        .select("policy_version", pl.lit(False).alias("running"), *own)
    )
    frame = pl.concat([committed, _running(run, own)])
    return (
        frame.sort("policy_version", "step")
        .with_columns(run_step=pl.int_range(pl.len(), dtype=pl.Int64))
        .select(*_OF_RUN, *own)
        .rename(RENAMED)
    )


def _running(run: Run, own: dict[str, pl.DataType]) -> pl.DataFrame:
    schema = {"policy_version": pl.Int64(), "running": pl.Boolean(), **own}
    if run.round is not None:
        return pl.DataFrame(schema=schema)
    newest = run.newest_version()
    made = run.running_steps().of(newest + 1)
    rows = [{"policy_version": newest + 1, "running": True, **asdict(step)} for step in made]
    return pl.DataFrame(rows, schema=schema, orient="row")
