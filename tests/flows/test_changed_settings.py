"""Settings that change between rounds: they take effect, restart the optimiser, or are refused
before anything is sampled. Each is a real round of a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows import stages
from flows.stage.prepare import opened
from opd_core.config.load import load_config
from opd_core.types import Update, VideoOPDError
from storage.runs.run import Run
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server

FULL = {"update.objective": "sft", "rollout.source": "truth", "rollout.rollouts_per_example": 1,
        "rollout.examples_per_round": 4, "focus.curriculum": "uniform", "evaluate.max_examples": 2,
        "update.warmup_steps": 100}  # fmt: skip
LORA = FULL | {"update.lora.rank": 4, "update.lora.alpha": 8}


@pytest.fixture(scope="module")
def after_a_round(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`full` and `lora`: folders with a config and its run, one round old."""
    folders = {}
    for name, settings in (("full", FULL), ("lora", LORA)):
        folders[name] = tmp_path_factory.mktemp(name)
        run_without_server(str(write_config(folders[name], settings)), 1)
    return folders


def go_on(
    write_config: Any, before: Path, folder: Path, settings: dict[str, Any]
) -> tuple[Any, Run]:
    """A second round of a copy of the run, under `settings`."""
    shutil.copytree(before / "run", folder / "run")
    config = write_config(folder, settings)
    return run_without_server(str(config), 1), Run.open(folder / "run")


def updates(run: Run) -> list[Update]:
    return sorted(run.read("updates", Update), key=lambda u: u.policy_version)


def state(run: Run, version: int) -> tuple[int, dict[str, Any]]:
    folder = run.trainer_folder(run.policy(version))
    assert folder is not None
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    return saved["steps_done"], saved["optimizer"]


def test_unchanged_settings_go_on(
    write_config: Any, after_a_round: dict[str, Path], tmp_path: Path
) -> None:
    for name, settings in (("full", FULL), ("lora", LORA)):
        folder = tmp_path / name
        _, run = go_on(write_config, after_a_round[name], folder, settings)
        first, second = updates(run)
        assert first.optimizer_restarted is None and second.optimizer_restarted is None
        steps, optimizer = state(run, 2)
        assert steps == len(first.steps) + len(second.steps)
        assert {float(s["step"]) for s in optimizer["state"].values()} == {float(steps)}


@pytest.mark.parametrize(
    "kind, changed, reason",
    [
        ("full", {"update.freeze_vision": False}, "freeze_vision was true .* and is false"),
        ("full", {"update.adam_betas": [0.8, 0.95]}, r"adam_betas was \[0.9, 0.999\] .*\[0.8, 0.9"),
        ("lora", {"update.adam_betas": [0.8, 0.999]}, "adam_betas"),
    ],
)
def test_the_optimiser_begins_anew_and_says_so(
    write_config: Any, after_a_round: dict[str, Path], tmp_path: Path, kind: str,
    changed: dict[str, Any], reason: str,
) -> None:  # fmt: skip
    settings = (FULL if kind == "full" else LORA) | changed
    summary, run = go_on(write_config, after_a_round[kind], tmp_path, settings)
    said = updates(run)[1].optimizer_restarted
    assert said is not None
    assert re.search(reason, said)
    assert any(said in note for note in summary.rounds[-1].notes)
    steps, optimizer = state(run, 2)
    assert steps == len(updates(run)[1].steps), "moments and warm-up are of this round alone"
    assert {float(s["step"]) for s in optimizer["state"].values()} == {float(steps)}
    assert updates(run)[1].steps[0].learning_rate == pytest.approx(1e-4 / 100)
    if "update.adam_betas" in changed:
        betas = optimizer["param_groups"][0]["betas"]
        assert list(betas) == changed["update.adam_betas"]
    vision = _moved(run, "visual.")
    assert vision == (changed.get("update.freeze_vision") is False)


def _moved(run: Run, part: str) -> bool:
    """Whether weights of that part differ between policy 1 and 2."""
    if (run.policy(1).path / "adapter_config.json").exists():
        return False
    before, after = (load_file(run.policy(v).path / "model.safetensors") for v in (1, 2))
    return any(not before[n].equal(after[n]) for n in before if part in n)


@pytest.mark.parametrize(
    "changed",
    [
        {"update.weight_decay": 0.3},
        {"update.learning_rate": 3e-5},
        {"update.objective": "exact_reverse_kl"},
        {"student.dtype": "bfloat16"},
        {"update.epochs": 2, "update.examples_per_step": 2, "update.cooldown": 0.0},
        {"update.max_grad_norm": 0.5, "update.gradient_checkpointing": True},
    ],
)
@pytest.mark.in_turn(always=["changed0"])
def test_what_takes_effect_and_needs_no_new_optimiser(
    write_config: Any, after_a_round: dict[str, Path], tmp_path: Path, changed: dict[str, Any]
) -> None:
    _, run = go_on(write_config, after_a_round["full"], tmp_path, FULL | changed)
    first, second = updates(run)
    assert second.optimizer_restarted is None
    steps, optimizer = state(run, 2)
    assert steps == len(first.steps) + len(second.steps)
    group = optimizer["param_groups"][0]
    assert group["weight_decay"] == changed.get("update.weight_decay", 0.0)
    hashes = run.updates().sort("policy_version").collect()["config_hash"].to_list()
    assert hashes[0] != hashes[1] == load_config(tmp_path / "config.toml").hash


def test_the_dropout_of_an_adapter_may_change(
    write_config: Any, after_a_round: dict[str, Path], tmp_path: Path
) -> None:
    _, run = go_on(
        write_config, after_a_round["lora"], tmp_path, LORA | {"update.lora.dropout": 0.25}
    )
    assert updates(run)[1].optimizer_restarted is None
    described = [json.loads((run.policy(v).path / "adapter_config.json").read_text())
                 for v in (1, 2)]  # fmt: skip
    assert [d["lora_dropout"] for d in described] == [0.0, 0.25]


REFUSED = [
    ("full", {"update.lora.rank": 4}, r"full weights and the config has \[update.lora\]"),
    ("lora", None, r"LoRA adapter and the config has no \[update.lora\]"),
    ("lora", {"update.lora.rank": 8}, "rank = 4, and update.lora.rank is 8; put that back"),
    ("lora", {"update.lora.alpha": 16}, "alpha = 8, and update.lora.alpha is 16; put that back"),
    ("lora", {"update.lora.target_modules": ["q_proj"]}, "update.lora.target_modules is"),
]


@pytest.mark.parametrize("kind, changed, sentence", REFUSED)
def test_what_a_policy_is_not_is_refused_before_anything_is_sampled(
    write_config: Any, after_a_round: dict[str, Path], tmp_path: Path, kind: str,
    changed: dict[str, Any] | None, sentence: str,
) -> None:  # fmt: skip
    settings = FULL if changed is None else (FULL if kind == "full" else LORA) | changed
    with pytest.raises(VideoOPDError, match=sentence) as error:
        go_on(write_config, after_a_round[kind], tmp_path, settings)
    assert "\n" not in str(error.value) and "new run" in str(error.value)
    run = Run.open(tmp_path / "run")
    assert run.draws().collect()["policy_version"].unique().to_list() == [0]
    assert run.rollouts().collect()["policy_version"].unique().to_list() == [0]
    with opened(str(tmp_path / "config.toml")) as work:
        for name in ("rollout", "update"):
            with pytest.raises(VideoOPDError, match=sentence):
                getattr(stages, name).fn(work, work.policy())
        stages.evaluate.fn(work, work.policy(0))  # trains nothing


def test_a_module_that_no_layer_has_is_refused_before_the_first_round(
    write_config: Any, tmp_path: Path
) -> None:
    for modules in (["q_proj", "k_projection"], ["qkv"], ["input_layernorm"]):
        folder = tmp_path / modules[-1]
        config = write_config(folder, LORA | {"update.lora.target_modules": modules})
        with pytest.raises(VideoOPDError, match=f"names '{modules[-1]}', .* they are: down_proj"):
            run_without_server(str(config), 1)
        assert Run.open(folder / "run").rollouts().collect().is_empty()


def test_lora_and_a_trained_vision_tower_exclude_each_other(
    write_config: Any, tmp_path: Path
) -> None:
    config = write_config(tmp_path, LORA | {"update.freeze_vision": False})
    with pytest.raises(VideoOPDError, match="set update.freeze_vision = true, or remove"):
        load_config(config)


def test_an_optimiser_that_is_gone_or_damaged(
    write_config: Any, after_a_round: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(after_a_round["full"] / "run", tmp_path / "run")
    config = str(write_config(tmp_path, FULL))
    path = tmp_path / "run" / "trainer" / "v1" / "optimizer.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoOPDError, match=r"optimizer.pt is no readable state of an optimiser"):
        run_without_server(config, 1)
    path.unlink()
    run_without_server(config, 1)
    assert updates(Run.open(tmp_path / "run"))[1].optimizer_restarted == (
        "policy 1 has no state of an optimiser: it is kept of the newest one only"
    )


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.in_turn(always=["float32-full"])
def test_a_run_of_an_older_program_goes_on(
    write_config: WriteConfig, after_a_round: dict[str, Path], tmp_path: Path, kind: str, dtype: str
) -> None:
    """Its policies are float32, whatever student.dtype, with the optimiser's state beside the
    weights."""
    settings = (FULL if kind == "full" else LORA) | {"student.dtype": dtype}
    _, expected = go_on(write_config, after_a_round[kind], tmp_path / "newer", settings)
    shutil.copytree(after_a_round[kind] / "run", tmp_path / "older" / "run")
    run = tmp_path / "older" / "run"
    (run / "trainer" / "v1" / "optimizer.pt").rename(run / "policies" / "v1" / "optimizer.pt")
    shutil.rmtree(run / "trainer")
    run_without_server(str(write_config(tmp_path / "older", settings)), 1)
    older = Run.open(run)
    assert updates(older)[1].optimizer_restarted is None
    assert older.policy(2).weights_hash == expected.policy(2).weights_hash
    assert state(older, 2)[0] == state(expected, 2)[0]
    assert not (older.policy(2).path / "optimizer.pt").exists()


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"update.optimizer": "adamw_8bit"}, 'optimizer was "adamw" .* and is "adamw_8bit"'),
        ({"update.offload": True}, "offload was false .* and is true"),
        ({"update.weights": "bfloat16", "student.dtype": "bfloat16"}, 'weights was "float32"'),
    ],
)
@pytest.mark.in_turn
def test_what_the_moments_are_kept_in_may_change(
    write_config: WriteConfig, after_a_round: dict[str, Path], tmp_path: Path,
    changed: dict[str, object], reason: str,
) -> None:  # fmt: skip
    """Their names are not in the config of the round before, where they were the defaults."""
    _, run = go_on(write_config, after_a_round["full"], tmp_path, FULL | changed)
    said = updates(run)[1].optimizer_restarted
    assert said is not None and re.search(reason, said)


@pytest.mark.parametrize(
    "change", [{"update.adam_betas": [0.8, 0.95]}, {"update.freeze_vision": False}]
)
@pytest.mark.in_turn
def test_float32_weights_outlive_a_new_optimiser(
    write_config: WriteConfig, tmp_path: Path, change: dict[str, object]
) -> None:
    """Of a policy in bfloat16: a round that moves nothing ends with the float32 weights of the one
    before, of which the folder has but the rounded ones."""
    settings = FULL | {"student.dtype": "bfloat16", "update.warmup_steps": 0}
    trainer, file = tmp_path / "run" / "trainer", "weights.safetensors"
    run_without_server(str(write_config(tmp_path, settings | {"update.learning_rate": 1e-6})), 1)
    before = load_file(trainer / "v1" / file)
    still = settings | change | {"update.learning_rate": 1e-14}
    run_without_server(str(write_config(tmp_path, still)), 1)
    run = Run.open(tmp_path / "run")
    assert next(iter(change)) in (updates(run)[1].optimizer_restarted or "")
    after = load_file(trainer / "v2" / file)
    numbers = sum(exact.numel() for exact in before.values())
    rounded = sum(int((x != x.bfloat16().float()).sum()) for x in before.values())
    equal = sum(int((x == after[name]).sum()) for name, x in before.items())
    assert rounded > 0.9 * numbers and equal > 0.99 * numbers
    first, second = (u.moved_share or 0.0 for u in updates(run))
    assert 0 < first < 0.1 and second < 0.01, "bfloat16 shows little of a step of 1e-6"


def test_a_new_run_brings_weights_along_and_no_optimiser(
    write_config: Any, after_a_round: dict[str, Path], tmp_path: Path
) -> None:
    """The policy of another run as student.path, whose optimizer.pt lies beside the weights."""
    student = after_a_round["full"] / "run" / "policies" / "v1"
    config = write_config(tmp_path, FULL | {"student.path": student})
    run_without_server(str(config), 1)
    run = Run.open(tmp_path / "run")
    (only,) = updates(run)
    assert only.optimizer_restarted is None
    assert state(run, 1)[0] == len(only.steps)


def test_a_student_that_has_moved_takes_its_adapters_along(
    write_config: Any, models: dict[str, Path], after_a_round: dict[str, Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(models["student"], tmp_path / "elsewhere"))
    settings = LORA | {"student.path": moved}
    _, run = go_on(write_config, after_a_round["lora"], tmp_path, settings)
    for version in (1, 2):
        described = json.loads((run.policy(version).path / "adapter_config.json").read_text())
        assert described["base_model_name_or_path"] == str(moved)
