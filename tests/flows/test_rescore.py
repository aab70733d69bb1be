"""Divergences from kept hidden states are those of both models' own forward passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.cli import main
from opd_core.config.load import load_config
from opd_core.model.divergences import divergences, entropies
from opd_core.model.lm_head import load_lm_head
from opd_core.model.prefix_tree import pack
from opd_core.model.tree_model import TreeModel, load_model
from opd_core.prompts.batches import ExampleEncoder
from opd_core.scoring.trees import rollout_tree
from opd_core.types import GroundingExample, Rollout, TeacherScore, VideoOPDError
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server

HEADS = {"score.hidden_states": True, "score.teacher_entropy": True}


# --- the one tensor --------------------------------------------------------------------------


def test_the_head_is_the_models_own(models: dict[str, Path], tmp_path: Path) -> None:
    tied = load_lm_head(models["teacher"], "float32")
    model: Any = load_model(models["teacher"], "float32")
    assert tied.equal(model.lm_head.weight)
    config = json.loads((models["teacher"] / "config.json").read_text())

    def says(tie: bool) -> None:
        settings = config | {"tie_word_embeddings": tie}
        settings["text_config"] = config["text_config"] | {"tie_word_embeddings": tie}
        (tmp_path / "config.json").write_text(json.dumps(settings))

    own = {"model.language_model.embed_tokens.weight": tied, "lm_head.weight": tied + 1}
    save_file(own, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"model.visual.a": tied}, tmp_path / "model-00001-of-00002.safetensors")
    says(tie=False)
    assert load_lm_head(tmp_path, "float32").equal(tied + 1), "a head of its own"
    assert load_lm_head(tmp_path, "bfloat16").dtype == torch.bfloat16
    says(tie=True)
    with pytest.raises(VideoOPDError, match="differs from its embedding"):
        load_lm_head(tmp_path, "float32")
    save_file(own | {"lm_head.weight": tied.clone()}, tmp_path / "model-00002-of-00002.safetensors")
    assert load_lm_head(tmp_path, "float32").equal(tied), "a tied head that was saved too"
    del own["lm_head.weight"]
    save_file(own, tmp_path / "model-00002-of-00002.safetensors")
    says(tie=False)
    with pytest.raises(VideoOPDError, match=r"has no lm_head\.weight in its"):
        load_lm_head(tmp_path, "float32")
    with pytest.raises(VideoOPDError, match=r"no readable config\.json"):
        load_lm_head(tmp_path / "nowhere", "float32")


# --- a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run of two rounds that kept hidden states."""
    config: Path = write_config(tmp_path_factory.mktemp("kept"), HEADS)
    run_without_server(str(config), 2)
    return config


def online(config: Path, version: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """rollout id -> (policy's, teacher's) full distributions [T, V], each by its own forward."""
    loaded, run = load_config(config), Run.open(config.with_name("run"))
    this = pl.col("policy_version") == version
    wanted = set(run.teacher_scores().filter(this).collect()["rollout_id"])
    rollouts = [r for r in run.read("rollouts", Rollout, this) if r.rollout_id in wanted]
    examples = {e.example_id: e for e in run.read("examples", GroundingExample)}
    found: dict[str, list[torch.Tensor]] = {}
    for folder in (run.policy(version).path, loaded.teacher.path):
        encoder = ExampleEncoder(loaded, folder)
        model = TreeModel(load_model(folder, "float32"), encoder.prompts.tokenizer)
        for r in rollouts:  # each alone: nothing is shared with the trees of the command
            (batch,) = encoder.encode_batches([[examples[r.example_id]]], "test", None)
            tree = rollout_tree(batch.videos[0], {r.example_id: [r]})
            with torch.inference_mode():
                ((_, _, logprobs),) = model.completion_distributions(pack([tree]))
            found.setdefault(r.rollout_id, []).append(logprobs)
    return {name: (both[0], both[1]) for name, both in found.items()}


@pytest.mark.in_turn
def test_rescored_divergences_are_those_of_both_models_forwards(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kept.with_name("run")
    assert main(["rescore", str(run), "--round", "1"]) == 0
    printed = capsys.readouterr().out
    assert "16 rollouts rescored" in printed and "reverse KL, k1" in printed
    assert main(["rescore", str(kept)]) == 0, "a config names its run"
    assert "16 rollouts rescored" in capsys.readouterr().out, "round 1 was done, round 2 was not"
    assert main(["rescore", str(run)]) == 0
    assert "\n0 rollouts rescored" in capsys.readouterr().out
    largest = 0.0
    for version in (0, 1):
        expected = online(kept, version)
        this = pl.col("policy_version") == version
        rows = {r["rollout_id"]: r for r in
                Run.open(run).divergences().filter(this).collect().to_dicts()}  # fmt: skip
        assert rows.keys() == expected.keys() and len(rows) == 16
        for name, (policy, teacher) in expected.items():
            exact = divergences(policy.double(), teacher.double())
            for column, values in exact._asdict().items():
                off = np.abs(np.array(rows[name][column]) - values.numpy()).max()
                largest = max(largest, float(off))
            assert rows[name]["max_teacher_mismatch"] <= 1e-5
            assert rows[name]["max_student_mismatch"] <= 1e-4
    assert largest <= 1e-4
    sql = "SELECT count(*) AS n, avg(max_student_mismatch) AS off FROM divergences"
    assert main(["query", str(run), sql, "--format", "json"]) == 0
    assert '"n":32' in capsys.readouterr().out.replace(" ", "")


def test_entropies_are_those_of_the_teachers_distribution(kept: Path) -> None:
    expected = online(kept, 0)
    this = pl.col("policy_version") == 0
    rows = Run.open(kept.with_name("run")).read("teacher_scores", TeacherScore, this)
    assert len(rows) == 16
    for row in rows:
        assert row.teacher_entropies is not None and row.hidden_states is not None
        assert len(row.hidden_states) == len(row.teacher_logprobs)
        exact = entropies(expected[row.rollout_id][1].double())
        assert list(row.teacher_entropies) == pytest.approx(exact.tolist(), abs=1e-4)


def test_rescoring_needs_no_other_weights_of_the_teacher(
    write_config: Any, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Path(shutil.copytree(models["teacher"], tmp_path / "teacher"))
    settings = HEADS | {"teacher.path": teacher, "rollout.examples_per_round": 3}
    config = write_config(tmp_path, settings)
    run_without_server(str(config), 1)
    weights = load_file(teacher / "model.safetensors")
    head = {k: v for k, v in weights.items() if k.endswith("language_model.embed_tokens.weight")}
    assert len(head) == 1
    config_json = (teacher / "config.json").read_text()
    shutil.rmtree(teacher)
    teacher.mkdir()
    (teacher / "config.json").write_text(config_json)
    name, tensor = head.popitem()
    save_file({name: tensor + 0.1 * torch.randn(tensor.shape)}, teacher / "model.safetensors")
    assert main(["rescore", str(tmp_path / "run")]) == 2
    assert "nats off those that were scored; put back the teacher" in capsys.readouterr().err
    save_file({name: tensor}, teacher / "model.safetensors")
    assert main(["rescore", str(tmp_path / "run")]) == 0
    assert "6 rollouts rescored" in capsys.readouterr().out


def test_a_run_without_hidden_states_says_what_to_do(
    write_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_without_server(str(write_config(tmp_path, {"rollout.examples_per_round": 3})), 1)
    for arguments in ([], ["--round", "1"]):
        assert main(["rescore", str(tmp_path / "run"), *arguments]) == 2
        message = capsys.readouterr().err
        assert "score with score.hidden_states = true" in message and message.count("\n") == 1
