"""A run of a million trajectories: each row of a finished run, as often as it takes.

    python -m flows.bench.large_run RUN FOLDER 1000000

Copies of an example are examples of their own, about the same video; so all that is read of a row
is there: the video, the tokens' texts, the policies. Rows are copied as columns, a table of a round
in one append, and never become records: those cost minutes. Each round is finished as by `run`.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from storage.runs import run_folder
from storage.runs.run import Run
from storage.tables.schemas import TABLES

OF_NO_ROUND = ("examples", "teacher_predictions")
OF_A_ROUND = ("draws", "rollouts", "teacher_scores", "selections", "trained_rollouts")
"""Their rows, and those above, are copied; there is one of any other."""
_ID = r"[0-9a-f]{16}"
"""An example's, which a rollout's has in it."""


def multiply(source: Path, folder: Path, rows: int) -> Run:
    """A run in `folder` with at least `rows` rollouts, made of those of the run in `source`."""
    small = Run.open(source)
    copies = -(-rows // small.rollouts().select(pl.len()).collect().item())
    config = max((source / "configs").glob("*.json"), key=lambda path: path.stat().st_mtime)
    teachers = [Path(t["path"]) for t in run_folder.teachers(run_folder.read(source))]
    large = Run.create(folder, config.read_text(), config.stem, small.policy(0).path, *teachers)
    shutil.copytree(source / "policies", folder / "policies", dirs_exist_ok=True)
    shutil.copy(source / run_folder.CONFIG_SOURCE_FILE, folder)
    others = _Others(small.examples().select("example_id").collect().to_series())
    for name in OF_NO_ROUND:
        _append(large, name, _copies(_rows(small, name), copies, others))
    _append(large, "evaluations", iter([_rows(small, "evaluations", 0)]))
    for version in sorted(small.updates().select("parent_version").collect().to_series()):
        for name in OF_A_ROUND:
            _append(large, name, _copies(_rows(small, name, version), copies, others))
        _append(large, "evaluations", iter([_rows(small, "evaluations", version + 1)]))
        _append(large, "updates", iter([_rows(small, "updates", version)]))
        large.finish_round(version + 1)
    return large


class _Others:
    """Ids of the copies of examples."""

    def __init__(self, ids: pl.Series) -> None:
        self._ids = ids
        self._known: dict[int, pl.Series] = {}

    def of(self, column: str, copy: int) -> pl.Expr:
        """A column of ids that hold an example's, with that of its copy instead."""
        if copy not in self._known:
            self._known[copy] = pl.Series([_other(example, copy) for example in self._ids])
        before, example, after = (
            pl.col(column).str.extract(f"^(.*?)({_ID})(.*)$", group) for group in (1, 2, 3)
        )
        other = example.replace_strict(self._ids, self._known[copy], return_dtype=pl.String)
        return pl.concat_str(before, other, after).alias(column)


def _copies(rows: pl.DataFrame, copies: int, others: _Others) -> Iterator[pl.DataFrame]:
    """The rows as they are, then of other examples."""
    ids = [name for name in ("example_id", "rollout_id") if name in rows.columns]
    yield rows
    for copy in range(1, copies):
        made = rows.with_columns(others.of(name, copy) for name in ids)
        if "position" in rows.columns:  # of a draw
            made = made.with_columns(pl.col("position") + copy * rows.height)
        yield made


def _rows(run: Run, name: str, version: int | None = None) -> pl.DataFrame:
    """The rows of a table, or those of a round."""
    rows = run.scan(name)
    if version is not None:
        rows = rows.filter(pl.col(str(TABLES[name].round_column)) == version)
    return rows.collect()


def _append(run: Run, name: str, frames: Iterator[pl.DataFrame]) -> None:
    table = run.tables.stored(name)
    schema = table.schema
    batches = (
        batch
        for frame in frames
        for batch in frame.with_columns(run_id=pl.lit(run.run_id))
        .select(schema.names)
        .to_arrow()
        .cast(schema)
        .to_batches()
    )
    table.insert(pa.RecordBatchReader.from_batches(schema, batches), mode="append")


def _other(example_id: str, copy: int) -> str:
    return hashlib.sha256(f"{example_id} {copy}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    multiply(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
