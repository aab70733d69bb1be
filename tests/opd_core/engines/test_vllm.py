"""Real vLLM on the CPU, in fp32, on untrained models of the tiny world.

Opening an engine takes ten seconds, so most tests share one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from opd_core.config.load import Config
from opd_core.config.sections import ScoreSection
from opd_core.engines import idle_time
from opd_core.engines.base import Refused, Request, SamplingParams, Scored, ScoreRequest
from opd_core.engines.gate import Gate, asked_again
from opd_core.engines.hf.sampling import HFEngine
from opd_core.engines.vllm.child import ChildEngine
from opd_core.engines.vllm.engine import WorkerTools
from opd_core.engines.vllm.record import opened_vllm
from opd_core.model.architectures import QWEN3_VL
from opd_core.model.prefix_tree import grow, pack
from opd_core.model.tree_attention import PackedAttention
from opd_core.model.tree_model import TreeModel, load_model
from opd_core.prompts.batches import EncodedExample, ExampleEncoder
from opd_core.rollout import answers as rollouts
from opd_core.scoring.trees import OpenScorer, score_rollouts
from opd_core.tinyworld.world import World
from opd_core.types import EngineCrashError, Policy, TeacherScore, VideoOPDError
from tests import forked
from tests.known import known, largest
from tests.opd_core.engines.vllm_fixtures import (
    NEEDS_VLLM,
    Answers,
    Videos,
    answered,
    engines,
    make_config,
    make_model,
    read_examples,
)

pytestmark = [NEEDS_VLLM, pytest.mark.timeout(300)]

NEW_TOKENS = 12
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def config(folder: Path, tiny_world: World) -> Config:
    return make_config(folder, tiny_world)


@pytest.fixture(scope="module")
def encoder(config: Config) -> ExampleEncoder:
    return ExampleEncoder(config, config.student.path)


@pytest.fixture(scope="module")
def videos(config: Config, encoder: ExampleEncoder) -> Videos:
    """Seven sentences of a few videos."""
    return encode(encoder, config, 7)


@pytest.fixture(scope="module")
def engine(config: Config, encoder: ExampleEncoder) -> Iterator[ChildEngine]:
    with opened_vllm(config, config.student.path, "float32", encoder, NEW_TOKENS) as child:
        yield child


@pytest.fixture(scope="module")
def trainer(config: Config, encoder: ExampleEncoder) -> TreeModel:
    return TreeModel(load_model(config.student.path, "float32"), encoder.prompts.tokenizer)


def requests(videos: Videos, seeds: Sequence[int] = (1, 2, 3, 2**62)) -> list[list[Request]]:
    return [[Request(i.example.example_id, i.prompt, tuple(seeds)) for i in v] for v in videos]


@pytest.fixture(scope="module")
def answers(engine: ChildEngine, videos: Videos) -> Answers:
    return answered(engine.sample(requests(videos), SamplingParams(NEW_TOKENS)))


def items(videos: Videos) -> list[EncodedExample]:
    return [item for video in videos for item in video]


def test_rollouts_pass_the_gate_and_agree_with_the_trainer(
    encoder: ExampleEncoder, videos: Videos, answers: Answers, trainer: TreeModel
) -> None:
    gate = Gate(encoder.prompts.tokenizer, NEW_TOKENS, QWEN3_VL, encoder.prompts.positions)
    assert gate.check("vllm", items(videos), answers) == {}
    for item in items(videos):
        tokens = asked_again(trainer, item, answers, [[item]])
        assert max(token.difference for token in tokens) < 1e-4


def test_a_batch_with_more_to_prefill_than_fits_a_step(
    config: Config, encoder: ExampleEncoder, engine: ChildEngine
) -> None:
    """On a CPU vLLM cannot prefill a seeded prompt in parts."""
    many = encode(encoder, config, 40)
    answers = answered(engine.sample(requests(many, range(8)), SamplingParams(NEW_TOKENS)))
    gate = Gate(encoder.prompts.tokenizer, NEW_TOKENS, QWEN3_VL, encoder.prompts.positions)
    assert gate.check("vllm", items(many), answers) == {}
    assert {len(samples) for samples in answers.values()} == {8}


def test_vision_placeholders_are_never_sampled(
    trainer: TreeModel, videos: Videos, answers: Answers
) -> None:
    said = {t for samples in answers.values() for s in samples for t in s.token_ids}
    assert said.isdisjoint(trainer.excluded_ids)
    # The model does want to say them: without the exclusion much of the mass is theirs.
    item = items(videos)[0]
    tree = grow(
        [item.prompt.token_ids],
        [[(n, s.token_ids) for n, s in enumerate(answers[item.example.example_id])]],
        item.prompt.vision,
    )
    packed = pack([tree])
    with torch.inference_mode():
        hidden = trainer.hidden(packed, PackedAttention(packed, trainer.device))
        logits = trainer.model.lm_head(hidden[np.concatenate(list(packed.predicting.values()))])
    mass = logits.softmax(dim=1)[:, list(trainer.excluded_ids)].sum(dim=1)
    assert float(mass.mean()) > 0.05


def test_a_seed_is_a_rollout(engine: ChildEngine, videos: Videos, answers: Answers) -> None:
    """Whatever a rollout is sampled with: alone, in another order, beside other prompts."""
    params = SamplingParams(NEW_TOKENS)
    item = items(videos)[1]
    name = item.example.example_id
    alone = answered(engine.sample([[Request(name, item.prompt, (3,))]], params))[name]
    assert alone[0].token_ids == answers[name][2].token_ids
    assert len({s.token_ids for s in answers[name]}) == 4
    turned = answered(engine.sample(requests(videos[::-1], (3, 1)), params))
    for key, (third, first) in turned.items():
        assert third.token_ids == answers[key][2].token_ids
        assert first.token_ids == answers[key][0].token_ids


def test_greedy_answers_are_those_of_the_hf_engine(
    config: Config, encoder: ExampleEncoder, engine: ChildEngine, videos: Videos
) -> None:
    params = SamplingParams(NEW_TOKENS, greedy=True)
    ours = HFEngine.load(config.student.path, encoder.prompts.tokenizer, "float32", "cpu").sample(
        requests(videos, (0,)), params
    )
    theirs = answered(engine.sample(requests(videos, (0,)), params))
    for key, (answer,) in ours.items():
        assert theirs[key][0].token_ids == answer.token_ids
        assert theirs[key][0].finish_reason == answer.finish_reason
        assert theirs[key][0].logprobs == pytest.approx(answer.logprobs, abs=1e-4)


def test_answers_end_at_an_end_token(
    config: Config, encoder: ExampleEncoder, engine: ChildEngine, videos: Videos
) -> None:
    """With enough seeds some answer ends early; it keeps its end token."""
    video = (videos[0][:1],)
    asked = requests(video, range(300))
    answers = answered(engine.sample(asked, SamplingParams(NEW_TOKENS)))
    (samples,) = answers.values()
    vocabulary = encoder.prompts.tokenizer.get_vocab()
    ends = {vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]}
    reasons = {s.finish_reason for s in samples}
    assert reasons == {"stop", "length"}
    for sample in samples:
        assert (sample.token_ids[-1] in ends) == (sample.finish_reason == "stop")
        assert not ends & set(sample.token_ids[:-1])
        assert sample.finish_reason == "stop" or len(sample.token_ids) == NEW_TOKENS


def test_prompt_logprobs_agree_with_the_trainer(
    encoder: ExampleEncoder,
    engine: ChildEngine,
    videos: Videos,
    answers: Answers,
    trainer: TreeModel,
) -> None:
    asked = [
        [
            ScoreRequest(
                i.example.example_id,
                i.prompt,
                {
                    (i.example.example_id, n): s.token_ids
                    for n, s in enumerate(answers[i.example.example_id])
                },
            )
            for i in video
        ]
        for video in videos
    ]
    by_answer = taken(engine.score(asked, ScoreSection(teacher_topk=8)))
    scored = {
        name: [by_answer[name, n] for n in range(len(samples))] for name, samples in answers.items()
    }
    gate = Gate(encoder.prompts.tokenizer, NEW_TOKENS, QWEN3_VL)
    for item in items(videos):
        name = item.example.example_id
        samples = answers[name]
        tree = grow(
            [item.prompt.token_ids],
            [[(n, s.token_ids) for n, s in enumerate(samples)]],
            item.prompt.vision,
        )
        with torch.inference_mode():
            ((_, token_ids_C, logprobs_CV),) = trainer.completion_distributions(pack([tree]))
        own = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].tolist()
        assert [x for s in scored[name] for x in s.logprobs] == pytest.approx(own, abs=1e-4)
        top = logprobs_CV.topk(8, dim=1).values
        found = torch.tensor([row for s in scored[name] for row in known(s.topk_logprobs)])
        assert torch.allclose(found, top, atol=1e-4)
        rest = logprobs_CV.scatter(1, logprobs_CV.topk(8, dim=1).indices, float("-inf"))
        tails = [tail for s in scored[name] for tail in known(s.tail_logprobs)]
        assert tails == pytest.approx(rest.logsumexp(dim=1).tolist(), abs=1e-3)
        assert gate.prompt_fault(item, known(scored[name][0].prompt)) is None


@pytest.mark.parametrize("topk", [0, 8])
def test_scores_by_vllm_are_those_of_the_hf_scorer(
    config: Config, encoder: ExampleEncoder, engine: ChildEngine, videos: Videos, topk: int
) -> None:
    """The student plays the teacher, so that no other engine has to be opened."""
    config = config.model_copy(
        update={"score": config.score.model_copy(update={"teacher_topk": topk})}
    )
    policy = Policy(0, config.student.path, "h")
    examples = [item.example for item in items(videos)]
    rows = [
        row
        for batch in rollouts.sample_rollouts(config, policy, examples, set())
        for row in batch.records
    ]
    by_example = {e.example_id: [r for r in rows if r.example_id == e.example_id] for e in examples}
    work = [(e, by_example[e.example_id]) for e in examples]
    (batch,) = score_rollouts(config, policy, work)
    score_videos = OpenScorer(engine, config, policy, encoder, "vllm")
    theirs = {
        s.rollout_id: s for s in score_videos(videos, by_example) if isinstance(s, TeacherScore)
    }
    assert len(batch.records) == len(theirs) == len(rows)
    for score in batch.records:
        other = theirs[score.rollout_id]
        assert other.teacher_logprobs == pytest.approx(score.teacher_logprobs, abs=1e-4)
        assert (other.topk_token_ids is None) == (topk == 0)
        if topk:
            assert np.allclose(known(other.topk_logprobs), known(score.topk_logprobs), atol=1e-4)
            assert np.allclose(known(other.tail_logprobs), known(score.tail_logprobs), atol=1e-3)
    item = videos[0][0]
    rest = item.prompt.token_ids[:-1]
    moved = replace(item, prompt=replace(item.prompt, token_ids=rest))
    rows = [replace(r, prompt_token_ids=rest) for r in by_example[item.example.example_id]]
    with pytest.raises(VideoOPDError, match=f"on another prompt than ours .* ours {len(rest)}"):
        list(score_videos([[moved]], {item.example.example_id: rows}))


def test_engines_of_these_tests_are_forked(engine: ChildEngine) -> None:
    """Else all here passes, too, and takes minutes."""
    assert type(engine._process).__module__ == forked.__name__
    assert engine._process is not None and engine._process.pid in engines()


def test_the_weights_were_compared(engine: ChildEngine) -> None:
    assert engine.weights_compared["vision"] > 20
    assert engine.weights_compared["language"] > 20


def test_a_prompt_without_room_is_refused_with_the_length_it_needs(
    engine: ChildEngine, videos: Videos, answers: Answers
) -> None:
    found = engine.sample(requests(videos), SamplingParams(5000))
    assert found.keys() == answers.keys()
    for one in found.values():
        assert isinstance(one, Refused)
        assert re.search(r"more than the 4096 .* set vllm.max_model_len = \d+", one.reason)
    again = answered(engine.sample(requests(videos), SamplingParams(NEW_TOKENS)))
    assert same_answers(again, answers)


def test_a_prompt_on_which_vllm_raises_costs_that_prompt_alone(
    engine: ChildEngine, encoder: ExampleEncoder, videos: Videos, answers: Answers
) -> None:
    asked = requests(videos)
    bad = asked[0][0]
    no_video = bad.prompt.text.replace("<|video_pad|>", "")
    asked[0][0] = replace(bad, prompt=replace(bad.prompt, text=no_video))
    found = dict(engine.sample(asked, SamplingParams(NEW_TOKENS)))
    refused = found.pop(bad.key)
    assert isinstance(refused, Refused) and "Error" in refused.reason
    assert same_answers(answered(found), {k: v for k, v in answers.items() if k != bad.key})
    (lost,) = [i for i in items(videos) if i.example.example_id == bad.key]
    gate = Gate(encoder.prompts.tokenizer, NEW_TOKENS, QWEN3_VL)
    faults = gate.check("vllm", items(videos), found | {bad.key: refused})
    assert faults == {lost.example.example_id: refused.reason}
    prompt = ScoreRequest(bad.key, replace(lost.prompt, text=no_video), {"bad": (1, 2)})
    other = ScoreRequest("other", items(videos)[-1].prompt, {"good": (1, 2)})
    scored = dict(engine.score([[prompt], [other]], ScoreSection(teacher_topk=4)))
    assert scored.keys() == {bad.key, "good"}
    assert isinstance(scored.pop(bad.key), Refused)
    assert len(taken(scored.items())["good"].logprobs) == 2


def taken(scored: Iterable[tuple[Hashable, Scored | Refused]]) -> dict[Hashable, Scored]:
    """The scores, of a call in which the engine refuses nothing."""
    scores: dict[Hashable, Scored] = {}
    for key, score in scored:
        assert isinstance(score, Scored), score
        scores[key] = score
    return scores


def same_answers(found: Answers, expected: Answers) -> bool:
    return {k: [s.token_ids for s in v] for k, v in found.items()} == {
        k: [s.token_ids for s in v] for k, v in expected.items()
    }


@pytest.mark.slow
def test_a_sentence_longer_than_vllm_was_opened_for_is_set_aside(
    folder: Path, tiny_world: World
) -> None:
    place = folder / "long"
    place.mkdir()
    config = make_config(place, tiny_world, {"rollout.engine": "vllm", "vllm.max_model_len": 400})
    first, *others = read_examples(config, 3)
    long = replace(first, query=" ".join(["a red ball"] * 200))
    policy = Policy(0, config.student.path, "h")
    (batch,) = rollouts.sample_rollouts(config, policy, [long, *others], set())
    (lost,) = batch.quarantined
    assert (lost.item_id, lost.kind) == (long.example_id, "too long")
    assert "room for 400 (vllm.max_model_len" in lost.reason
    assert {r.example_id for r in batch.records} == {e.example_id for e in others}


def test_other_weights_are_named(config: Config, tmp_path: Path) -> None:
    """Against a stand-in for vLLM's model that fuses what vLLM fuses."""
    from types import SimpleNamespace

    from safetensors.torch import load_file, save_file

    tensors = load_file(config.student.path / "model.safetensors")
    fused: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
        for part, whole in {
            "q_proj": "qkv_proj",
            "k_proj": "qkv_proj",
            "v_proj": "qkv_proj",
            "gate_proj": "gate_up_proj",
            "up_proj": "gate_up_proj",
        }.items():
            name = name.replace(f".{part}.", f".{whole}.")
        fused.setdefault(name, []).append(tensor)
    order = ["q_proj", "k_proj", "v_proj"]
    for layer in range(4):
        base = f"model.language_model.layers.{layer}.self_attn."
        fused[f"language_model.model.layers.{layer}.self_attn.qkv_proj.weight"] = [
            tensors[f"{base}{part}.weight"] for part in order
        ]
    model = SimpleNamespace(
        named_parameters=lambda: ((n, torch.cat(t)) for n, t in fused.items()),
        hf_to_vllm_mapper=SimpleNamespace(
            orig_to_new_prefix={
                "model.visual.": "visual.",
                "model.language_model.": "language_model.model.",
            }
        ),
        packed_modules_mapping={"qkv_proj": order, "gate_up_proj": ["gate_proj", "up_proj"]},
    )
    tools = WorkerTools()
    tools.get_model = lambda: model
    counts, fault = tools.compare_weights(str(config.student.path))
    assert fault is None and min(counts.values()) > 20
    for damaged in (
        "model.language_model.layers.3.self_attn.k_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.visual.merger.linear_fc1.weight",
        "model.language_model.embed_tokens.weight",
    ):
        changed = {n: t.clone() for n, t in tensors.items()}
        changed[damaged].view(-1)[5] = 5.0
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        save_file(changed, tmp_path / "model.safetensors")
        shutil.copyfile(config.student.path / "config.json", tmp_path / "config.json")
        _, fault = tools.compare_weights(str(tmp_path))
        assert known(fault).startswith(f"{damaged} differs by up to ")


@pytest.mark.slow
def test_a_whole_round_and_a_weight_update_that_the_next_engine_sees(
    folder: Path, tiny_world: World
) -> None:
    from flows import stages
    from flows.stage.prepare import opened
    from tests.stages_before import stages_before

    (folder / "round").mkdir()
    make_config(
        folder / "round",
        tiny_world,
        {
            "rollout.engine": "vllm",
            "rollout.max_engine_mismatch": 1e-4,
            "evaluate.engine": "vllm",
            "update.objective": "policy_gradient",
            "update.tis": "auto",
            "rollout.examples_per_round": 4,
        },
    )
    before = engines()
    with opened(str(folder / "round" / "tiny.toml")) as work:
        policy = work.policy()
        for stage in stages_before("evaluate"):
            getattr(stages, stage).fn(work, policy)
            assert engines() == before, f"{stage} left its engine behind"
        stages.evaluate.fn(work, work.policy())
        run = work.run
        rows = run.rollouts().collect()
        assert set(rows["engine"]) == {"vllm"} and len(rows) == 8
        assert rows["engine_version"][0].startswith("vllm ")
        measured = rows["engine_mismatch"].drop_nulls()
        assert len(measured) == 2 and largest(measured) < 1e-4
        (update,) = run.updates().collect().iter_rows(named=True)
        assert update["max_logprob_mismatch"] < 1e-4
        assert update["steps"][0]["tis_weight_mean"] == pytest.approx(1.0, abs=1e-3)
        assert update["steps"][0]["tis_truncated"] == 0.0
        assert set(run.evaluations().collect()["engine"]) == {"vllm"}
        # The engine that evaluated had the new weights: its probe, bounded above, was the trainer
        # with policy 1. And policy 1 is another one than policy 0, by far more than that bound.
        new = work.policy()
        assert new.version == 1
        encoder = ExampleEncoder(work.config, policy.path)
        asked = requests(encode(encoder, work.config, 2), (1,))
        greedy = SamplingParams(1, greedy=True)
        first, second = (
            HFEngine.load(p.path, encoder.prompts.tokenizer, "float32", "cpu").sample(asked, greedy)
            for p in (policy, new)
        )
        moved = [abs(first[k][0].logprobs[0] - second[k][0].logprobs[0]) for k in first]
        assert max(moved) > 1e-2


def encode(encoder: ExampleEncoder, config: Config, count: int) -> Videos:
    (batch,) = encoder.encode_batches([read_examples(config, count)], "test", 0)
    return batch.videos


@pytest.mark.slow
def test_the_gate_catches_an_image_mean_that_is_not_the_video_mean(
    folder: Path, tiny_world: World
) -> None:
    """On the device vLLM normalises video with the image processor's mean."""
    place = folder / "mean"
    place.mkdir()
    config = make_config(
        place, tiny_world, {"rollout.engine": "vllm", "vllm.normalize_on_device": True}
    )
    path = config.student.path / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"]["image_mean"] = [0.48, 0.46, 0.41]
    path.write_text(json.dumps(content))
    policy = Policy(0, config.student.path, "h")
    with pytest.raises(VideoOPDError, match=r"normalises a pixel to .* image processor's mean"):
        list(rollouts.sample_rollouts(config, policy, read_examples(config, 3), set()))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["merged", "adapter"])
def test_a_lora_policy_is_served(folder: Path, tiny_world: World, how: str) -> None:
    from peft import LoraConfig

    from opd_core.update.trainable import language_modules
    from opd_core.update.trained_model import belongs_to_processor

    place = folder / how
    place.mkdir()
    config = make_config(place, tiny_world, {"rollout.engine": "vllm", "vllm.lora": how})
    base = config.student.path
    model: Any = load_model(base, "float32")
    model.add_adapter(
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=language_modules(
                model, QWEN3_VL, ("q_proj", "v_proj", "gate_proj", "down_proj")
            ),
            base_model_name_or_path=str(base),
        )
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    policy = place / "policy"
    model.save_pretrained(policy)
    for file in base.iterdir():
        if belongs_to_processor(file.name):
            shutil.copyfile(file, policy / file.name)
    ((first, *_),) = (
        batch.records
        for batch in rollouts.sample_rollouts(
            config, Policy(1, policy, "h"), read_examples(config, 2), set()
        )
    )
    assert known(first.engine_mismatch) < 1e-4


def test_the_child_dies_with_its_parent(tmp_path: Path, config: Config) -> None:
    """kill -9 of the stage's process, while the engine is being opened."""
    script = f"""
import time
from pathlib import Path
from opd_core.config.sections import VLLMSection
from opd_core.engines.vllm.child import ChildEngine
from opd_core.engines.vllm.engine import VLLMSettings
child = ChildEngine(VLLMSettings(Path({str(config.student.path)!r}), "float32", "cpu", 512,
                    VLLMSection(), Path({str(tmp_path)!r})), 1)
print(child.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    child = int(known(parent.stdout).readline())
    time.sleep(3)
    assert psutil.pid_exists(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_killed_engine_is_an_error_of_one_sentence(
    config: Config, encoder: ExampleEncoder, videos: Videos
) -> None:
    with (
        pytest.raises(EngineCrashError, match="the vLLM process died of SIGKILL"),
        opened_vllm(config, config.student.path, "float32", encoder, NEW_TOKENS) as child,
    ):
        os.kill(child.pid, signal.SIGKILL)
        child.sample(requests(videos), SamplingParams(NEW_TOKENS))


def test_asked_ahead_it_answers_as_one_batch_after_the_other(
    config: Config, encoder: ExampleEncoder
) -> None:
    """To the last bit: what is prepared meanwhile gets to the engine batch by batch."""
    examples, params = read_examples(config, 9), SamplingParams(NEW_TOKENS)
    batches = [examples[:3], examples[3:7], examples[7:]]
    encoded = [b.videos for b in encoder.encode_batches(batches, "test", 0)]
    answers, times = [], []
    for ahead in (False, True):
        before = idle_time.total()
        with opened_vllm(config, config.student.path, "float32", encoder, NEW_TOKENS) as child:
            if ahead:
                waiting = [child.begin_sampling(requests(videos), params) for videos in encoded]
                middle = waiting[1]()  # the first is kept until it is asked for
                answers.append([waiting[0](), middle, waiting[2]()])
            else:
                answers.append([child.sample(requests(videos), params) for videos in encoded])
        after = idle_time.total()
        times.append((after.working - before.working, after.idle - before.idle))
    for one, other in zip(*answers, strict=True):
        assert one == other and all(isinstance(samples, list) for samples in one.values())
    assert all(working > 0 and idle > 0 for working, idle in times)


def test_closed_while_it_has_work_it_ends_at_once(
    config: Config, encoder: ExampleEncoder, videos: Videos
) -> None:
    with opened_vllm(config, config.student.path, "float32", encoder, NEW_TOKENS) as child:
        child.sample(requests(videos[:1]), SamplingParams(NEW_TOKENS))
        child.begin_sampling(requests(videos, range(40)), SamplingParams(NEW_TOKENS))
        began, pid = time.monotonic(), child.pid
    assert time.monotonic() - began < 5.0 and not alive(pid)


def test_models_that_are_none_are_named(
    config: Config, encoder: ExampleEncoder, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(make_model(tmp_path / "student"), broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(VideoOPDError, match=r"broken/model.safetensors is not a whole"):
        _open(config, encoder, broken)
    (broken / "model.safetensors").write_bytes(whole)
    described = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(described | {"architectures": ["NoSuch"]}))
    with pytest.raises(VideoOPDError, match=r"vLLM cannot open .*broken"):
        _open(config, encoder, broken)


def _open(config: Config, encoder: ExampleEncoder, folder: Path) -> None:
    with opened_vllm(config, folder, "float32", encoder, NEW_TOKENS) as child:
        child.version  # noqa: B018  (waits for the engine)
