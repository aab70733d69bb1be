"""What a study is, from its TOML: arms, seeds, one grid of learning rates, and the runs they make.

    base = "../tiny.toml"             every run is this config with overrides
    rounds = 8
    seeds = [0, 1, 2, 3, 4]
    tune_seeds = [100]                worlds of their own, evaluated on their `tune` split
    tune_rounds = 2                   of a tuning run (default: as many as the others)
    learning_rates = [2e-4, 1e-3]     the grid of every arm
    [world]                           videos of each split, for each seed a world; its `annotations`
                                      and `scene` as `videoopd tinyworld make` has them
    [settings]                        overrides of every run
    [arms.NAME]                       title, and `settings` of this arm; `rounds = 0` trains nothing
                                      `rate_of = "OTHER"` takes the other's learning rate, untuned;
                                      `seeds` and `rounds` instead of the study's
    [[claims]]                        what is claimed of which arms (`flows/study/claims.py`)
    [front]                           arms in the picture of all conditions, with their names there
    [conditions.NAME]                 what this condition puts in place of the above; each is a
                                      study of its own, with its runs and its report;
                                      `in_picture = false`: without a panel in that picture
    [quick]                           what `--quick` puts in place of the above

Tuning runs take the arm's settings, the tune seeds and each learning rate; the best mean IoU on the
tune split at the last round decides, and the other seeds never see that split. Both splits that
answers are judged on are the truth, however the training split is annotated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.stage.models import with_folders
from flows.study.sections import WORLDS, StudySection, folder_name
from opd_core.config.load import Config, first_problem, load_config, read_toml
from opd_core.types import VideoOPDError


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
        """Folder of the run, relative to the study's."""
        rate = "" if self.learning_rate is None else f"lr-{self.learning_rate:g}/"
        return f"{self.arm}/{rate}seed-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A study, and where it is kept."""

    name: str
    title: str
    """Of its condition, or its name."""
    file: Path
    quick: bool
    study: StudySection
    root: Path
    """Folder of its runs, absolute."""
    shared: Path
    """Folder of what the study's conditions have in common, worlds and frames, absolute."""

    def check_arm(self, name: str) -> None:
        """Raises `VideoOPDError` where the study has no such arm."""
        if name not in self.study.arms:
            raise VideoOPDError(f"{self.file} has no arm {name!r}; {self.study.meant(name)}")

    def world(self, seed: int) -> Path:
        world = self.study.world
        return self.shared / WORLDS / f"{world.scene}-{world.annotations}" / f"seed-{seed}"

    def path(self, run: StudyRun) -> Path:
        return self.root / run.folder

    def tuning_runs(self) -> list[StudyRun]:
        """Runs of each arm that is tuned, with each learning rate on each tune seed; none where
        there is nothing to choose."""
        if len(self.study.learning_rates) == 1:
            return []
        most = self.study.tune_rounds or math.inf
        return [
            StudyRun(arm, rate, seed, int(min(self.study.rounds_of(arm), most)), tuning=True)
            for arm in self.study.tuned()
            for rate in self.study.learning_rates
            for seed in self.study.tune_seeds
        ]

    def runs(self, tuned: Mapping[str, float]) -> list[StudyRun]:
        """Runs of each arm, seed by seed, so that a study that is stopped has compared whole seeds.

        `tuned` is the learning rate of each trained arm (an arm that has none there, because all
        its tuning runs failed, is left out).
        """
        return [
            StudyRun(arm, tuned.get(arm), seed, self.study.rounds_of(arm), tuning=False)
            for seed in self.study.all_seeds()
            for arm in self.study.arms
            if seed in self.study.seeds_of(arm) and (arm in tuned or not self.study.rounds_of(arm))
        ]

    def only_rate(self) -> dict[str, float]:
        """The learning rate of each trained arm where the grid has but one."""
        return dict.fromkeys(self.study.trained(), self.study.learning_rates[0])

    def seeds(self) -> list[int]:
        """Seeds of the worlds that are needed; those to tune on first."""
        return list(dict.fromkeys(r.seed for r in self.tuning_runs())) + self.study.all_seeds()

    def overrides(self, run: StudyRun) -> list[str]:
        """Overrides of the base config, as for `videoopd run --set`; later ones win."""
        world, arm = self.world(run.seed), self.study.arms[run.arm]
        values: dict[str, Any] = {
            **self.study.settings,
            **arm.settings,
            "run.path": str(self.path(run)),
            "run.seed": run.seed,
            "data.train": str(world / "train-without-tune.jsonl"),
            "data.eval": str(world / ("tune.jsonl" if run.tuning else "eval.jsonl")),
            "data.videos": str(world / "videos"),
            "frames.path": str(self.shared / "frames"),
        }
        if run.learning_rate is not None:
            values["update.learning_rate"] = run.learning_rate
        return [f"{key}={_toml(value)}" for key, value in values.items()]

    def config(self, run: StudyRun) -> Config:
        written = load_config(self.study.base, self.overrides(run))
        return with_folders(written, str(self.study.base))


def _toml(value: object) -> str:
    """A value as TOML in one line. JSON of a string, number, truth value or list is TOML too."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{" + ", ".join(f"{json.dumps(key)} = {_toml(v)}" for key, v in value.items()) + "}"


def load_study(path: str | Path, runs: Path, *, quick: bool = False) -> list[Plan]:
    """Read a study's TOML: a plan for each of its conditions, one where it names none; their runs
    are to be in folders of `runs`.

    Raises `VideoOPDError` with one sentence: the file, the key, and the fix. The config of every
    arm is loaded once, so that a wrong key is found before anything runs.
    """
    path = Path(path)
    data = read_toml(path, "study", "configs/studies/claims.toml")
    if quick and "quick" not in data:
        raise VideoOPDError(f"{path} has no [quick]; add it, or leave out --quick")
    changes = _table(path, "quick", data.pop("quick", {}))
    conditions: dict[str, object] = {"": {}}
    if "conditions" in data:
        conditions = _conditions(path, data.pop("conditions"))
    plans = []
    for condition, own in conditions.items():
        whole = _merged(data, _table(path, f"conditions.{condition}", own))
        names = (path.stem, condition, "quick" if quick else "")
        plans.append(
            _plan(
                "-".join(filter(None, names)),
                condition,
                path,
                _merged(whole, changes if quick else {}),
                runs.resolve() / "-".join(filter(None, (path.stem, "quick" if quick else ""))),
                quick=quick,
            )
        )
    if not any(plan.study.in_picture for plan in plans):
        raise VideoOPDError(
            f"{path}: in_picture = false leaves the picture empty; set it in some conditions only"
        )
    return plans


def _conditions(path: Path, value: object) -> dict[str, object]:
    """Name -> what it changes."""
    conditions = _table(path, "conditions", value)
    if not conditions:
        raise VideoOPDError(
            f"{path}: [conditions] names none; add [conditions.NAME], or leave it out"
        )
    for name in conditions:
        try:
            folder_name(name)
        except ValueError as error:
            raise VideoOPDError(f"{path}, conditions: {error}") from None
    return conditions


def _table(path: Path, name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise VideoOPDError(f"{path}: {name} = {value!r} is no table; write [{name}] over its keys")
    return value


def _plan(
    name: str, condition: str, path: Path, data: Mapping[str, Any], shared: Path, *, quick: bool
) -> Plan:
    try:
        study = StudySection.model_validate(data)
    except ValidationError as error:
        raise VideoOPDError(f"{path}: {first_problem(error, StudySection)}") from None
    base = (path.resolve().parent / study.base.expanduser()).resolve()
    arms = {arm: study.arms[arm] for arm in study.only_arms or study.arms}
    front = {a: n for a, n in study.front.items() if a in arms} or {arm: arm for arm in arms}
    study = study.model_copy(update={"base": base, "arms": arms, "front": front})
    title = study.title or condition or name
    plan = Plan(name, title, path, quick, study, shared.parent / name, shared)
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
