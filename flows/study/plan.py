"""What a study is, from its TOML: arms, seeds, one grid of learning rates, and the runs they make.

    base = "../tiny.toml"             every run is this config with overrides
    rounds = 8
    seeds = [0, 1, 2, 3, 4]
    tune_seed = 100                   a world of its own, evaluated on its `tune` split
    tune_rounds = 2                   of a tuning run (default: as many as the others)
    learning_rates = [2e-4, 1e-3]     the grid of every arm
    [world]                           videos of each split, for each seed a world
    [settings]                        overrides of every run
    [arms.NAME]                       title, and `settings` of this arm; `rounds = 0` trains nothing
    [claims]                          which arm plays which part (`flows/study/claims.py`)
    [quick]                           what `--quick` puts in place of the above

Tuning runs take the arm's settings, the tune seed and each learning rate; the best mean IoU on the
tune split at the last round decides, and the other seeds never see that split.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from opd_core.config.load import Config, first_problem, load_config, read_toml
from opd_core.config.sections import Positive, Section
from opd_core.types import VideoOPDError

Count = Annotated[int, Field(ge=0)]


class WorldSection(Section):
    train_videos: Positive
    tune_videos: Positive
    """Held out of the training videos; tuning runs are evaluated on them."""
    eval_videos: Positive


class ArmSection(Section):
    title: str
    """As the table names it."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the base config: `"update.objective" = "grpo"`."""
    rounds: Count | None = None
    """Instead of the study's; 0 only evaluates the student it begins with."""


class ClaimsSection(Section):
    """Arms by the part they play; a claim whose arms have no name here is left out."""

    base: str | None = None
    teacher: str | None = None
    """An arm of no rounds whose student is the teacher."""
    opd: str | None = None
    """Video-OPD with several rollouts in a prefix tree."""
    opd_one: str | None = None
    """Video-OPD with one rollout."""
    tvdf: str | None = None
    """The arm that the next three are compared with."""
    grpo: str | None = None
    without_trpv: str | None = None
    """As `tvdf`, but for the teacher's reliability."""
    without_dbtp: str | None = None
    """As `tvdf`, but for the choice by disagreement."""
    without_tvdf: str | None = None
    """As `tvdf`, but for both."""
    variants: tuple[str, ...] = ()
    """Other arms of Video-OPD, compared with GRPO and the teacher beside `opd` and `opd_one`."""

    def parts(self) -> dict[str, str]:
        """Part -> arm; a variant plays a part of its own."""
        named = {part: arm for part, arm in self if isinstance(arm, str)}
        return named | {f"variants.{arm}": arm for arm in self.variants}


class StudySection(Section):
    base: Path
    rounds: Positive
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    tune_seed: int
    tune_rounds: Positive | None = None
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    world: WorldSection
    settings: dict[str, Any] = Field(default_factory=dict)
    arms: Annotated[dict[str, ArmSection], Field(min_length=1)]
    claims: ClaimsSection = ClaimsSection()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.tune_seed in self.seeds:
            raise ValueError(
                f"tune_seed = {self.tune_seed} is one of the seeds; take another, because what is "
                "tuned on may not be reported"
            )
        for part, arm in self.claims.parts().items():
            if arm not in self.arms:
                near = difflib.get_close_matches(arm, self.arms, n=1)
                hint = (
                    f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.arms)}"
                )
                raise ValueError(
                    f"claims.{part.split('.')[0]} = {arm!r} is no arm of the study; {hint}"
                )
        return self


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run: an arm with a learning rate and a seed."""

    arm: str
    learning_rate: float | None
    """None for an arm that trains nothing."""
    seed: int
    rounds: int
    tuning: bool
    """Evaluated on the tune split of its world, and never reported as a result."""

    @property
    def folder(self) -> str:
        """Of the run, relative to the study's."""
        rate = "" if self.learning_rate is None else f"lr-{self.learning_rate:g}/"
        return f"{self.arm}/{rate}seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A study, and where it is kept."""

    name: str
    file: Path
    quick: bool
    study: StudySection
    root: Path
    """Folder of its worlds and runs, absolute."""

    def check_arm(self, name: str) -> None:
        """Raises `VideoOPDError` where the study has no such arm."""
        if name not in self.study.arms:
            near = difflib.get_close_matches(name, self.study.arms, n=1)
            known = ", ".join(self.study.arms)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {known}"
            raise VideoOPDError(f"{self.file} has no arm {name!r}; {hint}")

    def world(self, seed: int) -> Path:
        return self.root / "worlds" / f"seed-{seed}"

    def path(self, run: StudyRun) -> Path:
        return self.root / run.folder

    def tuning_runs(self) -> list[StudyRun]:
        """Each trained arm with each learning rate; none where there is nothing to choose."""
        if len(self.study.learning_rates) == 1:
            return []
        return [
            StudyRun(
                name,
                rate,
                self.study.tune_seed,
                min(rounds, self.study.tune_rounds or rounds),
                tuning=True,
            )
            for name, rounds in self._trained()
            for rate in self.study.learning_rates
        ]

    def runs(self, tuned: Mapping[str, float]) -> list[StudyRun]:
        """Each seed with each arm, so that a study that is stopped has compared whole seeds.

        `tuned` is the learning rate of each trained arm (an arm that has none there, because all
        its tuning runs failed, is left out).
        """
        found: list[StudyRun] = []
        for name, arm in self.study.arms.items():
            rounds = self.study.rounds if arm.rounds is None else arm.rounds
            if rounds and name not in tuned:
                continue
            rate = tuned[name] if rounds else None
            found += [StudyRun(name, rate, s, rounds, tuning=False) for s in self.study.seeds]
        return sorted(found, key=lambda run: self.study.seeds.index(run.seed))

    def only_rate(self) -> dict[str, float]:
        """The learning rate of each trained arm where the grid has but one."""
        return {name: self.study.learning_rates[0] for name, _ in self._trained()}

    def seeds(self) -> list[int]:
        """Of the worlds that are needed; the one to tune on first."""
        return [*([self.study.tune_seed] if self.tuning_runs() else []), *self.study.seeds]

    def overrides(self, run: StudyRun) -> list[str]:
        """Of the base config, as for `videoopd run --set`; later ones win."""
        world, arm = self.world(run.seed), self.study.arms[run.arm]
        values: dict[str, Any] = {
            **self.study.settings,
            **arm.settings,
            "run.path": str(self.path(run)),
            "run.seed": run.seed,
            "data.train": str(world / "train-without-tune.jsonl"),
            "data.eval": str(world / ("tune.jsonl" if run.tuning else "eval.jsonl")),
            "data.videos": str(world / "videos"),
            "frames.path": str(self.root / "frames"),
        }
        if run.learning_rate is not None:
            values["update.learning_rate"] = run.learning_rate
        # JSON of a string, number, truth value or list is TOML too.
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]

    def config(self, run: StudyRun) -> Config:
        return load_config(self.study.base, self.overrides(run))

    def _trained(self) -> Iterator[tuple[str, int]]:
        for name, arm in self.study.arms.items():
            rounds = self.study.rounds if arm.rounds is None else arm.rounds
            if rounds:
                yield name, rounds


def load_study(path: str | Path, runs: Path, *, quick: bool = False) -> Plan:
    """Read a study's TOML; its runs are to be in a folder of `runs`.

    Raises `VideoOPDError` with one sentence: the file, the key, and the fix. The config of every
    arm is loaded once, so that a wrong key is found before anything runs.
    """
    path = Path(path)
    data = read_toml(path, "study", "configs/studies/claims.toml")
    changes = data.pop("quick", None)
    if quick:
        if changes is None:
            raise VideoOPDError(f"{path} has no [quick]; add it, or leave out --quick")
        data = _merged(data, changes)
    try:
        study = StudySection.model_validate(data)
    except ValidationError as error:
        raise VideoOPDError(f"{path}: {first_problem(error, StudySection)}") from None
    base = (path.resolve().parent / study.base.expanduser()).resolve()
    name = path.stem + ("-quick" if quick else "")
    root = runs.resolve() / name
    plan = Plan(name, path, quick, study.model_copy(update={"base": base}), root)
    for arm in plan.study.arms:
        try:
            plan.config(StudyRun(arm, study.learning_rates[0], study.seeds[0], 1, tuning=False))
        except VideoOPDError as error:
            raise VideoOPDError(f"{path}, arm {arm!r}: {error}") from None
    return plan


def _merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with `changes` in it, tables merged key by key."""
    result = dict(data)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = _merged(old, value) if both and old is not None else value
    return result
