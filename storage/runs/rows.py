"""What a run's tables hold: by name, as of a round, without what a rerun has superseded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from opd_core.types import GroundingExample, Rerun
from storage.tables import present, views
from storage.tables.lance_tables import PLACE_IN_TABLE, Tables
from storage.tables.records import from_rows
from storage.tables.schemas import TABLES
from storage.tables.takes import Takes

if TYPE_CHECKING:
    import duckdb
    import polars as pl

Record = TypeVar("Record")


class RunRows:
    """The rows of a run, to be read."""

    def __init__(self, path: Path, teacher_hash: str) -> None:
        self.path = path
        self.tables = Tables.open(path / "tables")
        self.teacher_hash = teacher_hash
        """Of the teachers that the run began with, as `updates` names them."""
        self._tag: str | None = None
        self._versions: Mapping[str, int] = {}
        self._takes: dict[int, Takes] = {}

    def frozen(self, versions: Mapping[str, int] | None = None) -> Self:
        """The run with every table at one of its versions, by default at those of this moment: what
        is appended meanwhile is not seen. A version is there for an hour at least
        (`storage/tables/cleanup.py`)."""
        other = copy(self)
        other._versions = self.table_versions() if versions is None else versions
        return other

    def table_versions(self) -> dict[str, int]:
        """The version at which each table is read."""
        return {name: self.tables.version(name, self.table_version(name)) for name in TABLES}

    def table_version(self, name: str) -> int | str | None:
        return self._versions.get(name, self._tag)

    def scan(self, name: str, superseded: bool = False) -> pl.LazyFrame:
        """A table by name, as of the round that the run was opened at.

        Without the rows that a rerun has superseded or made stale (`storage/tables/takes.py`), unless
        `superseded`.
        """
        frame = self.tables.scan(name, self.table_version(name))
        shown = None if superseded else self.in_force(name)
        return frame if shown is None else frame.filter(shown)

    @property
    def version(self) -> str | None:
        """The tag that every table is read at; None: as they are now."""
        return self._tag

    def takes(self) -> Takes:
        """Which stages of which rounds were run again."""
        number = self.tables.version("reruns", self.table_version("reruns"))
        if number not in self._takes:
            rows = self.tables.read("reruns", Rerun, version=number)
            self._takes = {number: Takes(tuple(sorted(rows, key=lambda row: row.sequence)))}
        return self._takes[number]

    def rows_by_take(self) -> dict[tuple[str, int, int], int]:
        """(stage, its policy_version, take) -> rows, in all tables whose rows are of a round."""
        import polars as pl

        counts: dict[tuple[str, int, int], int] = {}
        for name, spec in TABLES.items():
            if spec.round_column is None:
                continue
            stage = pl.lit(spec.writer) if spec.writer else pl.col("stage")
            frame = self.scan(name, superseded=True).select(
                stage.alias("stage"), pl.col(spec.round_column).alias("round"), "take"
            )
            of_takes = frame.drop_nulls("round").group_by("stage", "round", "take").len().collect()
            for *key, count in of_takes.iter_rows():
                counts[tuple(key)] = counts.get(tuple(key), 0) + count
        return counts

    def in_force(self, name: str) -> pl.Expr | None:
        """True of the rows of a table that no rerun has superseded; None where all are."""
        spec = TABLES.get(name)
        return None if spec is None or spec.round_column is None else self.takes().shown(spec)

    def places(self, name: str, columns: Sequence[str], policy_version: int) -> pl.DataFrame:
        """`columns` of a round's rows that are in force, in the order they were written, and the
        `PLACE_IN_TABLE` of each. Ask a `frozen` run: a place is of one version of the table."""
        in_force = self.in_force(name)
        rounds = str(TABLES[name].round_column)
        needed = () if in_force is None else (rounds, "take")
        names = list(dict.fromkeys((*columns, *needed)))
        where = f"{rounds} = {policy_version}"
        rows = self.tables.places(name, names, self.table_version(name), where)
        return (rows if in_force is None else rows.filter(in_force)).select(*columns, PLACE_IN_TABLE)

    def trajectories(self) -> pl.LazyFrame:
        """One row a rollout: example, answer, teacher, score, selection, update."""
        return views.trajectories(self.scan, self.teacher_hash)

    def tokens(self, texts: views.Texts | None = None) -> pl.LazyFrame:
        """One row a token of an answer; `texts` (ids -> texts) fills in the column `text`."""
        return views.tokens(self.scan, self.teacher_hash, texts)

    def duckdb(self, texts: views.Texts | None = None) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection in which every table (`rollouts`; with superseded rows
        `rollouts_all`) and view is there by name, as of the round that the run was opened at.

        Nothing is read before it is asked for, and nothing of the run can be written through it.
        `texts` as for `tokens`. Raises `VideoOPDError` where DuckDB is not installed.
        """
        from storage.runs.in_duckdb import connection

        shown = {"trajectories": self.trajectories(), "tokens": self.tokens(texts)}
        tables = {name: self.tables.stored(name, self.table_version(name)) for name in TABLES}
        return connection(tables, self.takes(), shown)

    def examples(self) -> pl.LazyFrame:
        """Every annotation that the run has ever read, as it was first read."""
        return self.scan("examples")

    def present(self) -> pl.LazyFrame:
        """Annotations that the files hold now, as they are there (`storage/tables/present.py`)."""
        return present.present(self.scan)

    def present_examples(self, filter: pl.Expr | None = None) -> list[GroundingExample]:
        """The rows of `present` as records; all, or those for which `filter` is true."""
        rows = self.present() if filter is None else self.present().filter(filter)
        return from_rows(GroundingExample, rows.collect().to_arrow())

    def last_known_examples(self, filter: pl.Expr) -> list[GroundingExample]:
        """Examples that `filter` is true for, also such as the files hold no longer, as last held."""
        rows = present.latest(self.scan).filter(filter)
        return from_rows(GroundingExample, rows.collect().to_arrow())

    def present_evaluations(self) -> pl.LazyFrame:
        """The answers to what is in the eval split now: what any number is made of."""
        asked = present.ids_of_split(self.scan, "eval")
        return self.evaluations().join(asked, on="example_id", how="semi", maintain_order="left")

    def data_changes(self) -> pl.LazyFrame:
        return self.scan("data_changes")

    def quarantine(self) -> pl.LazyFrame:
        return self.scan("quarantine")

    def draws(self) -> pl.LazyFrame:
        return self.scan("draws")

    def teacher_predictions(self) -> pl.LazyFrame:
        return self.scan("teacher_predictions")

    def rollouts(self) -> pl.LazyFrame:
        return self.scan("rollouts")

    def teacher_scores(self) -> pl.LazyFrame:
        return self.scan("teacher_scores")

    def divergences(self) -> pl.LazyFrame:
        return self.scan("divergences")

    def selections(self) -> pl.LazyFrame:
        return self.scan("selections")

    def trained_rollouts(self) -> pl.LazyFrame:
        return self.scan("trained_rollouts")

    def updates(self) -> pl.LazyFrame:
        return self.scan("updates")

    def evaluations(self) -> pl.LazyFrame:
        return self.scan("evaluations")

    def model_evaluations(self) -> pl.LazyFrame:
        return self.scan("model_evaluations")

    def reruns(self) -> pl.LazyFrame:
        return self.scan("reruns")

    def read(
        self,
        name: str,
        record: type[Record],
        filter: pl.Expr | None = None,
        without: Sequence[str] = (),
    ) -> list[Record]:
        """Rows that `scan` shows as records, in the order they were written; as `Tables.read`."""
        shown = self.in_force(name)
        if shown is not None:
            filter = shown if filter is None else shown & filter
        return self.tables.read(name, record, filter, self.table_version(name), without)
