"""vLLM as the engine of a worker on Ray, which has a vLLM process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.config.load import load_config
from opd_core.rollout.answers import sample_rollouts
from opd_core.tinyworld.world import World
from opd_core.types import Policy, make_rollout_id
from tests.opd_core.engines.vllm_fixtures import NEEDS_VLLM, engines, make_config, read_examples

pytest.importorskip("ray")
pytestmark = [NEEDS_VLLM, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.in_turn
def test_a_worker_answers_by_vllm(tmp_path: Path, tiny_world: World) -> None:
    """Batches handed out one by one, the gate between, the trainer's own log-probs; and no process
    is left."""
    settings = {"rollout.engine": "vllm", "rollout.prompts_per_batch": 2}
    make_config(tmp_path, tiny_world, settings)
    config = load_config(tmp_path / "tiny.toml", ["cluster.workers=1"])
    examples = read_examples(config, 5)
    student = Policy(0, config.student.path, "h")
    before = engines()
    found = sample_rollouts(config, student, examples, set())
    batches = [next(found)]
    assert len(engines() - before) == 1, "the worker has one of its own"
    batches += found
    assert not any(batch.quarantined for batch in batches)
    rows = [row for batch in batches for row in batch.records]
    assert sorted(row.rollout_id for row in rows) == sorted(
        make_rollout_id(0, e.example_id, n)
        for e in examples
        for n in range(config.rollout.rollouts_per_example)
    )
    assert {row.engine for row in rows} == {"vllm"}
    measured = [row.engine_mismatch for row in rows if row.engine_mismatch is not None]
    assert measured and max(measured) < 1e-4
    assert engines() == before
