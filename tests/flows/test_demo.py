"""What the demo says of its own rounds."""

from pathlib import Path

import polars as pl
import pytest

from flows.demo import _what_was_filtered
from opd_core.tinyworld.world import make_world
from opd_core.tinyworld.wrongness import paired
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.tiny_config import as_toml, tiny_settings


@pytest.mark.slow
def test_it_says_how_well_trpv_tells_wrong_annotations(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", 3, 8, 2, annotations="loose")
    config = tmp_path / "tiny.toml"
    few = {"rollout.examples_per_round": 16, "evaluate.max_examples": 1}
    config.write_text(as_toml(tiny_settings(tmp_path / "run", world) | few))
    run_without_server(str(config), 1)
    teacher = Run.open(tmp_path / "run").teacher_predictions()
    ious = teacher.group_by("example_id").agg(pl.col("iou").mean()).collect()
    truth = {key: one.iou for key, one in paired(world.train, world.truth).items()}
    dropped = [truth[e] for e, iou in ious.select("example_id", "iou").rows() if iou < 0.3]
    wrong = [truth[e] < 0.5 for e in ious["example_id"]]
    assert 0 < len(dropped) < 16
    assert _what_was_filtered(tmp_path / "run", world, 0.3) == (
        f"TRPV: the teacher's answers fit {len(dropped) / 16:.0%} of 16 annotations too little; "
        f"wrong (IoU with the truth below 0.5) are {sum(wrong) / 16:.0%} of all, "
        f"{sum(iou < 0.5 for iou in dropped) / len(dropped):.0%} of those"
    )
    nothing = _what_was_filtered(tmp_path / "run", world, 0.0)
    assert "fit 0% of 16" in nothing and nothing.endswith("of all"), "no share of none"
