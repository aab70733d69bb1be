"""What a study's TOML may say, a frozen record for each table (words: `flows/study/plan.py`)."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from flows.study.claims import ClaimSection
from opd_core.config.section import Section
from opd_core.config.sections import Positive
from opd_core.tinyworld.annotators import ANNOTATORS
from opd_core.tinyworld.scenes import SCENES

Count = Annotated[int, Field(ge=0)]
WORLDS = "worlds"
"""Folder of a study in which no run lies."""


def folder_name(name: str) -> str:
    """Refuses, before anything runs, what the folders of a study cannot be called."""
    if name in ("", ".", "..", WORLDS) or "/" in name or "\0" in name:
        raise ValueError(
            f"{name!r} is to name a folder of the study's own; give it another name, without '/'"
        )
    return name


Seeds = Annotated[tuple[int, ...], Field(min_length=1)]


class WorldSection(Section):
    train_videos: Positive
    tune_videos: Positive
    """Held out of the training videos; tuning runs are evaluated on their truth."""
    eval_videos: Positive
    annotations: str = "clean"
    """Of the training split: a name of `opd_core/tinyworld/annotators.py`."""
    scene: str = "short"
    """A name of `opd_core/tinyworld/scenes.py`."""

    @field_validator("annotations")
    @classmethod
    def _annotators_are_there(cls, value: str) -> str:
        return _known("world.annotations", value, ANNOTATORS)

    @field_validator("scene")
    @classmethod
    def _scene_is_there(cls, value: str) -> str:
        return _known("world.scene", value, SCENES)


class ArmSection(Section):
    title: str
    """As the table names it."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the base config: `"update.objective" = "grpo"`."""
    rounds: Count | None = None
    """Instead of the study's; 0 only evaluates the student it begins with."""
    rate_of: str | None = None
    """The arm whose learning rate it takes, instead of tuning runs of its own."""
    seeds: Seeds | None = None
    """Instead of the study's."""


class StudySection(Section):
    base: Path
    rounds: Positive
    seeds: Seeds
    tune_seeds: Seeds
    """Their worlds are in no reported number."""
    tune_rounds: Positive | None = None
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    world: WorldSection
    settings: dict[str, Any] = Field(default_factory=dict)
    arms: Annotated[
        dict[Annotated[str, AfterValidator(folder_name)], ArmSection], Field(min_length=1)
    ]
    only_arms: tuple[str, ...] = ()
    """Those of a condition that needs few; none named: all."""
    title: str | None = None
    """Of a condition, where people read it; its name where there is none."""
    front: dict[str, str] = Field(default_factory=dict)
    """The arms in the picture of all conditions, and their names there; none: all, as they are
    called."""
    in_picture: bool = True
    """Whether a condition has a panel there; its own page has a picture of its own in any case."""
    claims: tuple[ClaimSection, ...] = ()

    @field_validator("claims", mode="before")
    @classmethod
    def _are_many(cls, claims: object) -> object:
        if isinstance(claims, dict):
            raise ValueError("[claims] is one table; write [[claims]] over each claim")
        return claims

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for seed in self.tune_seeds:
            if seed in self.all_seeds():
                raise ValueError(
                    f"tune_seeds has {seed}, one of the seeds; take another, because what is tuned "
                    "on may not be reported"
                )
        named = {f"claim {c.name!r}": (*c.arms, *c.against) for c in self.claims}
        for where, arms in (
            named | {"only_arms": self.only_arms, "front": tuple(self.front)}
        ).items():
            for arm in arms:
                if arm not in self.arms:
                    raise ValueError(
                        f"{where} names {arm!r}, which is no arm of the study; {self.meant(arm)}"
                    )
        for arm in self.only_arms or self.arms:
            self._has_a_rate(arm)
        return self

    def _has_a_rate(self, arm: str) -> None:
        other = self.arms[arm].rate_of
        if other is None:
            return
        if other not in self.arms:
            raise ValueError(
                f"arms.{arm}.rate_of = {other!r} is no arm of the study; {self.meant(other)}"
            )
        if other not in self.tuned() or (self.only_arms and other not in self.only_arms):
            raise ValueError(
                f"arms.{arm}.rate_of = {other!r} is an arm without a learning rate of its own; "
                "name one that is tuned here"
            )

    def meant(self, arm: str) -> str:
        """The arm that may have been meant by a name that is none's, as a hint."""
        near = difflib.get_close_matches(arm, self.arms, n=1)
        return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.arms)}"

    def rounds_of(self, arm: str) -> int:
        own = self.arms[arm].rounds
        return self.rounds if own is None else own

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        return self.arms[arm].seeds or self.seeds

    def all_seeds(self) -> list[int]:
        """The study's seeds, then those that single arms have beside them."""
        return list(dict.fromkeys([*self.seeds, *(s for a in self.arms for s in self.seeds_of(a))]))

    def trained(self) -> list[str]:
        """The arms that train, in the order of the file."""
        return [arm for arm in self.arms if self.rounds_of(arm)]

    def rate_from(self, arm: str) -> str:
        """The arm whose tuning runs decide the learning rate: its own, or another one's."""
        return self.arms[arm].rate_of or arm

    def tuned(self) -> list[str]:
        """The trained arms whose learning rate is their own."""
        return [arm for arm in self.trained() if self.rate_from(arm) == arm]


def _known(key: str, value: str, names: Collection[str]) -> str:
    if value not in names:
        raise ValueError(f"{key} = {value!r} is not known; known are: {', '.join(names)}")
    return value
