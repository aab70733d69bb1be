"""An update by two ranks, each with its part of every weight, is that of one process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from opd_core.config.load import Config
from opd_core.tinyworld.world import World
from opd_core.types import Policy
from opd_core.update.student import Trained, TrainerFolders, UpdateResult, update_student
from tests.opd_core.engines.vllm_fixtures import Kind
from tests.opd_core.update.gloo_ranks import GlooRanks
from tests.opd_core.update.played_round import Round, assert_same_policy, assert_same_result

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlooRanks]:
    two = GlooRanks(2, tmp_path_factory.mktemp("ranks") / "meeting")
    yield two
    two.close()


@pytest.fixture(scope="module")
def round_of(tmp_path_factory: pytest.TempPathFactory, tiny_world: World) -> Any:
    return cache(lambda kind: Round(tmp_path_factory.mktemp(kind), tiny_world, kind))


def update(
    config: Config,
    parent: Policy,
    work: list[Trained],
    folder: Path,
    together: bool,
    trainer: Path | None = None,
) -> UpdateResult:
    from opd_core.model.ranks import ALONE, Ranks

    return update_student(
        config,
        parent,
        work,
        folder / "policy",
        base=config.student.path,
        trainer=TrainerFolders(trainer, folder / "trainer"),
        ranks=Ranks.joined(torch.device("cpu")) if together else ALONE,
    )


CASES: dict[str, tuple[Kind, list[str]]] = {
    "full": ("qwen3_vl", []),
    "lora": ("qwen3_vl", ["update.lora.rank=4", "update.learning_rate=1e-2"]),
    "2.5": ("qwen2_5_vl", []),
    "2.5 lora": ("qwen2_5_vl", ["update.lora.rank=4", "update.learning_rate=1e-2"]),
    "vision": ("qwen3_vl", ["update.freeze_vision=false", "update.gradient_checkpointing=true"]),
    "grpo": ("qwen3_vl", ["update.objective='grpo'", "update.grpo.reference_kl=0.1"]),
    "policy gradient": ("qwen3_vl", ["update.objective='policy_gradient'", "update.tis='token'"]),
    "half": ("qwen3_vl", ["update.gradient_checkpointing=0.5", "update.skip_special_tokens=true",
                          "update.entropy_weight=true", "update.epochs=2"]),
    "moe": ("qwen3_vl_moe", []),
    "8-bit": ("qwen3_vl", ["update.optimizer='adamw_8bit'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_process_trains(
    ranks: GlooRanks, round_of: Any, tmp_path: Path, case: str
) -> None:
    kind, overrides = CASES[case]
    played: Round = round_of(kind)
    config = played.with_settings(*overrides)
    alone = update(config, played.policy, played.work, tmp_path / "one", False)
    first, second = ranks(update, config, played.policy, played.work, tmp_path / "two", True)
    assert first.steps[0].loss == second.steps[0].loss and first.trained == second.trained
    assert_same_result(first, alone)
    assert_same_policy(tmp_path / "two", tmp_path / "one")
