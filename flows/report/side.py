"""A run in a report: under which name, and what it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from flows.evaluation.answers import Answers, of_policy
from flows.numbers.rounds import rounds
from flows.numbers.stages import stages
from flows.numbers.steps import steps
from storage.asking.config_in_force import ConfigInForce, config_in_force, flat

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run


@dataclass(frozen=True)
class Side:
    """One of the runs of a report, as it is now or as of a round; its numbers are read once."""

    name: str
    """Short, and no other side has it."""
    run: Run

    @cached_property
    def rounds(self) -> pl.DataFrame:
        """One row a policy (`flows/numbers/rounds.py`)."""
        return rounds(self.run)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """One row an optimiser step."""
        return steps(self.run)

    @cached_property
    def stages(self) -> pl.DataFrame:
        """One row a stage of a round."""
        return stages(self.run)

    @cached_property
    def config(self) -> ConfigInForce:
        """What it was made with last."""
        return config_in_force(self.run)

    @cached_property
    def settings(self) -> dict[str, object]:
        """The keys of that config: `settings["video.fps"]`."""
        return flat(self.config.content)

    @cached_property
    def evaluated(self) -> tuple[int, ...]:
        """The policies that have answered the eval split, in order."""
        known = self.rounds.drop_nulls("eval_examples")
        return tuple(known["policy_version"])

    @cached_property
    def first(self) -> Answers | None:
        """What the first evaluated policy answered; None where none is evaluated."""
        return of_policy(self.run, self.evaluated[0]) if self.evaluated else None

    @cached_property
    def last(self) -> Answers | None:
        """What the last evaluated policy answered; None where fewer than two are."""
        return of_policy(self.run, self.evaluated[-1]) if len(self.evaluated) > 1 else None

    @property
    def newest(self) -> Answers | None:
        """What the last evaluated policy answered, be it the first; None where there is none."""
        return self.last or self.first


def sides(runs: Sequence[Run]) -> tuple[Side, ...]:
    """Name the runs: by their folders, with `@3` of a round; with more of the path where two of
    them would be called the same."""

    def named(run: Run, parts: int) -> str:
        at = "" if run.round is None else f"@{run.round}"
        return "/".join(run.path.parts[-parts:]) + at

    deepest = max(len(run.path.parts) for run in runs)
    for parts in range(1, deepest + 1):
        names = [named(run, parts) for run in runs]
        if len(set(names)) == len(names):
            break
    else:  # twice the same
        names = [f"{named(run, 1)} ({place})" for place, run in enumerate(runs, start=1)]
    return tuple(Side(name, run) for name, run in zip(names, runs, strict=True))
