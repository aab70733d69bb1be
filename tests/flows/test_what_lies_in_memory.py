"""Rounds with each thing that may lie in memory: what is published, what the trainer keeps, and
what the next round goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd_core.model.weight_files import stored_tensors
from opd_core.types import Update
from opd_core.update.continuation import OPTIMIZER_FILE
from opd_core.update.trainer_state import WEIGHTS_FILE
from storage.audit import links
from storage.runs.run import Run
from tests.flows.conftest import KILLED, Launch, WriteConfig
from tests.flows.kill_points import run_without_server

TRUTH = {
    "update.objective": "sft", "rollout.source": "truth", "rollout.rollouts_per_example": 1,
    "rollout.examples_per_round": 4, "focus.curriculum": "uniform", "evaluate.max_examples": 2,
    "student.dtype": "bfloat16",
}  # fmt: skip
RECIPES: dict[str, dict[str, object]] = {
    "float32": {},
    "float32, 8-bit": {"update.optimizer": "adamw_8bit"},
    "bfloat16": {"update.weights": "bfloat16"},
    "bfloat16, 8-bit": {"update.weights": "bfloat16", "update.optimizer": "adamw_8bit"},
    "bfloat16, 4-bit": {"update.weights": "bfloat16", "update.optimizer": "adamw_4bit"},
    "offload": {"update.offload": True},
    "lora": {"update.lora.rank": 4},
    "lora, bfloat16, 8-bit": {
        "update.lora.rank": 4, "update.weights": "bfloat16", "update.optimizer": "adamw_8bit",
    },
    "lora, offload": {"update.lora.rank": 4, "update.offload": True},
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.in_turn(always=["float32", "bfloat16, 8-bit"])
def test_two_rounds(write_config: WriteConfig, tmp_path: Path, recipe: str) -> None:
    run_without_server(str(write_config(tmp_path, TRUTH | RECIPES[recipe])), 2)
    run = Run.open(tmp_path / "run")
    first, second = sorted(run.read("updates", Update), key=lambda u: u.policy_version)
    assert second.optimizer_restarted is None
    assert all(u.moved_share is not None and 0 < u.moved_share <= 1 for u in (first, second))
    _knows_what_its_stages_took(first)
    links.weights(run)
    policies = [run.policy(version) for version in (1, 2)]
    for policy in policies:
        assert {t.dtype for t in stored_tensors(policy.path).values()} == {"BF16"}
        assert not (policy.path / OPTIMIZER_FILE).exists()
    assert [f.name for f in (run.path / "trainer").iterdir()] == ["v2"], "the newest alone"
    trainer = run.trainer_folder(policies[1])
    assert trainer is not None
    saved = torch.load(trainer / OPTIMIZER_FILE, weights_only=True)
    assert saved["steps_done"] == len(first.steps) + len(second.steps)
    has_weights = "bfloat16" not in recipe
    assert (trainer / WEIGHTS_FILE).exists() == has_weights
    if has_weights:
        exact = load_file(trainer / WEIGHTS_FILE)
        assert {t.dtype for t in exact.values()} == {torch.float32}
        assert any(not t.bfloat16().float().equal(t) for t in exact.values())


@pytest.mark.kill
@pytest.mark.in_turn
def test_a_second_round_that_was_killed_ends_with_the_same_weights(
    launch: Launch, write_config: WriteConfig, tmp_path: Path
) -> None:
    """Killed between the trainer's folder and the policy's, then just after the commit."""
    settings = TRUTH | RECIPES["float32, 8-bit"]
    run_without_server(str(write_config(tmp_path / "undisturbed", settings)), 2)
    expected = Run.open(tmp_path / "undisturbed" / "run").policy(2)
    config = write_config(tmp_path / "killed", settings)
    run_without_server(str(config), 1)
    for point in ("after rename", "after append:updates"):
        assert launch(config, point) == KILLED
        folders = sorted(
            f.name for f in (config.parent / "run" / "trainer").iterdir() if f.is_dir()
        )
        assert folders == ["v1", "v2"], "of the round before, and what could be taken for the next"
    run = Run.open(config.parent / "run")
    assert run.policy(2).weights_hash == expected.weights_hash
    ours, theirs = (
        load_file(folder / "run" / "trainer" / "v2" / WEIGHTS_FILE)
        for folder in (config.parent, tmp_path / "undisturbed")
    )
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def _knows_what_its_stages_took(update: Update) -> None:
    uses = {use.stage: use for use in update.stages or ()}
    assert list(uses)[-1] == "update" and {"rollout", "update"} <= uses.keys()
    trained = uses["update"]
    assert trained.tokens is not None and trained.tokens > update.tokens
    assert trained.tokens_per_second == pytest.approx(trained.tokens / trained.seconds)
    assert uses["rollout"].tokens is None, "the truth is written, not sampled"
    for use in uses.values():
        assert use.memory_of == "process" and 10**7 < use.peak_memory < 10**11
