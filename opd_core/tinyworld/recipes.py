"""How each of the tiny models is trained, by its name: those in configs/tiny were made by these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights of one of the tiny models."""

    size: Literal["teacher", "student"]
    """Whose layers and widths it has (`models.SIZES`)."""
    steps: int
    """Updates of stage 2."""
    horizon: int
    """Steps after which the learning rate of stage 2 would reach its floor; beyond `steps` for
    a model that is stopped early."""
    lr: float
    videos_per_step: int = 8
    """About 24 sentences."""
    vision_steps: int = 500
    """Updates of stage 1."""
    vision_lr: float = 4e-3
    vision_videos_per_step: int = 32
    vision_rate: float = 0.3
    """Learning rate of the vision tower in stage 2, relative to `lr`."""
    answer_weight: float = 8.0
    """The mean is over 16 tokens, of which 3 say anything."""
    inside_layer: int = 2
    """Layer, counted from 0, after which the model should know which seconds are meant."""
    pointing_steps: int = 1000
    """Steps over which the pointing losses fade to a tenth."""
    warmup: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    world_seed: int = 1000
    """Never that of a world in which the pipeline is proven."""
    train_videos: int = 3000
    eval_videos: int = 200
    loose_steps: int = 0
    """Updates of stage 3."""
    loose_lr: float = 1e-3
    scene: str = "short"
    """Of the videos, by its name."""
    begins_with: str | None = None
    """The model whose weights it begins with, instead of random ones."""


_TEACHER = Recipe("teacher", steps=1500, horizon=1500, lr=1.5e-3)
_STUDENT = Recipe("student", steps=600, horizon=1500, lr=1.5e-3, inside_layer=1)
# What sees short videos and points at their moments need not learn that again: a third of the steps
# do, on longer videos. From nothing, hardly anything is there after 500 (docs/log.md).
_LONG: dict[str, Any] = {
    "scene": "long",
    "videos_per_step": 4,
    "vision_steps": 0,
    "lr": 1e-3,
}
RECIPES: dict[str, Recipe] = {
    "teacher": _TEACHER,
    "student": _STUDENT,
    "loose-student": replace(_STUDENT, steps=1500, loose_steps=300),
    "long-teacher": replace(
        _TEACHER, begins_with="teacher", steps=500, horizon=500, train_videos=600, **_LONG
    ),
    # Half an hour does not teach a student's size to see 48 s (docs/log.md): the teacher, made
    # loose.
    "long-loose-student": replace(
        _TEACHER,
        begins_with="long-teacher",
        steps=0,
        train_videos=1000,
        loose_steps=200,
        loose_lr=5e-4,
        **_LONG,
    ),
}
"""By the name of the model and of its folder."""
