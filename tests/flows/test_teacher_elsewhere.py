"""A round whose teacher is behind the address of a real vLLM server, its weights not here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from flows.audit.walk import Depth, audit
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.opd_core.engines.vllm_fixtures import make_model
from tests.vllm_server import SERVED_AS, Door, Served

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]


@pytest.mark.in_turn
def test_a_round_of_a_server_that_dies_midway_and_comes_back(
    tiny_config: Callable[..., Path],
    served_teacher: Served,
    tmp_path: Path,
) -> None:
    without = shutil.ignore_patterns("*.safetensors")
    folder = shutil.copytree(served_teacher.folder, tmp_path / "processor", ignore=without)
    door = Door(served_teacher.address, lets_through=16 + 5)  # its own answers, and some scores
    config = tiny_config(
        {
            "student.path": str(make_model(tmp_path / "student")),
            "teacher.path": str(folder),
            "teacher.engine": "vllm_server",
            "vllm_server.address": door.address,
            "vllm_server.model": SERVED_AS,
            "vllm_server.listed": 1000,
            "vllm_server.together": 1,
            "score.prompts_per_batch": 1,  # a video
            "rollout.max_new_tokens": 12,
            "evaluate.max_examples": 1,
            "evaluate.max_new_tokens": 12,
            "focus.top_k": 8,
        }
    )
    with pytest.raises(VideoOPDError, match="does not answer .*goes on where it was"):
        run_without_server(str(config), 1)
    door.close()
    before = Run.open(tmp_path / "run").teacher_scores().collect()
    assert 0 < before.height < 16
    run_without_server(str(config), 1, [f"vllm_server.address={served_teacher.address}"])
    run = Run.open(tmp_path / "run")
    (kept_config,) = (run.path / "configs").iterdir()  # an address is in no hash
    assert served_teacher.address in kept_config.read_text()
    scores = run.teacher_scores().collect()
    assert scores.height == scores["rollout_id"].n_unique() == 16
    kept = scores.filter(pl.col("rollout_id").is_in(before["rollout_id"].implode()))
    assert kept["teacher_logprobs"].to_list() == before["teacher_logprobs"].to_list()
    hashes = {f"remote:{SERVED_AS}"}
    assert set(scores["teacher_hash"]) == set(run.updates().collect()["teacher_hash"]) == hashes
    assert all("not compared with weights" in scorer for scorer in scores["scorer"])
    verdicts = list(audit(run, Depth(videos=0.0)))
    assert [v.broken for v in verdicts if v.broken] == []
    notes = [note for v in verdicts if v.checked is not None for note in v.checked.notes]
    assert any("its weights were never here" in note for note in notes)
