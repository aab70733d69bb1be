"""A teacher that two processes hold together says what one process says."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.config.load import load_config
from opd_core.engines.hf.sharded import ShardedEngine, opened_sharded
from opd_core.prompts.batches import ExampleEncoder
from opd_core.rollout.answers import sample_rollouts
from opd_core.rollout.by_example import by_example
from opd_core.scoring.trees import score_rollouts
from opd_core.tinyworld.world import World
from opd_core.types import Policy, TeacherScore, VideoOPDError
from tests.known import known
from tests.opd_core.engines.vllm_fixtures import make_config, read_examples

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

TWO = ["cluster.workers=1", "cluster.devices_per_worker=2", "cluster.teacher_shards=2"]


@pytest.mark.in_turn
def test_its_rows_are_those_of_one_process(tmp_path: Path, tiny_world: World) -> None:
    config = make_config(
        tmp_path, tiny_world, {"update.max_tokens_per_pack": 400, "score.hidden_states": True}
    )
    examples = read_examples(config, 4)
    policy = Policy(0, config.student.path, "student")
    batches = sample_rollouts(config, policy, examples, set())
    rollouts = by_example(r for batch in batches for r in batch.records)
    teacher = Policy(0, config.teacher.path, "teacher")
    pairs = [(e, rollouts[e.example_id]) for e in examples]
    two = load_config(tmp_path / "tiny.toml", TWO)

    def rows(*overrides: str) -> list[TeacherScore]:
        loaded = load_config(tmp_path / "tiny.toml", overrides)
        return [s for batch in score_rollouts(loaded, teacher, pairs) for s in batch.records]

    assert two.hash == config.hash, "how many cards hold it changes no row"
    for one, shared in zip(rows(), rows(*TWO), strict=True):
        assert (one.rollout_id, one.content_hash) == (shared.rollout_id, shared.content_hash)
        assert shared.teacher_logprobs == pytest.approx(one.teacher_logprobs, abs=1e-5)
        assert known(shared.tail_logprobs) == pytest.approx(known(one.tail_logprobs), abs=1e-4)
        assert shared.topk_token_ids == one.topk_token_ids
        for here, there in zip(known(one.hidden_states), known(shared.hidden_states), strict=True):
            assert there == pytest.approx(here, abs=1e-4)
    encoder = ExampleEncoder(two, teacher.path)
    tokenizer = encoder.prompts.tokenizer
    with opened_sharded(two, teacher.path, "float32", tokenizer, 2) as engine:
        assert isinstance(engine, ShardedEngine)
        mine = sum(w.to_local().numel() for w in engine.model.model.parameters())
        assert mine < 0.6 * sum(w.numel() for w in engine.model.model.parameters())
        engine._others[0].kill()
        with pytest.raises(VideoOPDError, match="one of the 2 processes that hold the model"):
            engine.score([], two.score)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["cluster.devices_per_worker=1"], "cluster.teacher_shards = 2 needs as many cards"),
        (["teacher.quantise='fp8'"], "cluster.teacher_shards is of teacher.engine = 'hf'"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    tmp_path: Path, tiny_world: World, overrides: list[str], said: str
) -> None:
    make_config(tmp_path, tiny_world)
    with pytest.raises(VideoOPDError, match=said):
        load_config(tmp_path / "tiny.toml", [*TWO, *overrides])
