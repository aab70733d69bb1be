"""Runs whose models are named on the hub: the commit is recorded, and is the run's from then on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from flows.audit.walk import Depth, audit
from flows.cli import main
from flows.commands.model_card import card
from flows.evaluation.command import evaluate_command
from flows.stage.prepare import opened
from opd_core.config.load import load_config
from opd_core.config.paths import from_folder
from opd_core.types import VideoOPDError
from storage.runs import run_folder
from storage.runs.run import Run
from tests.flows.conftest import ROOT, WriteConfig
from tests.flows.kill_points import run_without_server
from tests.hub_cache import FIRST, SECOND, fill
from tests.hub_server import serving

NAMES = {"student.path": "Tiny/Student", "teacher.path": "Tiny/Teacher@v1"}
QUICK = NAMES | {"rollout.examples_per_round": 4, "focus.curriculum": "uniform",
                 "update.max_steps": 1, "evaluate.max_examples": 2}  # fmt: skip
STUDENT, TEACHER = f"Tiny/Student@{FIRST}", f"Tiny/Teacher@{SECOND}"


@pytest.fixture(scope="module")
def cache(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The hub's cache of this process, with both models in it."""
    folder = tmp_path_factory.mktemp("hub")
    fill(folder, models["student"], "Tiny/Student")
    fill(folder, models["teacher"], "Tiny/Teacher", SECOND, "v1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def config(
    cache: Path, write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a finished round."""
    file = write_config(tmp_path_factory.mktemp("named"), QUICK)
    run_without_server(str(file), 1)
    return file


def test_where_a_run_describes_its_models_the_commit_stands(
    config: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(config.with_name("run"))
    described = run_folder.read(run.path)
    assert described["student"]["hub"] == STUDENT and described["teacher"]["hub"] == TEACHER
    assert run_folder.hub_commits(run.path) == {"Tiny/Student": FIRST, "Tiny/Teacher@v1": SECOND}
    for rows in (run.teacher_scores(), run.teacher_predictions()):
        assert set(rows.collect()["teacher_id"]) <= {TEACHER}
    assert run.teacher_scores().select(pl.len()).collect().item() > 0
    assert main(["status", str(run.path)]) == 0
    assert f"student {STUDENT}, teacher {TEACHER}" in capsys.readouterr().out
    verdicts = list(audit(run, Depth(deep=1.0, seed=0)))
    assert [v.broken for v in verdicts if v.broken] == []
    notes = [note for v in verdicts if v.checked for note in v.checked.notes]
    assert f"policy 0 is {STUDENT}" in notes and f"the teacher is {TEACHER}" in notes
    text = card(run, 1)
    assert "base_model: Tiny/Student\n" in text
    assert f"| base | {STUDENT}, weights" in text and f"| teacher | {TEACHER}, weights" in text
    assert str(cache) not in text, "no path of this machine"


def test_a_run_stays_at_its_commit_when_main_moves(
    config: Path, cache: Path, models: dict[str, Path], write_config: WriteConfig, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(config.parent, tmp_path / "other"))
    named = other / "config.toml"
    before = set((other / "run" / "configs").iterdir())
    fill(cache, models["teacher"], "Tiny/Student", SECOND)
    try:
        said = rf"goes on with Tiny/Student@{FIRST}, at which it began; main is at {SECOND} by now"
        with pytest.warns(RuntimeWarning, match=said), opened(str(named)) as work:
            assert work.config.student.path.name == FIRST
        assert set((other / "run" / "configs").iterdir()) == before, "the same config, and hash"
        with pytest.raises(VideoOPDError, match=f"began with {STUDENT}, and student.path is now"):
            run_without_server(str(named), 1, [f"student.path='Tiny/Student@{SECOND}'"])
        with opened(str(named), [f"student.path='{STUDENT}'"]) as work:
            assert work.config.student.path.name == FIRST, "its own, at full length"
        newer = write_config(tmp_path / "new", QUICK)
        with opened(str(newer)) as work:
            assert work.config.student.path.name == SECOND, "a new run takes what there is now"
    finally:
        (cache / "models--Tiny--Student" / "refs" / "main").write_text(FIRST)


def test_a_damaged_memory_of_commits_is_a_sentence(config: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(config.parent, tmp_path / "other"))
    (other / "run" / "hub.json").write_text("[")
    with pytest.raises(VideoOPDError, match=r"hub\.json, which says at which commits"):
        run_without_server(str(other / "config.toml"), 1)


def test_a_folder_of_that_name_is_taken_first(
    cache: Path, models: dict[str, Path], write_config: WriteConfig, tmp_path: Path
) -> None:
    file = write_config(tmp_path, QUICK)
    assert load_config(file).student.path == Path("Tiny/Student")
    folder = Path(shutil.copytree(models["student"], tmp_path / "Tiny" / "Student"))
    assert load_config(file).student.path == folder
    with opened(str(file)) as work:
        assert "hub" not in run_folder.read(work.run.path)["student"]


def test_a_name_that_is_typed_is_no_path_of_the_shell(tmp_path: Path) -> None:
    override = "student.path=Qwen/Qwen3-VL-8B-Instruct@v1"
    assert from_folder([override], tmp_path) == (override,)
    (tmp_path / "Qwen" / "Qwen3-VL-8B-Instruct@v1").mkdir(parents=True)
    assert str(tmp_path) in from_folder([override], tmp_path)[0]
    assert str(tmp_path) in from_folder(["run.path=a/b"], tmp_path)[0]


def test_any_model_is_evaluated_by_its_name(
    config: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(model: str) -> dict[str, object]:
        capsys.readouterr()
        words = ["evaluate", str(config), "--model", model, "--format", "json"]
        assert main(words) == 0
        answers: dict[str, object] = json.loads(capsys.readouterr().out)
        return answers

    assert asked("Tiny/Teacher@v1")["who"] == TEACHER
    rows = Run.open(config.with_name("run")).model_evaluations().collect()
    assert set(rows["model_id"]) == {TEACHER}
    assert main(["evaluate", str(config), "--against", "Tiny/Teacher@v1"]) == 0
    assert f"B  {TEACHER}" in capsys.readouterr().out
    for what, words in (("--model", "Tiny/Nobody"), ("--against", "runs/nobody")):
        assert main(["evaluate", str(config), what, words]) == 2
        said = capsys.readouterr().err
        assert f"there is no {words} here, and the hub's cache" in said and "hf download" in said


def run_in_a_process(
    file: Path, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "stage", "draw", str(file), *words], cwd=ROOT,
        env=known | environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.server
@pytest.mark.in_turn
def test_a_command_fetches_what_it_needs_and_says_what_it_cannot(
    models: dict[str, Path], write_config: WriteConfig, tmp_path: Path
) -> None:
    file = write_config(tmp_path, QUICK)
    home = {"HF_HUB_CACHE": str(tmp_path / "cache"), "PREFECT_HOME": str(tmp_path / "prefect")}
    done = run_in_a_process(file, HF_HUB_OFFLINE="1", **home)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = done.stderr.splitlines()
    assert f"student.path in {file} is 'Tiny/Student': there is no folder {tmp_path}/Tiny" in line
    assert "HF_HUB_OFFLINE is set; unset it" in line and "`hf download Tiny/Student`" in line

    with serving() as hub:
        online = home | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "",
                         "TRANSFORMERS_OFFLINE": ""}  # fmt: skip
        hub.publish("Tiny/Student", models["student"], FIRST)
        hub.publish("Tiny/Teacher", models["teacher"], SECOND, "v1")
        done = run_in_a_process(file, "--set", "student.path=Tiny/Studnet", **online)
        assert done.returncode == 2 and "the hub has no model Tiny/Studnet" in done.stderr
        assert not hub.sent and not (tmp_path / "run").exists()
        done = run_in_a_process(file, **online)
        assert done.returncode == 0, done.stderr
        assert sorted(hub.sent).count("model.safetensors") == 2
    run = Run.open(tmp_path / "run")
    assert run_folder.read(run.path)["student"]["hub"] == STUDENT
    done = run_in_a_process(file, "--round", "1", HF_HUB_OFFLINE="1", **home)
    assert done.returncode == 0, "what was fetched is there without a network"


def test_status_and_queries_ask_for_no_model(
    config: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    for words in (["status", str(config)], ["query", str(config), "SELECT 1 AS one"]):
        assert main(words) == 0, words
    assert not (tmp_path / "empty").exists()


def test_evaluation_of_a_typo_names_both(config: Path) -> None:
    with pytest.raises(VideoOPDError, match="give --model the folder .* or its name on the hub"):
        evaluate_command(str(config), lambda name: Run.open(name), model=Path("nothing"))


def test_a_run_knows_its_commits_before_it_imports_anything(
    cache: Path, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.stage.prepare.import_annotations", killed)
    config = write_config(tmp_path, QUICK)
    with pytest.raises(KeyboardInterrupt), opened(str(config)):
        pass
    commits = run_folder.hub_commits(tmp_path / "run")
    assert commits == {"Tiny/Student": FIRST, "Tiny/Teacher@v1": SECOND}
