"""The update stage of a run on a cluster: the rows and weights of one process, and the audit's
consent; then a round without the cluster goes on from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows import stages
from flows.cli import main
from flows.stage.prepare import opened
from storage.runs.run import Run
from tests.stages_before import stages_before

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROUND = {
    "update.examples_per_step": 2,
    "rollout.examples_per_round": 6,
    "focus.top_k": 6,
    "evaluate.max_examples": 2,
}


@pytest.mark.in_turn
def test_an_update_stage_and_the_round_after_it(write_config: Any, tmp_path: Path) -> None:
    alone = write_config(tmp_path / "alone", ROUND)
    with opened(str(alone)) as work:
        for name in ("evaluate", *stages_before("update")):
            getattr(stages, name).fn(work, work.policy())
    shutil.copytree(tmp_path / "alone" / "run", tmp_path / "two" / "run")
    two = write_config(tmp_path / "two", ROUND | {"cluster.workers": 2})
    for config in (alone, two):
        with opened(str(config)) as work:
            stages.update.fn(work, work.policy())
    one, together = (Run.open(config.with_name("run")) for config in (alone, two))
    assert one.current_policy().version == together.current_policy().version == 1
    rows_of = [run.updates().collect().iter_rows(named=True) for run in (together, one)]
    for ours, theirs in zip(*rows_of, strict=True):
        for name in ("rollouts", "tokens", "objective", "stopped_early", "config_hash"):
            assert ours[name] == theirs[name], name
        assert ours["moved_share"] == pytest.approx(theirs["moved_share"], abs=1e-3)
        uses = {use["stage"]: use for use in ours["stages"]}
        assert uses["update"]["tokens"] and uses["update"]["peak_memory"] > 100 << 20
    trained = [run.trained_rollouts().collect() for run in (together, one)]
    assert trained[0]["rollout_id"].to_list() == trained[1]["rollout_id"].to_list()
    weights = [load_file(run.policy(1).path / "model.safetensors") for run in (together, one)]
    for name in weights[1]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=1e-5)
    assert main(["audit", str(together.path), "--videos", "0"]) == 0
    write_config(tmp_path / "two", ROUND)
    with opened(str(two)) as work:
        for name in stages_before("evaluate"):
            getattr(stages, name).fn(work, work.policy())
    rows = Run.open(together.path).updates().collect()
    assert rows["optimizer_restarted"].to_list() == [None, None], "moments of ranks go on"
