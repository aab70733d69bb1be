"""A round up to its update, made without tables, and what two updates of it are compared by."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from opd_core.config.load import Config, load_config
from opd_core.tinyworld.world import World
from opd_core.types import Policy
from opd_core.update.rows import Trained
from opd_core.update.student import UpdateResult
from tests.opd_core.engines.vllm_fixtures import Kind, make_config, read_examples

STEPS = {
    "update.examples_per_step": 3,
    "update.max_steps": 3,
    "update.learning_rate": 1e-3,
    "update.max_tokens_per_pack": 400,  # several packs a step, and not as many on each rank
    "update.max_policy_kl": 1e3,
    "update.max_logprob_mismatch": 1.0,
}


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


def assert_same_result(ours: UpdateResult, theirs: UpdateResult, tolerance: float = 1e-3) -> None:
    assert [t.rollout_id for t in ours.trained] == [t.rollout_id for t in theirs.trained]
    assert ours.tokens == theirs.tokens
    assert math.isclose(ours.moved_share, theirs.moved_share, abs_tol=1e-3)
    for one, other in zip(ours.steps, theirs.steps, strict=True):
        assert (one.tokens, one.rollouts) == (other.tokens, other.rollouts)
        assert one.learning_rate == other.learning_rate
        for name in ("loss", "grad_norm", "reverse_kl", "policy_kl", "effective_sample_size"):
            a, b = getattr(one, name), getattr(other, name)
            assert a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance / 100), name
