"""Which rows of a run are in force, where stages were run again.

Nothing is deleted. The rows that a stage writes for a round are of a *take*: 0 the first time. Run
again by force, or because its inputs were, it begins the next take with a row of `reruns`; the rows
of older takes are superseded by then. The same row names the later stages of the round that had
rows at that moment: they were computed from what is superseded now and are *stale* until they begin
a take of their own. The order of the rows of `reruns` decides, never a clock.

A new take of `update` makes policy r + 1 again, so it supersedes all that was made with later
policies: one row a stage and round, in the same commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING

from opd_core.types import Rerun
from storage.stages import RESCORE, makes_stale, place, round_number, stage_command
from storage.tables.schemas import TableSpec

if TYPE_CHECKING:
    import polars as pl

ALL_TAKES = "_all"
"""In SQL, `rollouts_all` is the table `rollouts` with its superseded rows."""
FORCED = "forced"
"""`because` of a take that was asked for."""


def take_of(rerun: Rerun) -> str:
    """
    >>> take_of(Rerun(1, 2, "score", 1, "forced", 12, ("focus",)))
    'score of round 3, take 1'
    """
    round = round_number(rerun.stage, rerun.policy_version)
    return f"{rerun.stage} of round {round}, take {rerun.new_take}"


StageRound = tuple[str, int]
"""(stage, policy_version of the round)"""


@dataclass(frozen=True, slots=True)
class Stale:
    """A stage of a round whose rows were computed from superseded ones."""

    stage: str
    policy_version: int
    cause: Rerun

    @property
    def round(self) -> int:
        """Its number, as people give and read it."""
        return round_number(self.stage, self.policy_version)

    def reason(self) -> str:
        """
        >>> Stale("focus", 2, Rerun(1, 2, "score", 1, "forced", 12, ("focus",))).reason()
        'focus of round 3 was computed from rows of score that take 1 superseded'
        """
        return f"{self.stage} of round {self.round} was {self.because()}"

    def because(self) -> str:
        take = self.cause.new_take
        return f"computed from rows of {self.cause.stage} that take {take} superseded"

    def command(self, config: str) -> str:
        """What runs it again; `config` as one types it."""
        return stage_command(self.stage, config, self.round)


@dataclass(frozen=True, slots=True)
class Hidden:
    """Rows of a table that a rerun has superseded or made stale."""

    round_column: str
    rounds: tuple[int, ...]
    take: int
    """The newest that is hidden."""
    stage: str | None
    """Of a table that several stages write, whose rows they are."""

    def expr(self) -> pl.Expr:
        """True for them, and false for a row of no round."""
        import polars as pl

        rows = pl.col(self.round_column).is_in(list(self.rounds)) & (pl.col("take") <= self.take)
        if self.stage is not None:
            rows &= pl.col("stage") == self.stage
        return rows & pl.col(self.round_column).is_not_null()

    def sql(self) -> str:
        """The same.

        >>> Hidden("policy_version", (1, 2), 0, None).sql()
        'policy_version IS NOT NULL AND policy_version IN (1, 2) AND take <= 0'
        """
        column = self.round_column
        rounds = ", ".join(map(str, self.rounds))
        rows = f"{column} IS NOT NULL AND {column} IN ({rounds}) AND take <= {self.take}"
        return rows if self.stage is None else f"{rows} AND stage = '{self.stage}'"


@dataclass(frozen=True)
class Takes:
    """What `reruns` says."""

    reruns: tuple[Rerun, ...] = ()
    """In the order in which they began."""

    @cached_property
    def _newest(self) -> dict[StageRound, Rerun]:
        return {(r.stage, r.policy_version): r for r in self.reruns}

    def take(self, stage: str, version: int | None) -> int:
        """The newest take of a stage of a round."""
        newest = None if version is None else self._newest.get((stage, version))
        return newest.new_take if newest else 0

    def forced(self, stage: str, version: int) -> bool:
        """Whether the newest take was asked for."""
        newest = self._newest.get((stage, version))
        return newest is not None and newest.because == FORCED

    def times_forced(self, stage: str, version: int) -> int:
        mine = (r for r in self.reruns if (r.stage, r.policy_version) == (stage, version))
        return sum(r.because == FORCED for r in mine)

    def stale(self) -> list[Stale]:
        """All that is stale, in order of round and stage."""
        return list(self._stale.values())

    @cached_property
    def _stale(self) -> dict[StageRound, Stale]:
        marked: dict[StageRound, Stale] = {}
        for rerun in self.reruns:
            marked.pop((rerun.stage, rerun.policy_version), None)
            for stage in rerun.stale:
                key = (stage, rerun.policy_version)
                marked.setdefault(key, Stale(stage, rerun.policy_version, rerun))
        order = sorted(marked.values(), key=lambda s: (s.policy_version, place(s.stage)))
        return {(s.stage, s.policy_version): s for s in order}

    def stale_at(self, stage: str, version: int) -> Stale | None:
        return self._stale.get((stage, version))

    def in_the_way(self, stage: str, version: int) -> Stale | None:
        """The first thing stale that a stage of a round would be computed from."""
        for stale in self.stale():
            inside = stale.policy_version == version and stage in makes_stale(stale.stage)
            earlier = stale.policy_version < version
            before = earlier and ("update", stale.policy_version) in self._stale
            if inside or (before and stale.stage != RESCORE.name):
                return stale
        return None

    def shown(self, spec: TableSpec) -> pl.Expr | None:
        """True for the rows of a table that are in force and not stale; None where all are.

        Stale rows of `updates` are shown: they are the chain of policies until an update is run
        again.
        """
        hidden = self.hidden(spec)
        return ~reduce(or_, (rows.expr() for rows in hidden)) if hidden else None

    def hidden(self, spec: TableSpec) -> list[Hidden]:
        """The rows of a table that are superseded or stale; none in a table whose rows are of no
        round."""
        if spec.round_column is None:
            return []
        return [
            Hidden(spec.round_column, tuple(rounds), take, None if spec.writer else stage)
            for stage, take, rounds in self._hidden(stale_too=spec.name != "updates")
            if spec.writer in (None, stage)
        ]

    def _hidden(self, stale_too: bool) -> Iterator[tuple[str, int, list[int]]]:
        """(stage, newest take that is hidden, policy_versions of its rounds)"""
        rounds: dict[tuple[str, int], list[int]] = {}
        for stage, version in dict.fromkeys((*self._newest, *self._stale)):
            stale = stale_too and (stage, version) in self._stale
            last = self.take(stage, version) - (not stale)
            if last >= 0:
                rounds.setdefault((stage, last), []).append(version)
        for (stage, last), numbers in rounds.items():
            yield stage, last, numbers

    def next_take(
        self, stage: str, version: int, because: str, rows: Mapping[tuple[str, int, int], int]
    ) -> list[Rerun]:
        """The rows of `reruns` that begin the next take, to be appended in one commit.

        `rows`: (stage, policy_version, take) -> rows there are.
        """
        written = {(s, r): count for (s, r, take), count in rows.items() if take == self.take(s, r)}
        stale = tuple(later for later in makes_stale(stage) if written.get((later, version)))
        begun = [(stage, version, because, stale)]
        if stage == "update":
            made_again = f"policy {version + 1} is made again"
            begun += [
                (other, later, made_again, ())
                for other, later in sorted(written, key=lambda key: (key[1], key[0]))
                if later > version and written[other, later]
            ]
        last = self.reruns[-1].sequence if self.reruns else 0
        return [
            Rerun(number, r, s, self.take(s, r) + 1, why, written.get((s, r), 0), marked)
            for number, (s, r, why, marked) in enumerate(begun, start=last + 1)
        ]
