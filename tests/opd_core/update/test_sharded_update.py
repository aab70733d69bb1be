"""An update by two ranks, each with its part of every weight, is that of one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opd_core.config.load import Config, load_config
from opd_core.tinyworld.world import World
from opd_core.types import Policy
from opd_core.update.student import Trained, TrainerFolders, UpdateResult, update_student
from tests.opd_core.engines.vllm_fixtures import Kind, make_config, read_examples
from tests.opd_core.update.gloo_ranks import GlooRanks

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

STEPS = {
    "update.examples_per_step": 3,
    "update.max_steps": 3,
    "update.learning_rate": 1e-3,
    "update.max_tokens_per_pack": 400,  # several packs a step, and not as many on each rank
    "update.max_policy_kl": 1e3,
    "update.max_logprob_mismatch": 1.0,
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlooRanks]:
    two = GlooRanks(2, tmp_path_factory.mktemp("ranks") / "meeting")
    yield two
    two.close()


class Round:
    """A round up to its update."""

    def __init__(self, folder: Path, world: World, kind: Kind) -> None:
        from opd_core.rollout.answers import sample_rollouts
        from opd_core.rollout.by_example import by_example
        from opd_core.scoring.trees import score_rollouts

        self.folder = folder
        self.config = make_config(folder, world, STEPS, kind)
        self.policy = Policy(0, self.config.student.path, "student")
        examples = read_examples(self.config, 9)
        batches = sample_rollouts(self.config, self.policy, examples, set())
        rows = [
            replace(r, student_iou=(i % 3) / 2)  # GRPO has something to compare
            for i, r in enumerate(r for b in batches for r in b.records)
        ]
        rollouts = by_example(rows)
        teacher = Policy(0, self.config.teacher.path, "teacher")
        pairs = [(e, rollouts[e.example_id]) for e in examples]
        scores = {
            s.rollout_id: s for b in score_rollouts(self.config, teacher, pairs) for s in b.records
        }
        self.work = [
            Trained(e, tuple(rows), tuple(scores[r.rollout_id] for r in rows)) for e, rows in pairs
        ]

    def with_settings(self, *overrides: str) -> Config:
        return load_config(self.folder / "tiny.toml", overrides)


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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "policy").glob("*.safetensors")
    return load_file(file)


def assert_same_policy(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    one, other = weights(ours), weights(theirs)
    assert one.keys() == other.keys()
    assert {f.name for f in (ours / "policy").iterdir()} == {
        f.name for f in (theirs / "policy").iterdir()
    }
    for name in one:
        assert one[name].dtype == other[name].dtype
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance)


def assert_same_result(ours: UpdateResult, theirs: UpdateResult) -> None:
    assert [t.rollout_id for t in ours.trained] == [t.rollout_id for t in theirs.trained]
    assert ours.tokens == theirs.tokens
    assert math.isclose(ours.moved_share, theirs.moved_share, abs_tol=1e-3)
    for one, other in zip(ours.steps, theirs.steps, strict=True):
        assert (one.tokens, one.rollouts) == (other.tokens, other.rollouts)
        assert one.learning_rate == other.learning_rate
        for name in ("loss", "grad_norm", "reverse_kl", "policy_kl", "effective_sample_size"):
            a, b = getattr(one, name), getattr(other, name)
            assert a == b or math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-5), name


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
