"""A round with as many tokens as Qwen3-VL has: 151,936 rows, the head tied and not.

What nobody sees with the tiny world's 448 tokens is there here: a [C, V] tensor of float32 is 0.6
MB a row, so that a few of them beyond a chunk are what a card does not have.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flows import stages
from flows.audit.walk import Depth, audit
from flows.stage.prepare import opened
from storage.runs.run import Run
from storage.stages import STAGES
from tests import qwen_vocabulary
from tests.flows.conftest import WriteConfig
from tests.qwen_vocabulary import RANKS, ROWS
from tests.stages_before import stages_before

pytestmark = pytest.mark.slow

HIDDEN = 64
CHUNK, ANSWERS, LONGEST = 8, 16, 8
SETTINGS = {
    "rollout.examples_per_round": 4, "rollout.rollouts_per_example": ANSWERS // 4,
    "rollout.max_new_tokens": LONGEST, "focus.curriculum": "uniform", "focus.top_k": 4,
    "update.max_steps": 1, "update.examples_per_step": 4, "evaluate.max_examples": 2,
    "update.completion_rows_per_chunk": CHUNK,
}  # fmt: skip
PLACEHOLDERS = range(151_652, 151_657)
NO_TOKENS = range(151_669, ROWS)


class Wide(TorchDispatchMode):
    """The most rows, as long as the vocabulary and in float32, that were there at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = 0.0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            wide = isinstance(tensor, torch.Tensor) and tensor.ndim == 2
            if wide and tensor.shape[1] == ROWS and tensor.shape[0] != HIDDEN:  # no head, turned
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.rows = max(self.rows, sum(self._alive.values()) / (4 * ROWS))
        return out


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student whose head is its embedding, as the published 2B and 4B have it; a teacher with
    both, as 8B and 32B."""
    folder = tmp_path_factory.mktemp("real")
    return {
        "student": qwen_vocabulary.save_model(folder / "student", 0, tied=True, hidden=HIDDEN),
        "teacher": qwen_vocabulary.save_model(folder / "teacher", 1, tied=False, hidden=HIDDEN),
    }


@pytest.mark.parametrize(
    ("objective", "student", "copies"),
    [("policy_gradient", "student", 3), ("exact_reverse_kl", "teacher", 6)],
    ids=["sampled tokens, tied", "distributions, not tied"],
)
@pytest.mark.in_turn(always=["distributions, not tied"])
def test_a_round_has_no_more_than_a_chunk_of_distributions(
    real: dict[str, Path], write_config: WriteConfig, tmp_path: Path, objective: str,
    student: str, copies: int,
) -> None:  # fmt: skip
    named = {"student.path": real[student], "teacher.path": real["teacher"]}
    config = write_config(tmp_path, SETTINGS | named | {"update.objective": objective})
    with opened(str(config)) as work:
        policy = work.policy_of_round()
        for name in stages_before("update"):
            getattr(stages, name).fn(work, policy)
        with Wide() as wide:
            stages.update.fn(work, policy)
        for name in STAGES[STAGES.index("update") + 1 :]:
            getattr(stages, name).fn(work, work.policy(1))
    run = Run.open(tmp_path / "run")
    rollouts, scores = run.rollouts().collect(), run.teacher_scores().collect()
    tokens = sum(map(len, rollouts["completion_token_ids"]))
    assert tokens > 10 * CHUNK
    # A chunk is of whole answers: it ends with the one that fills it.
    assert 0 < wide.rows <= copies * (CHUNK + LONGEST - 1) < tokens

    said = {token for row in rollouts["completion_token_ids"] for token in row}
    likely = {t for row in scores["topk_token_ids"] for at in row for t in at}
    nobodys = {*PLACEHOLDERS, *NO_TOKENS}
    assert not (said | likely) & nobodys and max(said) > 100_000 and min(likely) < RANKS
    verdicts = list(audit(run, Depth(deep=1.0, seed=0)))
    assert [verdict.broken for verdict in verdicts if verdict.broken] == []


@pytest.mark.in_turn
def test_vllm_says_only_what_is_a_token(
    real: dict[str, Path], write_config: WriteConfig, tmp_path: Path
) -> None:
    """The gate holds each answer against the trainer's own forward pass, over 151,936 rows."""
    named = {"student.path": real["student"], "teacher.path": real["teacher"]}
    engine = {"rollout.engine": "vllm", "vllm.kv_cache_gib": 0.125}
    config = write_config(tmp_path, SETTINGS | named | engine)
    with opened(str(config)) as work:
        policy = work.policy_of_round()
        for name in stages_before("score"):
            getattr(stages, name).fn(work, policy)
    rollouts = Run.open(tmp_path / "run").rollouts().collect()
    assert rollouts.height == ANSWERS and set(rollouts["engine"]) == {"vllm"}
    said = {token for row in rollouts["completion_token_ids"] for token in row}
    assert not said & {*PLACEHOLDERS, *NO_TOKENS} and max(said) > 100_000
