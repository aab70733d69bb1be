"""A whole round of a tiny Qwen2.5-VL, with each engine: three frames a second, so that a grid is
two thirds of a second and text after the video stands far beyond its height and width."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flows import stages
from flows.stage.prepare import opened
from opd_core.engines.base import Request, SamplingParams
from opd_core.engines.choice import opened_engine
from opd_core.prompts.batches import ExampleEncoder
from opd_core.scoring.trees import describe_scorer, score_rollouts
from opd_core.tinyworld.world import World
from opd_core.types import GroundingExample, Policy, Rollout, VideoOPDError
from tests.known import largest
from tests.opd_core.engines.vllm_fixtures import answered, make_config, read_examples
from tests.stages_before import stages_before

pytestmark = pytest.mark.timeout(300)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "vllm"])
@pytest.mark.in_turn(always=["hf"])
def test_a_whole_round(engine: str, tmp_path: Any, tiny_world: World) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm")
    settings = {
        "rollout.engine": engine,
        "evaluate.engine": engine,
        "rollout.examples_per_round": 6,
        "focus.top_k": 6,
        "update.examples_per_step": 6,
        "video.fps": 3.0,
        "video.max_frames": 36,
        "rollout.max_engine_mismatch": 1e-4,
        "update.max_logprob_mismatch": 1e-4,
    }
    make_config(tmp_path, tiny_world, settings, kind="qwen2_5_vl")
    with opened(str(tmp_path / "tiny.toml")) as work:
        policy = work.policy()
        for stage in stages_before("evaluate"):
            getattr(stages, stage).fn(work, policy)
        stages.evaluate.fn(work, work.policy())
        run = work.run
        rows = run.rollouts().collect()
        assert set(rows["engine"]) == {engine} and len(rows) == 12
        assert largest(rows["engine_mismatch"]) < 1e-5
        seconds = rows["second_per_grid"].unique().to_list()
        assert seconds and all(0.5 < s < 0.9 for s in seconds), "36 frames of 12 seconds"
        (update,) = run.updates().collect().iter_rows(named=True)
        assert update["max_logprob_mismatch"] < 1e-5
        assert update["mean_logprob_mismatch"] <= update["max_logprob_mismatch"]
        assert (update["logprob_bound"], update["mean_logprob_bound"]) == (1e-4, None)
        assert len(run.evaluations().collect()) == 6
        assert run.quarantine().collect().is_empty()


def test_rollouts_of_other_seconds_per_grid_are_not_scored(
    tmp_path: Any, tiny_world: World
) -> None:
    config = make_config(tmp_path, tiny_world, kind="qwen2_5_vl")
    from dataclasses import replace

    from opd_core.rollout.answers import sample_rollouts
    from opd_core.scoring.score_key import content_hash

    policy = Policy(0, config.student.path, "h")
    examples = read_examples(config, 2)
    (batch,) = sample_rollouts(config, policy, examples, set())
    first = batch.records[0]
    other = replace(first, second_per_grid=(first.second_per_grid or 0.0) * 1.5)
    scorer = describe_scorer(config, "p")
    assert content_hash(scorer, "t", first) != content_hash(scorer, "t", other)
    work: list[tuple[GroundingExample, list[Rollout]]] = [(examples[0], [first])]
    assert [s.rollout_id for b in score_rollouts(config, policy, work) for s in b.records] == [
        first.rollout_id
    ]
    with pytest.raises(VideoOPDError, match="other seconds per grid"):
        list(score_rollouts(config, policy, [(examples[0], [other])]))


def test_two_videos_of_one_grid_in_one_batch(tmp_path: Any, tiny_world: World) -> None:
    """Equal tokens and grids, unlike lengths: each is answered as if it were alone."""
    from dataclasses import replace

    config = make_config(tmp_path, tiny_world, kind="qwen2_5_vl")
    encoder = ExampleEncoder(config, config.student.path)
    (batch,) = encoder.encode_batches([read_examples(config, 1)], "test", 0)
    prompt = batch.videos[0][0].prompt
    slow = replace(prompt, vision=replace(prompt.vision, second_per_grid=3.0))
    params = SamplingParams(8, greedy=True)
    found = []
    for asked in ([prompt, slow], [slow, prompt], [slow], [prompt]):
        with opened_engine(config, "hf", config.student.path, "float32", encoder) as engine:
            requests = [[Request(n, p, (1,))] for n, p in enumerate(asked)]
            answers = answered(engine.sample(requests, params))
        found.append([torch.tensor(answers[n][0].logprobs) for n in range(len(asked))])
    torch.testing.assert_close(found[0][0], found[3][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1][0], found[2][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0][1], found[2][0], atol=1e-5, rtol=0)
    assert (found[2][0][:1] - found[3][0][:1]).abs().max() > 1e-3


@pytest.mark.slow
def test_vllm_tells_two_lengths_of_the_same_frames_apart(tmp_path: Any, tiny_world: World) -> None:
    """Its prefix cache knows a video by what is said of its times, too."""
    pytest.importorskip("vllm")
    from dataclasses import replace

    from opd_core.engines.gate import Gate, asked_again
    from opd_core.model.architectures import QWEN2_5_VL
    from opd_core.model.tree_model import TreeModel, load_model

    config = make_config(tmp_path, tiny_world, kind="qwen2_5_vl")
    encoder = ExampleEncoder(config, config.student.path)
    (batch,) = encoder.encode_batches([read_examples(config, 1)], "test", 0)
    item = batch.videos[0][0]
    clip = item.clip
    slow = replace(
        clip,
        fps=clip.fps / 3,
        duration=clip.duration * 3,
        timestamps=tuple(t * 3 for t in clip.timestamps),
    )
    (prompt,) = encoder.prompts.encode(slow, [item.example.query])
    assert prompt.token_ids == item.prompt.token_ids
    assert prompt.vision.second_per_grid == pytest.approx(
        3 * (item.prompt.vision.second_per_grid or 0.0), rel=1e-3
    )
    other = replace(
        item, clip=slow, prompt=prompt, example=replace(item.example, example_id="slow")
    )
    items = [item, other]
    with opened_engine(config, "vllm", config.student.path, "float32", encoder) as engine:
        asked = [[Request(i.example.example_id, i.prompt, (1, 2))] for i in items]
        answers = answered(engine.sample(asked, SamplingParams(8)))
    gate = Gate(encoder.prompts.tokenizer, 8, QWEN2_5_VL, encoder.prompts.positions)
    assert gate.check("vllm", items, answers) == {}
    model = TreeModel(load_model(config.student.path, "float32"), encoder.prompts.tokenizer)
    for i in items:
        tokens = asked_again(model, i, answers, [[i]])
        assert max(token.difference for token in tokens) < 1e-4
