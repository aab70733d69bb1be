"""A policy belongs to everybody: any program loads it, any user may read it, the hub takes it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from flows.cli import main
from opd_core.model.tree_model import load_model
from opd_core.spans.protocols.known import PROTOCOLS
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server

QUICK = {"update.objective": "sft", "rollout.source": "truth", "rollout.rollouts_per_example": 1,
         "rollout.examples_per_round": 4, "focus.curriculum": "uniform"}  # fmt: skip
LORA = QUICK | {"update.lora.rank": 4, "update.learning_rate": 1e-2}
PLAIN = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
for folder in sys.argv[1:]:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.video_processor is not None
    assert not any(info.values()), info
    ours = {"opd_core", "storage", "flows"} & set(sys.modules)
    assert not ours, ours
    total = sum(p.double().abs().sum().item() for p in model.parameters())
    print(type(model).__name__, type(processor).__name__, f"{total:.6f}")
"""


@pytest.fixture(scope="module")
def runs(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of two rounds: `full`, written under umask 022, and `lora`, under 002."""
    folders = {}
    for name, settings, mask in (("full", QUICK, 0o022), ("lora", LORA, 0o002)):
        folder = tmp_path_factory.mktemp(name)
        before = os.umask(mask)
        try:
            run_without_server(str(write_config(folder, settings)), 2)
        finally:
            os.umask(before)
        folders[name] = folder / "run"
    return folders


@pytest.fixture(scope="module")
def exports(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of `full` its newest policy, of `lora` its first one, which becomes a whole model."""
    folder = tmp_path_factory.mktemp("exports")
    exported(str(runs["full"]), folder / "full")
    exported(f"{runs['lora']}@1", folder / "lora")
    return {name: folder / name for name in runs}


@pytest.fixture(scope="module")
def loaded_by_anybody(runs: dict[str, Path], exports: dict[str, Path]) -> dict[Path, list[str]]:
    """What a plain Python says of policies and exports, started elsewhere and importing nothing of
    ours."""
    folders = [*(run / "policies" / "v2" for run in runs.values()), *exports.values()]
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSTARTUP")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, *map(str, folders)],
        cwd="/", env=kept, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()[-len(folders) :]
    return {folder: line.split() for folder, line in zip(folders, said, strict=True)}


def exported(run: str, out: Path) -> ModelCard:
    assert main(["export", run, "--to", "hub-folder", "--out", str(out)]) == 0
    card: ModelCard = ModelCard.load(out / "README.md")
    return card


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.in_turn
def test_any_program_loads_a_policy(
    runs: dict[str, Path], loaded_by_anybody: dict[Path, list[str]], kind: str
) -> None:
    folder = runs[kind] / "policies" / "v2"
    ours: Any = load_model(folder, "float32")
    total = sum(p.double().abs().sum().item() for p in ours.parameters())
    said = loaded_by_anybody[folder]
    assert said[:2] == ["Qwen3VLForConditionalGeneration", "Qwen3VLProcessor"]
    assert float(said[2]) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("kind, mask", [("full", 0o022), ("lora", 0o002)])
def test_all_files_have_the_mode_of_the_umask(runs: dict[str, Path], kind: str, mask: int) -> None:
    paths = [*runs[kind].rglob("*"), *(runs[kind].parent / "videoopd-frames").rglob("*")]
    assert any(path.suffix == ".safetensors" for path in paths)
    for path in paths:
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_exports_have_the_mode_of_the_umask(
    runs: dict[str, Path], tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        for to in ("parquet", "jsonl", "hf", "hub-folder"):
            for kind in ("full", "lora"):
                out = tmp_path / f"{to}-{kind}"
                assert main(["export", str(runs[kind]), "--to", to, "--out", str(out)]) == 0
                for path in [out, *out.rglob("*")]:
                    wanted = (0o777 if path.is_dir() else 0o666) & ~mask
                    assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    finally:
        os.umask(before)


def test_a_full_policy_is_exported_with_its_weights(
    runs: dict[str, Path], tmp_path: Path, exports: dict[str, Path],
    loaded_by_anybody: dict[Path, list[str]],
) -> None:  # fmt: skip
    run = Run.open(runs["full"])
    for name, version in ((f"{runs['full']}@1", 1), (str(runs["full"]), 2)):
        out = tmp_path / str(version)
        card = exported(name, out)
        policy = run.policy(version)
        stored, written = (load_file(f / "model.safetensors") for f in (policy.path, out))
        assert stored.keys() == written.keys()
        assert all(stored[n].equal(written[n]) for n in stored)
        assert policy.weights_hash in card.text
        names = {p.name for p in out.iterdir()}
        assert not names & {"optimizer.pt", "manifest.json"}
        assert {"config.json", "tokenizer.json", "README.md"} <= names
    assert loaded_by_anybody[exports["full"]][0] == "Qwen3VLForConditionalGeneration"


def test_an_adapter_is_exported_merged_into_its_base(
    runs: dict[str, Path], exports: dict[str, Path], loaded_by_anybody: dict[Path, list[str]]
) -> None:
    out = exports["lora"]
    assert not (out / "adapter_config.json").exists()
    assert loaded_by_anybody[out][0] == "Qwen3VLForConditionalGeneration"
    merged: Any = load_model(out, "float32")
    policy: Any = load_model(Run.open(runs["lora"]).policy(1).path, "float32")
    layers = [(n, m) for n, m in policy.named_modules() if hasattr(m, "get_delta_weight")]
    assert len(layers) == 28
    moved = 0.0
    for name, layer in layers:
        expected = layer.get_base_layer().weight + layer.get_delta_weight("default")
        assert torch.allclose(merged.get_submodule(name).weight, expected, atol=1e-6)
        moved = max(moved, float(layer.get_delta_weight("default").detach().abs().max()))
    assert moved > 0


def test_a_new_run_can_start_from_an_exported_adapter(
    runs: dict[str, Path], write_config: Any, tmp_path: Path
) -> None:
    """As the refusal of another rank says."""
    exported(str(runs["lora"]), tmp_path / "merged")
    changed = LORA | {"student.path": tmp_path / "merged", "update.lora.rank": 8}
    run_without_server(str(write_config(tmp_path / "new", changed)), 1)
    folder = Run.open(tmp_path / "new" / "run").policy(1).path
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8


def test_the_card_says_what_the_tables_say(
    runs: dict[str, Path], tmp_path: Path, models: dict[str, Path]
) -> None:
    card = exported(str(runs["full"]), tmp_path / "out")
    described: Any = card.data  # its fields are those of the file
    data = described.to_dict()
    assert data["base_model"] == models["student"].name
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "video-text-to-text"
    assert {"arxiv:2602.02994", "on-policy-distillation"} <= set(data["tags"])
    assert data["license"] == "other"
    run = Run.open(runs["full"])
    answers = run.evaluations().collect()
    ious = answers.filter(answers["policy_version"] == 2)["iou"]
    (strict,) = [r for r in described.eval_results if r.metric_name == "mIoU (strict)"]
    assert strict.metric_value == pytest.approx(ious.mean(), abs=1e-4)
    assert strict.metric_args == {"protocol": "strict", "examples": len(ious)}
    assert {r.metric_args["protocol"] for r in described.eval_results} == set(PROTOCOLS)
    for name in PROTOCOLS:
        assert f"{name}: {PROTOCOLS[name].about}." in card.text
        assert f"| {name} | answers without a span |" in card.text
    for text in ("2602.02994", "teacher", run.teacher_hash, "| 2 | sft | 4 |", '"learning_rate"',
                 "AutoModelForImageTextToText.from_pretrained", run.run_id):  # fmt: skip
        assert text in card.text, text
    for folder in (runs["full"].parent, models["student"].parent, Path.home()):
        assert f"{folder}/" not in card.content, "no path of this machine"


def test_the_licence_and_name_of_the_base_are_said_on(tmp_path: Path) -> None:
    from flows.commands.model_card import _licence, hub_name

    cached = tmp_path / "models--Qwen--Qwen3-VL-8B-Instruct" / "snapshots" / ("0" * 40)
    assert hub_name(cached) == "Qwen/Qwen3-VL-8B-Instruct"
    cached.mkdir(parents=True)
    (cached / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    assert _licence(cached) == {"license": "apache-2.0"}


def test_an_answer_that_was_never_judged_is_absent_in_the_card() -> None:
    """As in a run of an older format, whose answers no other protocol has read."""
    from flows.commands.model_card import Evaluated, _metrics, _results
    from flows.evaluation.groups import Group
    from opd_core.spans.bootstrap import Estimate
    from opd_core.spans.metrics import per_example

    absent = {name: name.startswith("timelens") for name in per_example()}
    metrics = {n: Estimate(None if gone else 0.5, None, None) for n, gone in absent.items()}
    found = [Evaluated(1, Group("all", 3, 1, metrics))]
    config = {"data": {"eval": "eval.jsonl"}}
    said = _metrics(found, config).splitlines()
    assert "| timelens | mIoU | - |" in said and "| strict | mIoU | 0.500 |" in said
    assert {r.metric_args["protocol"] for r in _results(config, found)} == {
        "strict", "qvhighlights",
    }  # fmt: skip


def test_the_card_says_how_it_was_asked() -> None:
    from flows.commands.model_card import _question

    assert _question({"prompt": {"template": "json", "text": None}}) == "the template `json`"
    own = {"prompt": {"template": "timelens", "text": "When is '{query}'?\nSay A - B."}}
    assert _question(own) == "`When is '{query}'? Say A - B.`"


def test_what_cannot_be_exported_is_one_sentence(
    runs: dict[str, Path], write_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.stage.prepare import opened

    with opened(str(write_config(tmp_path, QUICK))):
        pass
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--to", "hub-folder", "--out", str(out)]) == 2
    assert "has made no policy yet" in capsys.readouterr().err
    arguments = ["export", str(runs["full"]), "--to", "hub-folder", "--out"]
    assert main([*arguments, str(out), "--table", "rollouts"]) == 2
    assert "leave out --table" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is not empty; give --out a new folder\n" in said, "--force is refused, too"
    assert main([*arguments, str(tmp_path), "--force"]) == 2
    assert "replaces no folder" in capsys.readouterr().err
