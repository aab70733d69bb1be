"""The training command for a few steps: it learns, it stops, it writes what it did."""

import json
from dataclasses import replace
from pathlib import Path

from opd_core.tinyworld.recipes import RECIPES
from opd_core.tinyworld.train import train


def test_a_few_steps_write_a_checkpoint_and_its_record(tmp_path: Path) -> None:
    settings = replace(
        RECIPES["student"],
        vision_steps=2,
        vision_videos_per_step=2,
        videos_per_step=2,
        train_videos=4,
        eval_videos=2,
        world_seed=5,
        warmup=1,
    )
    lines: list[str] = []
    result = train("student", tmp_path / "out", steps=2, settings=settings, report=lines.append)
    assert json.loads((tmp_path / "out/TRAINING.json").read_text()) == result
    assert (tmp_path / "out/model.safetensors").is_file()
    assert result["settings"]["steps"] == 2
    assert result["eval"]["sentences"] >= 4
    assert lines
