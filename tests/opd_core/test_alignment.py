"""The gate, one fault at a time, on real prompts of the tiny world and made-up answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opd_core import rollout as rollouts
from opd_core.alignment import Gate, probe, probe_engine
from opd_core.config import load_config
from opd_core.sampling import Sample, SamplingParams, SeenPrompt, pixel_sample
from opd_core.types import VideoOPDError
from tests.opd_core.vllm_fixtures import make_config, read_examples

NEW_TOKENS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_world):
    return make_config(tmp_path_factory.mktemp("alignment"), tiny_world)


@pytest.fixture(scope="module")
def encoder(config):
    from opd_core.encoding import ExampleEncoder

    return ExampleEncoder(config, config.student.path)


@pytest.fixture(scope="module")
def items(config, encoder):
    (batch,) = encoder.encode_batches([read_examples(config, 3)], "test", 0)
    return [item for video in batch.videos for item in video]


@pytest.fixture
def gate(encoder):
    return Gate(encoder.prompts.tokenizer, NEW_TOKENS)


def seen(item, **changes):
    prompt = item.prompt
    content = SeenPrompt(
        prompt.token_ids,
        prompt.vision.grid_thw,
        pixel_sample(prompt.vision.patches),
        item.clip.pixel_hash,
    )
    return replace(content, **changes)


def good(item):
    return Sample((5, 6, 7, 8), (-1.0, -2.0, -0.5, -0.1), "length", seen(item))


def test_a_good_answer_passes(gate, items):
    assert gate.check("hf", items, {i.example.example_id: [good(i)] for i in items}) == {}


def placeholder(gate):
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
def test_a_bad_answer_is_refused(gate, items, changes, reason):
    assert reason in gate.fault(items[0], replace(good(items[0]), **changes))


def test_a_placeholder_is_refused(gate, items):
    token = placeholder(gate)
    sample = replace(good(items[0]), token_ids=(5, token, 7, 8))
    assert f"token 1 is {token}" in gate.fault(items[0], sample)


def test_another_prompt_is_refused(gate, items):
    item = items[0]
    ids = list(item.prompt.token_ids)
    ids[-3] += 1
    wrong = seen(item, token_ids=tuple(ids))
    assert f"token {len(ids) - 3} of its prompt" in gate.prompt_fault(item, wrong)
    wrong = seen(item, token_ids=tuple(ids[:-3]))
    assert f"has {len(ids) - 3} tokens, ours {len(ids)}" in gate.prompt_fault(item, wrong)
    wrong = seen(item, grid_thw=(1, 2, 3))
    assert "grid is (1, 2, 3)" in gate.prompt_fault(item, wrong)
    wrong = seen(item, pixel_hash="0" * 16)
    assert "frames are 0000" in gate.prompt_fault(item, wrong)


def test_other_timestamps_are_named(gate, items, encoder):
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


def test_other_pixels_are_refused_and_bfloat16_is_not(gate, items):
    item = items[0]
    patches = item.prompt.vision.patches
    assert gate.prompt_fault(item, seen(item, pixels=pixel_sample(patches.bfloat16()))) is None
    shifted = seen(item, pixels=pixel_sample(patches * 1.1 + 0.05))
    assert "image processor's mean" in gate.prompt_fault(item, shifted)


def test_one_bad_example_is_set_aside_and_all_bad_ones_stop_the_stage(gate, items):
    answers = {i.example.example_id: [good(i), good(i)] for i in items}
    first = items[0].example.example_id
    answers[first][1] = replace(good(items[0]), finish_reason="error")
    assert gate.check("hf", items, answers) == {first: "answer 1: the finish reason is 'error'"}
    bad = {i.example.example_id: [replace(good(i), finish_reason="error")] for i in items}
    with pytest.raises(VideoOPDError, match=f"all 3 examples of a batch fail, example {first}"):
        gate.check("hf", items, bad)


@pytest.fixture(scope="module")
def engine(config, encoder):
    from opd_core.engines.hf import HFEngine

    return HFEngine.load(config.student.path, encoder.prompts.tokenizer, "float32", "cpu")


@pytest.fixture(scope="module")
def answers(engine, items):
    from opd_core.sampling import Request

    item = items[0]
    request = Request(item.example.example_id, item.prompt, (1, 2, 3))
    return engine.sample([[request]], SamplingParams(NEW_TOKENS))


def test_the_probe_agrees_with_the_hf_engine(engine, items, answers):
    worst = probe(engine.model, items[0], answers[items[0].example.example_id])
    assert [token.sample for token in worst] == [0, 1, 2]
    assert max(token.difference for token in worst) < 1e-5


@pytest.mark.parametrize("wrong", [-9.0, float("nan")])
def test_the_probe_names_example_token_and_both_values(
    config, encoder, engine, items, answers, wrong
):
    name = items[0].example.example_id
    samples = list(answers[name])
    logprobs = list(samples[1].logprobs)
    right, logprobs[2] = logprobs[2], wrong
    samples[1] = replace(samples[1], logprobs=tuple(logprobs))
    with pytest.raises(VideoOPDError) as error:
        probe_engine(
            config, config.student.path, "float32", encoder, engine, items[0], {name: samples}
        )
    text = str(error.value)
    assert text.startswith(f"token 2 ({samples[1].token_ids[2]}) of answer 1 to example {name}")
    assert f"{wrong:.6f} from the engine 'hf' and {right:.4f}" in text
    assert "rollout.max_engine_mismatch = 0.5" in text


def test_rows_of_the_probe_carry_the_difference(config):
    policy = rollouts.Policy(0, config.student.path, "h")
    (batch,) = rollouts.sample_rollouts(config, policy, read_examples(config, 3), set())
    found = [row.engine_mismatch for row in batch.records]
    assert all(0 <= d < 1e-5 for d in found[:2]) and set(found[2:]) == {None}


def test_configs_name_their_engine(tmp_path: Path, tiny_world):
    with pytest.raises(VideoOPDError, match=r"rollout.engine = 'sglang' is not valid"):
        make_config(tmp_path, tiny_world, {"rollout.engine": "sglang"})
    path = make_config(tmp_path, tiny_world, {"update.tis": "sequence"}).run.path.parent
    assert load_config(path / "tiny.toml").update.tis == "sequence"
