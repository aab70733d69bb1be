"""Models that are not whole, in a run: one sentence before anything is paid for, and no row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.cli import main
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server

Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"
QUICK = {"update.objective": "sft", "rollout.source": "truth", "rollout.rollouts_per_example": 1,
         "rollout.examples_per_round": 4, "focus.curriculum": "uniform"}  # fmt: skip


def spoiled(source: Path, target: Path, how: str) -> Path:
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    if how == "missing":
        del weights[Q_PROJ]
    elif how == "unknown":
        weights["model.language_model.layers.8.mlp.up_proj.weight"] = torch.zeros(2, 2)
    elif how == "NaN":
        weights[Q_PROJ][0, 0] = float("nan")
    elif how == "misshapen":
        weights[Q_PROJ] = weights[Q_PROJ][:5].contiguous()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    if how == "short":
        content = (target / "model.safetensors").read_bytes()
        (target / "model.safetensors").write_bytes(content[:-100])
    return target


HOW = {
    "missing": f"lacks {Q_PROJ} (1 weight)",
    "unknown": "has unknown model.language_model.layers.8.mlp.up_proj.weight",
    "misshapen": f"in another shape {Q_PROJ} (5x",
    "NaN": f"NaN or infinite, {Q_PROJ} among them",
    "short": "not a whole safetensors file",
}


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("how", HOW)
def test_a_run_refuses_it_at_its_beginning(
    write_config: Any, models: dict[str, Path], tmp_path: Path, how: str, role: str
) -> None:
    """Also the teacher, which the curriculum `uniform` asks only after the rollouts."""
    broken = spoiled(models[role], tmp_path / "broken", how)
    settings = {f"{role}.path": broken, "focus.curriculum": "uniform"}
    config = write_config(tmp_path, settings)
    with pytest.raises(VideoOPDError) as error:
        run_without_server(str(config), 1)
    sentence = str(error.value)
    assert str(broken) in sentence and HOW[how] in sentence and "\n" not in sentence
    assert not (tmp_path / "run" / "run.json").exists(), "no run was begun"


def test_a_model_that_breaks_later_is_looked_at_again(
    write_config: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(models["teacher"], tmp_path / "teacher"))
    config = str(write_config(tmp_path, QUICK | {"teacher.path": teacher}))
    run_without_server(config, 1)
    shutil.rmtree(teacher)
    spoiled(models["teacher"], teacher, "missing")
    with pytest.raises(VideoOPDError, match=f"{teacher} does not hold .* lacks {Q_PROJ}"):
        run_without_server(config, 1)


@pytest.mark.parametrize("how", HOW)
def test_evaluate_refuses_it(
    write_config: Any, models: dict[str, Path], tmp_path: Path, how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    broken = spoiled(models["teacher"], tmp_path / "broken", how)
    config = write_config(tmp_path, QUICK)
    assert main(["evaluate", str(config), "--model", str(broken)]) == 2
    said = capsys.readouterr().err
    assert HOW[how] in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_adapter_whose_base_has_changed(
    write_config: Any, models: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    student = Path(shutil.copytree(models["student"], tmp_path / "student"))
    settings = QUICK | {"student.path": student, "update.lora.rank": 4}
    run_without_server(str(write_config(tmp_path / "lora", settings)), 1)
    policy = Run.open(tmp_path / "lora" / "run").policy(1).path
    other = str(write_config(tmp_path / "other", QUICK))
    assert main(["evaluate", other, "--model", str(policy)]) == 0
    capsys.readouterr()
    weights = load_file(student / "model.safetensors")
    weights[Q_PROJ] += 1
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    assert main(["evaluate", other, "--model", str(policy)]) == 2
    said = capsys.readouterr().err
    assert f"{policy} or of the base that its adapter_config.json names are not those" in said
    with pytest.raises(VideoOPDError, match="are not those run|does not hold the weights"):
        Run.open(tmp_path / "lora" / "run").policy(1)
    shutil.rmtree(student)
    assert main(["evaluate", other, "--model", str(policy)]) == 2
    assert f"was trained on {student}, which is not there" in capsys.readouterr().err
    described = json.loads((policy / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(student)
