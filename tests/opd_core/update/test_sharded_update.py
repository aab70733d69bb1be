"""An update by two ranks, each with its part of every weight, is that of one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from opd_core.config.load import Config
from opd_core.model.ranks import ALONE, Ranks, dealt
from opd_core.tinyworld.world import World
from opd_core.types import Policy, VideoOPDError
from opd_core.update.rows import HeldRows, Trained
from opd_core.update.student import TrainerFolders, UpdateResult, update_student
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
    return update_student(
        config,
        parent,
        HeldRows(work),
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
    "bfloat16": ("qwen3_vl", ["student.dtype='bfloat16'"]),
    "bfloat16 lora": ("qwen3_vl", ["student.dtype='bfloat16'", "update.lora.rank=4",
                                   "update.learning_rate=1e-2"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.in_turn(always=["full", "lora"])
def test_two_ranks_train_what_one_process_trains(
    ranks: GlooRanks, round_of: Any, tmp_path: Path, case: str
) -> None:
    kind, overrides = CASES[case]
    played: Round = round_of(kind)
    config = played.with_settings(*overrides)
    alone = update(config, played.policy, played.work, tmp_path / "one", False)
    first, second = ranks(update, config, played.policy, played.work, tmp_path / "two", True)
    assert first.steps[0].loss == second.steps[0].loss and first.trained == second.trained
    # Weights are gathered in bfloat16, and what lies between layers is then bfloat16 too: where a
    # gradient is about 0, AdamW may go either way, 1e-3 a step.
    rounded = case == "bfloat16"
    assert_same_result(first, alone, 1e-2 if rounded else 1e-3)
    assert_same_policy(tmp_path / "two", tmp_path / "one", 6e-3 if rounded else 1e-5)


def test_training_goes_on_with_any_number_of_ranks(
    ranks: GlooRanks, round_of: Any, tmp_path: Path
) -> None:
    played: Round = round_of("qwen3_vl")
    config, work = played.with_settings("update.warmup_steps=6"), played.work
    alone = update(config, played.policy, work, tmp_path / "a", False)
    update(config, played.policy, work, tmp_path / "a1", False, tmp_path / "a" / "trainer")
    together = update(config, played.policy, work, tmp_path / "b", False)
    assert together == replace(alone, steps=together.steps)
    after, _ = ranks(
        update, config, played.policy, work, tmp_path / "b1", True, tmp_path / "b" / "trainer"
    )
    assert after.steps[-1].learning_rate == pytest.approx(1e-3), "the warm-up went on"
    assert_same_policy(tmp_path / "b1", tmp_path / "a1")
    update(config, played.policy, work, tmp_path / "c", False, tmp_path / "b1" / "trainer")
    update(config, played.policy, work, tmp_path / "d", False, tmp_path / "a1" / "trainer")
    assert_same_policy(tmp_path / "c", tmp_path / "d")


def test_what_one_rank_refuses_all_refuse(ranks: GlooRanks) -> None:
    first, second = ranks(refused)
    assert first == second and "is not a number of ours" in first


def refused() -> str:
    ranks = Ranks.joined(torch.device("cpu"))

    def fails_once() -> None:
        if ranks.rank == 1:
            raise VideoOPDError("7 is not a number of ours")

    try:
        ranks.together(fails_once)
    except VideoOPDError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    "sizes, ranks, shares",
    [
        ([5, 1, 4, 2, 3], 2, [[0, 1, 3], [2, 4]]),
        ([7, 7, 7], 4, [[0], [1], [2], []]),
        ([], 2, [[], []]),
    ],
)
def test_what_is_dealt_is_even_and_in_order(
    sizes: list[int], ranks: int, shares: list[list[int]]
) -> None:
    assert dealt(sizes, ranks) == shares
