"""The gate, one fault at a time, on real prompts of the tiny world and made-up answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opd_core.config.load import Config, load_config
from opd_core.engines.base import Request, Sample, SamplingParams, SeenPrompt, pixel_sample
from opd_core.engines.gate import Gate, asked_again, mismatches
from opd_core.engines.hf.sampling import HFEngine
from opd_core.model.agreement import bound_for
from opd_core.model.architectures import QWEN3_VL
from opd_core.model.positions import PositionRule
from opd_core.model.prefix_tree import Pack
from opd_core.model.tree_model import TreeModel
from opd_core.prompts.batches import EncodedExample, ExampleEncoder
from opd_core.rollout import answers as rollouts
from opd_core.tinyworld.world import World
from opd_core.types import Policy, VideoOPDError
from tests.known import known
from tests.opd_core.engines.vllm_fixtures import Answers, Videos, make_config, read_examples

NEW_TOKENS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_world: World) -> Config:
    return make_config(tmp_path_factory.mktemp("alignment"), tiny_world)


@pytest.fixture(scope="module")
def encoder(config: Config) -> ExampleEncoder:
    return ExampleEncoder(config, config.student.path)


@pytest.fixture(scope="module")
def items(config: Config, encoder: ExampleEncoder) -> list[EncodedExample]:
    (batch,) = encoder.encode_batches([read_examples(config, 3)], "test", 0)
    return [item for video in batch.videos for item in video]


@pytest.fixture
def gate(encoder: ExampleEncoder) -> Gate:
    return Gate(encoder.prompts.tokenizer, NEW_TOKENS, QWEN3_VL)


def seen(item: EncodedExample, **changes: Any) -> SeenPrompt:
    prompt = item.prompt
    content = SeenPrompt(
        prompt.token_ids,
        prompt.vision.grid_thw,
        pixel_sample(prompt.vision.patches),
        item.clip.pixel_hash,
    )
    return replace(content, **changes)


def good(item: EncodedExample) -> Sample:
    return Sample((5, 6, 7, 8), (-1.0, -2.0, -0.5, -0.1), "length", seen(item))


def test_a_good_answer_passes(gate: Gate, items: list[EncodedExample]) -> None:
    assert gate.check("hf", items, {i.example.example_id: [good(i)] for i in items}) == {}


def placeholder(gate: Gate) -> int:
    return min(gate._excluded)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finish_reason": "abort"}, "the finish reason is 'abort'"),
        ({"token_ids": (), "logprobs": ()}, "it has no tokens"),
        ({"token_ids": (5, 6), "logprobs": (-1.0, -1.0)}, "cut off at 2 tokens of 4"),
        ({"logprobs": (-1.0, -2.0)}, "2 log-probs for 4 tokens"),
        ({"logprobs": (-1.0, float("nan"), -1.0, -1.0)}, "log-prob of token 1 is nan"),
        ({"logprobs": (-1.0, -1.0, -1.0, float("-inf"))}, "log-prob of token 3 is -inf"),
        ({"token_ids": (5, 6, 10**6, 8)}, "token 2 is 1000000, which no policy may say"),
        ({"prompt": None}, "does not say which prompt"),
    ],
)
def test_a_bad_answer_is_refused(
    gate: Gate, items: list[EncodedExample], changes: dict[str, Any], reason: str
) -> None:
    assert reason in known(gate.fault(items[0], replace(good(items[0]), **changes)))


def test_a_placeholder_is_refused(gate: Gate, items: list[EncodedExample]) -> None:
    token = placeholder(gate)
    sample = replace(good(items[0]), token_ids=(5, token, 7, 8))
    assert f"token 1 is {token}" in known(gate.fault(items[0], sample))


def test_another_prompt_is_refused(gate: Gate, items: list[EncodedExample]) -> None:
    item = items[0]
    ids = list(item.prompt.token_ids)
    ids[-3] += 1
    wrong = seen(item, token_ids=tuple(ids))
    assert f"token {len(ids) - 3} of its prompt" in known(gate.prompt_fault(item, wrong))
    wrong = seen(item, token_ids=tuple(ids[:-3]))
    assert f"has {len(ids) - 3} tokens, ours {len(ids)}" in known(gate.prompt_fault(item, wrong))
    wrong = seen(item, grid_thw=(1, 2, 3))
    assert "grid is (1, 2, 3)" in known(gate.prompt_fault(item, wrong))
    wrong = seen(item, pixel_hash="0" * 16)
    assert "frames are 0000" in known(gate.prompt_fault(item, wrong))


def test_other_timestamps_are_named(
    gate: Gate, items: list[EncodedExample], encoder: ExampleEncoder
) -> None:
    item = items[0]
    text = encoder.prompts.tokenizer.decode(list(item.prompt.token_ids))
    first = text[text.index("<") :]
    first = first[first.index("seconds") - 4 :].split(" ")[0].lstrip("<")
    other = encoder.prompts.tokenizer(text.replace(f"<{first} seconds>", "<9.9 seconds>"))
    wrong = seen(item, token_ids=tuple(other["input_ids"]))
    fault = gate.prompt_fault(item, wrong)
    assert (
        fault == f"a frame's timestamp is <9.9 seconds> to the engine and <{first} seconds> to us"
    )


def test_other_pixels_are_refused_and_bfloat16_is_not(
    gate: Gate, items: list[EncodedExample]
) -> None:
    item = items[0]
    patches = item.prompt.vision.patches
    assert gate.prompt_fault(item, seen(item, pixels=pixel_sample(patches.bfloat16()))) is None
    shifted = seen(item, pixels=pixel_sample(patches * 1.1 + 0.05))
    assert "image processor's mean" in known(gate.prompt_fault(item, shifted))


def test_one_bad_example_is_set_aside_and_all_bad_ones_stop_the_stage(
    gate: Gate, items: list[EncodedExample]
) -> None:
    answers: Answers = {i.example.example_id: [good(i), good(i)] for i in items}
    first = items[0].example.example_id
    answers[first][1] = replace(good(items[0]), finish_reason="error")
    assert gate.check("hf", items, answers) == {first: "answer 1: the finish reason is 'error'"}
    bad: Answers = {i.example.example_id: [replace(good(i), finish_reason="error")] for i in items}
    with pytest.raises(VideoOPDError, match=f"all 3 examples of a batch fail, example {first}"):
        gate.check("hf", items, bad)


@pytest.fixture(scope="module")
def engine(config: Config, encoder: ExampleEncoder) -> HFEngine:
    return HFEngine.load(config.student.path, encoder.prompts.tokenizer, "float32", "cpu")


@pytest.fixture(scope="module")
def answers(engine: HFEngine, items: list[EncodedExample]) -> Answers:
    item = items[0]
    request = Request(item.example.example_id, item.prompt, (1, 2, 3))
    return engine.sample([[request]], SamplingParams(NEW_TOKENS))


def test_the_comparison_agrees_with_the_hf_engine(
    engine: HFEngine, items: list[EncodedExample], answers: Answers
) -> None:
    tokens = asked_again(engine.model, items[0], answers, [[items[0]]])
    assert {token.sample for token in tokens} == {0, 1, 2}
    assert max(token.difference for token in tokens) < 1e-5


@pytest.mark.parametrize("wrong", [-9.0, float("nan")])
def test_the_comparison_names_example_token_and_both_values(
    config: Config,
    encoder: ExampleEncoder,
    engine: HFEngine,
    items: list[EncodedExample],
    answers: Answers,
    wrong: float,
) -> None:
    name = items[0].example.example_id
    samples = list(answers[name])
    logprobs = list(samples[1].logprobs)
    right, logprobs[2] = logprobs[2], wrong
    samples[1] = replace(samples[1], logprobs=tuple(logprobs))
    with pytest.raises(VideoOPDError) as error:
        mismatches(
            config, config.student.path, "float32", encoder, engine, items[0], {name: samples}
        )
    text = str(error.value)
    assert text.startswith(f"token 2 ({samples[1].token_ids[2]}) of answer 1 to example {name}")
    assert f"{wrong:.6f} from the engine 'hf' and {right:.4f}" in text
    assert "rollout.max_engine_mismatch = 0.001 (more than rounding in float32 on a CPU" in text


def test_the_default_bounds_follow_the_arithmetic() -> None:
    exact = bound_for(None, ("float32", "float32"), "cpu")
    assert (exact.largest, exact.mean) == (1e-3, None)
    coarse = bound_for(None, ("float32", "bfloat16"), "cpu")
    assert coarse.largest > 1.95, "an honest token of the shipped teacher"
    # Honest means are below 0.01; a third more seconds per grid gives 0.066.
    assert coarse.mean_fault([0.009] * 100 + [1.9]) is None
    assert coarse.mean_fault([0.066] * 200) and coarse.mean_fault([float("nan")])
    assert bound_for(None, ("float32", "float32"), "cuda").largest > 2.1e-3
    given = bound_for(0.25, ("bfloat16", "bfloat16"), "cpu")
    assert given.largest == 0.25 and given.mean_fault([0.2] * 1000) is None


@pytest.fixture(scope="module")
def batch(config: Config, encoder: ExampleEncoder) -> Videos:
    """Eight sentences of several videos."""
    (batch,) = encoder.encode_batches([read_examples(config, 8)], "test", 0)
    assert len(batch.videos) > 2 and any(len(video) > 1 for video in batch.videos)
    return batch.videos


def ask_engine(engine: HFEngine, videos: Videos) -> Answers:
    asked = [[Request(i.example.example_id, i.prompt, (1, 2, 3)) for i in v] for v in videos]
    return engine.sample(asked, SamplingParams(NEW_TOKENS))


def compare_batch(
    config: Config, encoder: ExampleEncoder, engine: HFEngine, videos: Videos, answers: Answers
) -> dict[tuple[str, int], float]:
    items = [item for video in videos for item in video]
    folder = config.student.path
    return mismatches(config, folder, "float32", encoder, engine, items[0], answers, items)


def test_the_comparison_asks_in_another_order_and_packing(
    config: Config,
    encoder: ExampleEncoder,
    engine: HFEngine,
    batch: Videos,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = ask_engine(engine, batch)
    packs: list[tuple[TreeModel, Pack]] = []
    run = TreeModel.completion_distributions

    def watched(self: TreeModel, packed: Pack, layout: Any = None) -> Any:
        packs.append((self, packed))
        return run(self, packed, layout)

    monkeypatch.setattr(TreeModel, "completion_distributions", watched)
    found = compare_batch(config, encoder, engine, batch, answers)
    first = batch[0][0].example.example_id
    assert set(found) == {(first, n) for n in range(3)} and max(found.values()) < 1e-5
    (model, together), (_, alone) = packs
    assert model is not engine.model, "nothing that the engine has kept is used"
    assert len(together.trees) == 2 and together.trees[0].vision is batch[-1][0].prompt.vision
    asked: list[Any] = list(together.completions)
    names = list(dict.fromkeys(key for key, _ in asked))
    assert names == [
        i.example.example_id for video in (batch[-1], batch[0]) for i in reversed(video)
    ]
    assert [n for key, n in asked if key == first] == [2, 1, 0]
    assert list(alone.completions) == [(first, 0)] and len(alone.trees[0].segments) == 2


def test_a_difference_of_5e_3_is_caught(
    config: Config, encoder: ExampleEncoder, engine: HFEngine, batch: Videos
) -> None:
    """In any answer that the gate asks for again: of the example, its video, another video."""
    answers = ask_engine(engine, batch)
    assert compare_batch(config, encoder, engine, batch, answers)
    for item in (batch[0][0], batch[0][-1], batch[-1][0]):
        name = item.example.example_id
        samples = list(answers[name])
        logprobs = [samples[2].logprobs[0] - 5e-3, *samples[2].logprobs[1:]]
        samples[2] = replace(samples[2], logprobs=tuple(logprobs))
        with pytest.raises(VideoOPDError, match=rf"of answer 2 to example {name} .* = 0\.001 "):
            compare_batch(config, encoder, engine, batch, {**answers, name: samples})


def shifted_in_later_trees(self: Pack, prompt_positions: Any) -> np.ndarray:
    """A packing fault: what follows the first tree stands one position late, time alone."""
    found = POSITIONS(self, prompt_positions)
    if len(self.starts) > 1:
        found[0, self.starts[1][0] :] *= 2
    return found


POSITIONS = Pack.positions


def test_a_fault_of_packing_is_caught_whoever_has_it(
    config: Config,
    encoder: ExampleEncoder,
    engine: HFEngine,
    batch: Videos,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same faulty code samples and trains; only the packing differs."""
    monkeypatch.setattr(Pack, "positions", shifted_in_later_trees)
    answers = ask_engine(engine, batch)
    with pytest.raises(VideoOPDError, match="further apart than rollout.max_engine_mismatch"):
        compare_batch(config, encoder, engine, batch, answers)


def test_positions_that_the_engine_kept_are_not_the_trainers(
    config: Config, encoder: ExampleEncoder, engine: HFEngine, batch: Videos
) -> None:
    """A stale cache is in the sampler and nowhere else."""
    kept = engine.model._prompt_positions
    ask_engine(engine, batch)
    for key in list(kept):
        kept[key] = kept[key] * 2
    answers = ask_engine(engine, batch)
    kept.clear()
    with pytest.raises(VideoOPDError, match="further apart than rollout.max_engine_mismatch"):
        compare_batch(config, encoder, engine, batch, answers)


def test_in_bfloat16_the_mean_shows_a_fault(
    tmp_path: Path, tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third more seconds per grid, in the sampler alone: no token is far off, most are a bit."""
    config = make_config(tmp_path, tiny_world, {"student.dtype": "bfloat16"}, "qwen2_5_vl")
    encoder = ExampleEncoder(config, config.student.path)
    (found,) = encoder.encode_batches([read_examples(config, 8)], "test", 0)
    items = [item for video in found.videos for item in video]
    folder, tokenizer = config.student.path, encoder.prompts.tokenizer

    def ask() -> tuple[HFEngine, Answers]:
        engine = HFEngine.load(folder, tokenizer, "bfloat16", "cpu")
        asked = [[Request(i.example.example_id, i.prompt, tuple(range(8))) for i in v]
                 for v in found.videos]  # fmt: skip
        return engine, engine.sample(asked, SamplingParams(24))

    def check(engine: HFEngine, answers: Answers) -> dict[tuple[str, int], float]:
        return mismatches(config, folder, "bfloat16", encoder, engine, items[0], answers, items)

    assert max(check(*ask()).values()) > 1e-3
    right = PositionRule.positions
    with monkeypatch.context() as patched:
        patched.setattr(
            PositionRule,
            "positions",
            lambda self, tokens, vision: right(
                self, tokens, replace(vision, second_per_grid=vision.second_per_grid * 4 / 3)
            ),
        )
        engine, answers = ask()
    with pytest.raises(VideoOPDError, match="mean difference .*more than rounding in bfloat16"):
        check(engine, answers)


def test_other_seconds_or_positions_are_refused(
    encoder: ExampleEncoder, items: list[EncodedExample]
) -> None:
    item = items[0]
    gate = Gate(encoder.prompts.tokenizer, NEW_TOKENS, QWEN3_VL, encoder.prompts.positions)
    place = encoder.prompts.positions.answer_position(item.prompt.token_ids, item.prompt.vision)
    assert gate.prompt_fault(item, seen(item, answer_position=place)) is None
    fault = gate.prompt_fault(item, seen(item, answer_position=place - 1))
    assert fault == f"the engine puts the answer at position {place - 1}, we at {place}"
    assert "position None" in known(gate.prompt_fault(item, seen(item)))
    fault = gate.prompt_fault(item, seen(item, answer_position=place, second_per_grid=1.5))
    assert fault == "the engine counts 1.5 seconds per grid, we None"


def test_engines_say_where_their_answer_stands(
    encoder: ExampleEncoder, engine: HFEngine, batch: Videos
) -> None:
    gate = Gate(encoder.prompts.tokenizer, NEW_TOKENS, QWEN3_VL, encoder.prompts.positions)
    items = [item for video in batch for item in video]
    assert gate.check("hf", items, ask_engine(engine, batch)) == {}


def test_rows_that_were_compared_carry_the_difference(config: Config) -> None:
    policy = Policy(0, config.student.path, "h")
    (batch,) = rollouts.sample_rollouts(config, policy, read_examples(config, 3), set())
    found = [row.engine_mismatch for row in batch.records]
    assert all(0 <= known(d) < 1e-5 for d in found[:2]) and set(found[2:]) == {None}


def test_configs_name_their_engine(tmp_path: Path, tiny_world: World) -> None:
    with pytest.raises(
        VideoOPDError, match=r"rollout.engine knows no 'sglang'; known are: hf, vllm"
    ):
        make_config(tmp_path, tiny_world, {"rollout.engine": "sglang"})
    path = make_config(tmp_path, tiny_world, {"update.tis": "sequence"}).run.path.parent
    assert load_config(path / "tiny.toml").update.tis == "sequence"
