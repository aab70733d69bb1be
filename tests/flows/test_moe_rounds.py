"""Whole rounds with a mixture of experts: as student, with LoRA and without; as the teacher of a
dense student, which is the cheap strong teacher that people have; and with vLLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows import stages
from flows.stage.prepare import opened
from opd_core.model.architectures import QWEN3_VL_MOE, architecture_in
from opd_core.model.checkpoint import check_checkpoint, save_checkpoint
from opd_core.model.tree_model import TreeModel, load_model
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.known import largest
from tests.opd_core.engines.vllm_fixtures import (
    Kind,
    answered,
    make_config,
    make_model,
    read_examples,
)
from tests.stages_before import stages_before

pytestmark = pytest.mark.timeout(300)

MOE: Kind = "qwen3_vl_moe"
ROUND = stages_before("evaluate")
SETTINGS = {
    "rollout.examples_per_round": 6,
    "focus.top_k": 6,
    "update.examples_per_step": 6,
    "update.learning_rate": 1e-3,
    "rollout.max_engine_mismatch": 1e-4,
    "update.max_logprob_mismatch": 1e-4,
}


def play(folder: Path, world: Any, settings: dict[str, Any], kind: Any, rounds: int = 1) -> Run:
    make_config(folder, world, SETTINGS | settings, kind=kind)
    with opened(str(folder / "tiny.toml")) as work:
        for _ in range(rounds):
            policy = work.policy()
            for stage in ROUND:
                getattr(stages, stage).fn(work, policy)
            stages.evaluate.fn(work, work.policy())
        return work.run


def assert_evidence(run: Run, rounds: int) -> None:
    """Sampler and trainer agreed in each round, and nothing was set aside."""
    rows = run.rollouts().collect()
    assert len(rows) == 12 * rounds
    assert largest(rows["engine_mismatch"]) < 1e-5
    updates = list(run.updates().collect().iter_rows(named=True))
    assert len(updates) == rounds
    for update in updates:
        assert update["max_logprob_mismatch"] < 1e-5
        assert update["steps"][0]["grad_norm"] > 0
    assert run.quarantine().collect().is_empty()


def moved(before: Path, after: Path) -> dict[str, bool]:
    """By parameter: whether training changed it."""
    old, new = (dict(load_model(f, "float32").named_parameters()) for f in (before, after))
    return {name: not tensor.equal(new[name]) for name, tensor in old.items()}


@pytest.mark.in_turn
def test_lora_rounds_adapt_the_attention(tmp_path: Path, tiny_world: World) -> None:
    run = play(tmp_path, tiny_world, {"update.lora.rank": 4}, MOE, rounds=2)
    assert_evidence(run, 2)
    for version in (1, 2):
        folder = run.policy(version).path
        check_checkpoint(folder)
        described = json.loads((folder / "adapter_config.json").read_text())
        names = {name.rsplit(".", 1)[-1] for name in described["target_modules"]}
        assert names == set(QWEN3_VL_MOE.lora_modules)
    first, second = (load_file(run.policy(v).path / "adapter_model.safetensors") for v in (1, 2))
    assert first.keys() == second.keys() and not any("expert" in n or "visual" in n for n in first)
    assert any(not first[name].equal(second[name]) for name in first)


def test_a_module_of_the_experts_is_refused_before_anything_is_sampled(
    tmp_path: Path, tiny_world: World
) -> None:
    settings = {"update.lora.rank": 4}
    for name in ("gate_proj", "down_proj", "gate_up_proj", "experts", "gate"):
        wanted = settings | {"update.lora.target_modules": ["q_proj", name]}
        make_config(tmp_path, tiny_world, SETTINGS | wanted, kind=MOE)
        with (
            pytest.raises(VideoOPDError, match=f"names '{name}'.*experts of qwen3_vl_moe"),
            opened(str(tmp_path / "tiny.toml")) as work,
        ):
            for stage in ROUND[:3]:
                getattr(stages, stage).fn(work, work.policy())
        assert not list((tmp_path / "run").rglob("rollouts.lance/data/*"))


def test_all_weights_are_trained_and_saved_as_published(tmp_path: Path, tiny_world: World) -> None:
    run = play(tmp_path, tiny_world, {}, MOE, rounds=2)
    assert_evidence(run, 2)
    base, policy = (run.policy(v).path for v in (0, 2))
    check_checkpoint(policy)
    changed = moved(base, policy)
    assert not any(c for n, c in changed.items() if QWEN3_VL_MOE.is_vision(n))
    assert QWEN3_VL_MOE.experts is not None
    experts = [c for n, c in changed.items() if QWEN3_VL_MOE.experts.holds(n)]
    routers = [c for n, c in changed.items() if f".{QWEN3_VL_MOE.experts.router}." in n]
    assert len(experts) == 8 and all(experts) and len(routers) == 4 and all(routers)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in load_file(f / "model.safetensors").items()}
        for f in (base, policy)
    ]
    assert shapes[0] == shapes[1]


def test_a_dense_student_of_a_teacher_with_experts(tmp_path: Path, tiny_world: World) -> None:
    teacher = make_model(tmp_path / "moe", "teacher", 1, MOE)
    settings = {"teacher.path": str(teacher), "score.hidden_states": True,
                "update.teacher_distribution": "hidden_states"}  # fmt: skip
    run = play(tmp_path, tiny_world, settings, "qwen3_vl")
    assert_evidence(run, 1)
    assert architecture_in(run.policy(1).path).model_type == "qwen3_vl"
    scores = run.teacher_scores().collect()
    assert len(scores) == 12 and largest(scores["teacher_logprobs"].list.max()) < 0
    (update,) = run.updates().collect().iter_rows(named=True)
    assert update["steps"][0]["reverse_kl"] > 0


def test_a_round_in_bfloat16_keeps_the_bounds(tmp_path: Path, tiny_world: World) -> None:
    """Rounding sends a token to other experts now and then; the trainer rounds otherwise."""
    with_bounds_of_the_precision = {k: v for k, v in SETTINGS.items() if "mismatch" not in k}
    low = {"student.dtype": "bfloat16", "teacher.dtype": "bfloat16"}
    make_config(tmp_path, tiny_world, with_bounds_of_the_precision | low, kind=MOE)
    with opened(str(tmp_path / "tiny.toml")) as work:
        policy = work.policy()
        for stage in ROUND:
            getattr(stages, stage).fn(work, policy)
        (update,) = work.run.updates().collect().iter_rows(named=True)
    assert 0 < update["mean_logprob_mismatch"] < update["mean_logprob_bound"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"update.lora.rank": 4}],
    ids=["full", "merged"],
)
@pytest.mark.in_turn
def test_rounds_with_vllm(tmp_path: Path, tiny_world: World, settings: dict[str, Any]) -> None:
    """The second round samples from weights that the first has written."""
    pytest.importorskip("vllm")
    engines = {"rollout.engine": "vllm"}
    run = play(tmp_path, tiny_world, engines | settings, MOE, rounds=2)
    assert set(run.rollouts().collect()["engine"]) == {"vllm"}
    assert_evidence(run, 2)


@pytest.mark.slow
def test_an_adapter_beside_experts_is_refused_where_vllm_has_no_kernel(
    tmp_path: Path, tiny_world: World
) -> None:
    platforms = pytest.importorskip("vllm.platforms")
    if not platforms.current_platform.is_cpu():
        pytest.skip("of vLLM on a CPU")
    settings = {"rollout.engine": "vllm", "update.lora.rank": 4, "vllm.lora": "adapter"}
    with pytest.raises(VideoOPDError, match=r"set vllm.lora = 'merged'"):
        play(tmp_path, tiny_world, settings, MOE, rounds=2)


@pytest.mark.slow
def test_vllm_is_given_the_published_form_and_notices_other_experts(
    tmp_path: Path, tiny_world: World
) -> None:
    pytest.importorskip("vllm")
    from opd_core.engines.base import Request, Sample, SamplingParams
    from opd_core.engines.gate import asked_again
    from opd_core.engines.vllm.record import opened_vllm
    from opd_core.prompts.batches import ExampleEncoder

    config = make_config(tmp_path, tiny_world, kind=MOE)
    encoder = ExampleEncoder(config, config.student.path)
    theirs = Path(shutil.copytree(config.student.path, tmp_path / "theirs"))
    model = load_model(theirs, "float32")
    model.save_pretrained(theirs)  # type: ignore[operator]
    (one, other) = (load_file(f / "model.safetensors") for f in (config.student.path, theirs))
    assert one.keys() == other.keys() and any(one[n].shape != other[n].shape for n in one)
    # transformers divides the weights of the chosen experts by their sum, whatever is said of it.
    said = json.loads((theirs / "config.json").read_text())
    assert "norm_topk_prob" not in said["text_config"]
    said["text_config"]["norm_topk_prob"] = False
    (theirs / "config.json").write_text(json.dumps(said))
    (batch,) = encoder.encode_batches([read_examples(config, 1)], "test", 0)
    item = batch.videos[0][0]
    with opened_vllm(config, theirs, "float32", encoder, 8) as engine:
        assert engine.weights_compared["language"] > 20
        answers = answered(engine.sample([[Request("x", item.prompt, (1, 2))]], SamplingParams(8)))
    trainer = TreeModel(load_model(theirs, "float32"), encoder.prompts.tokenizer)
    samples: dict[Hashable, list[Sample]] = {item.example.example_id: answers["x"]}
    tokens = asked_again(trainer, item, samples, [[item]])
    assert max(token.difference for token in tokens) < 1e-4
    # Square matrices have no form that can be told: vLLM turns them round, and is found out.
    config_of_it: Any = model.config
    config_of_it.text_config.moe_intermediate_size = config_of_it.text_config.hidden_size // 2
    torch.manual_seed(0)
    save_checkpoint(QWEN3_VL_MOE.load_class()(config_of_it), theirs)
    check_checkpoint(theirs)
    with (
        pytest.raises(VideoOPDError, match="vLLM holds other weights .*experts answers otherwise"),
        opened_vllm(config, theirs, "float32", encoder, 8) as engine,
    ):
        engine.weights_compared  # noqa: B018  (waits for the engine)
