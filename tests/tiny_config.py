"""A config on the tiny world whose rounds take a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def tiny_settings(run: Path, world: Any) -> dict[str, Any]:
    """Eight examples a round with the shipped models.

    Any teacher counts as reliable, so that a test does not depend on how good the models are.
    """
    return {
        "run.path": str(run),
        "data.train": str(world.train),
        "data.eval": str(world.eval),
        "data.videos": str(world.videos),
        "student.path": str(ROOT / "configs" / "tiny" / "student"),
        "student.dtype": "float32",
        "teacher.path": str(ROOT / "configs" / "tiny" / "teacher"),
        "teacher.dtype": "float32",
        "teacher.predictions": 2,
        "video.max_frames": 24,
        "video.max_video_tokens": 12,  # the size they were trained on: else answers hold no span
        "rollout.examples_per_round": 8,
        "rollout.rollouts_per_example": 2,
        "rollout.max_new_tokens": 24,
        "focus.min_teacher_iou": 0.0,
        "focus.top_k": 4,
        "update.objective": "exact_reverse_kl",
        "update.learning_rate": 1e-3,
        "update.examples_per_step": 4,
        "evaluate.max_examples": 6,
        "evaluate.max_new_tokens": 24,
        "machine.device": "cpu",
        "machine.threads": 1,
    }


def as_toml(values: dict[str, Any]) -> str:
    """`{"focus.top_k": 4}` as `focus.top_k = 4`."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in values.items())


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case dict():
            return "{" + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(_toml_value(item) for item in value) + "]"
        case _:
            return repr(value)
