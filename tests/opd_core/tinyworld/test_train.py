"""The training command for a few steps: it learns, it stops, it writes what it did."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opd_core.tinyworld.recipes import RECIPES
from opd_core.tinyworld.train import train

SHIPPED = Path(__file__).parents[3] / "configs" / "tiny"
FEW: dict[str, Any] = {
    "train_videos": 4,
    "eval_videos": 2,
    "videos_per_step": 2,
    "world_seed": 5,
    "warmup": 1,
}


def test_a_few_steps_write_a_checkpoint_and_its_record(tmp_path: Path) -> None:
    settings = replace(RECIPES["student"], vision_steps=2, vision_videos_per_step=2, **FEW)
    lines: list[str] = []
    result = train("student", tmp_path / "out", steps=2, settings=settings, report=lines.append)
    assert json.loads((tmp_path / "out/TRAINING.json").read_text()) == result
    assert (tmp_path / "out/model.safetensors").is_file()
    assert result["settings"]["steps"] == 2
    assert result["eval"]["sentences"] >= 4
    assert lines


@pytest.mark.parametrize(
    ("name", "before", "still"),
    [
        ("long-teacher", "teacher", {"steps": 1, "lr": 0.0}),
        ("long-loose-student", "long-teacher", {"loose_steps": 1, "loose_lr": 0.0}),
    ],
)
def test_a_model_of_the_long_scene_begins_with_a_shipped_one(
    tmp_path: Path, name: str, before: str, still: dict[str, Any]
) -> None:
    settings = replace(RECIPES[name], **FEW, **still)
    result = train(name, tmp_path / "out", settings=settings, shipped=SHIPPED)
    begun, made = (
        load_file(folder / "model.safetensors") for folder in (SHIPPED / before, tmp_path / "out")
    )
    assert begun.keys() == made.keys()
    assert all(torch.equal(weight, made[name]) for name, weight in begun.items())
    assert result["settings"]["scene"] == "long" and result["final_loss"] > 0
