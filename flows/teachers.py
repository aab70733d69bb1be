"""The teachers of a run, of which one is the usual case, and whose each example is.

A stage goes through them one after the other, so that one at a time is in memory; each is given the
config in which it is the only one. An example keeps the teacher that its annotation named when the
run first read it: a round can be audited whatever the annotation file says by then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_

import polars as pl

from opd_core.config.load import Config
from opd_core.config.sections import TakesSection
from opd_core.hub.name import model_name
from opd_core.types import GroundingExample, Policy, VideoOPDError, join_hashes
from storage.runs.run import Run

EXAMPLE_OF_ROLLOUT = pl.col("rollout_id").str.extract(r"^v\d+-(.*)-\d+$")
"""The example that a rollout's id names (`make_rollout_id`)."""


@dataclass(frozen=True)
class Teacher:
    """One of them."""

    config: Config
    """The run's, with this teacher as the only one."""
    weights_hash: str
    examples: frozenset[str] | None
    """Ids of those that are its own; None: all."""
    asked: Callable[[], str | None]
    """How it was asked for its own answers, or is: asked for once; None: it was not."""

    @property
    def name(self) -> str:
        return model_name(self.config.teacher.path)

    @cached_property
    def question_hash(self) -> str | None:
        return self.asked()

    @property
    def question_to_ask(self) -> str:
        """The same, where there is one: of a run that goes on."""
        assert self.question_hash is not None
        return self.question_hash

    def policy(self, version: int) -> Policy:
        """It as something that answers, in the round that samples from policy `version`."""
        return Policy(version, self.config.teacher.path, self.weights_hash)

    def takes(self, example_id: str) -> bool:
        return self.examples is None or example_id in self.examples

    def own(self, examples: Iterable[GroundingExample]) -> list[GroundingExample]:
        """Of some examples its own, in their order."""
        return [e for e in examples if self.takes(e.example_id)]

    def rows(self, example_id: pl.Expr) -> pl.Expr:
        """Whether a row is by it and of an example of its own."""
        by_it = pl.col("teacher_hash") == self.weights_hash
        return by_it if self.examples is None else by_it & example_id.is_in(list(self.examples))


class Teachers(tuple[Teacher, ...]):
    """All of a run, in the order of the config."""

    @property
    def joined_hash(self) -> str:
        """What a row of `updates` says of them."""
        return join_hashes(teacher.weights_hash for teacher in self)

    @property
    def names(self) -> str:
        return ", ".join(teacher.name for teacher in self)

    @property
    def caches(self) -> str:
        """The runs that their answers may be copied from."""
        caches = (teacher.config.teacher.cache for teacher in self)
        return ", ".join(dict.fromkeys(str(cache) for cache in caches if cache is not None))

    def of(self, example_id: str) -> Teacher | None:
        """The example's own; None where it is nobody's: it may no longer be annotated."""
        return next((teacher for teacher in self if teacher.takes(example_id)), None)

    def question_of(self, example_id: str) -> str | None:
        """What its own teacher is asked about the example."""
        own = self.of(example_id)
        return None if own is None else own.question_hash

    def hash_of(self, example_id: str) -> str | None:
        """Of its own teacher's weights."""
        own = self.of(example_id)
        return None if own is None else own.weights_hash

    def predictions(self) -> pl.Expr:
        """Rows of `teacher_predictions` that are each by the example's own teacher, to what the
        config asks it."""
        return _any(
            teacher.rows(pl.col("example_id"))
            & (pl.col("question_hash") == pl.lit(teacher.question_hash, pl.String))
            for teacher in self
        )

    def scores(self) -> pl.Expr:
        """Rows of `teacher_scores` that are each by the own teacher of the example."""
        return _any(teacher.rows(EXAMPLE_OF_ROLLOUT) for teacher in self)


def shares(config: Config, run: Run) -> list[frozenset[str] | None]:
    """Ids of the examples of each teacher of a config, of all that the run has ever read."""
    if not config.teachers:
        return [None]
    own: list[set[str]] = [set() for _ in config.teachers]
    rows = run.examples().select("example_id", *TakesSection.model_fields).collect()
    for row in rows.iter_rows(named=True):
        takers = (n for n, teacher in enumerate(config.teachers) if teacher.takes.match(row))
        if (taker := next(takers, None)) is not None:
            own[taker].add(row["example_id"])
    return [frozenset(ids) for ids in own]


def check_shares(config: Config, run: Run, own: Sequence[frozenset[str] | None]) -> None:
    """Raise `VideoOPDError` where an example of the training split is no teacher's; warn of a
    teacher without any."""
    train = run.present().filter(pl.col("split") == "train").select("example_id")
    first_read = run.examples().select("example_id", "source")
    sources = dict(first_read.join(train, on="example_id", how="semi").collect().iter_rows())
    for teacher, ids in zip(config.teachers, own, strict=False):
        if sources and ids is not None and ids.isdisjoint(sources):
            warnings.warn(
                f"teachers.{teacher.name} takes none of the {len(sources)} training examples",
                RuntimeWarning,
                stacklevel=3,
            )
    taken = frozenset[str]().union(*(ids or () for ids in own))
    if lost := sorted(sources.keys() - taken if None not in own else ()):
        raise VideoOPDError(
            f"{len(lost)} training examples are no teacher's, {lost[0]} among them (source "
            f"{sources[lost[0]]!r}); add what names them to `takes` of one of [[teachers]], or "
            "give a last one without `takes`"
        )


def _any(conditions: Iterable[pl.Expr]) -> pl.Expr:
    return reduce(or_, conditions)
