from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows.cli import main
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.asking.diff import Diff, diff
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.known import known
from tests.storage.finished_run import Finished, finished_run, rewrite, write_config


@pytest.fixture(scope="module")
def finished(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory.getbasetemp() / "finished", tiny_world.videos.parent)


def names(found: Diff) -> set[str]:
    return {row.name for row in found.inputs}


def test_a_run_and_its_copy_are_the_same(finished: Finished, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.run, tmp_path / "copy"))
    found = diff(Run.open(finished.run), Run.open(copy))
    assert found.inputs == ()
    assert {"teacher weights", "processor", "train examples", "pixels", "draw"} <= set(found.same)
    assert "config run.seed" in found.same and "config run.path" not in found.same
    numbers = {n.name: n for n in found.numbers}
    assert numbers["eval IoU, strict"].count == 6
    same_answers = numbers["teacher_logprobs of the same answers"]
    assert same_answers.count > 0 and same_answers.largest == same_answers.difference == 0.0


def test_two_rounds_differ_in_policy_and_draw(finished: Finished) -> None:
    found = diff(Run.open(finished.run, round=1), Run.open(finished.run, round=2))
    assert names(found) == {"policy sampled from", "draw"}
    assert found.a.endswith("@1") and found.b.endswith("@2")


@pytest.mark.in_turn
def test_another_config_and_teacher(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.models, tmp_path / "models")
    file = tmp_path / "models" / "teacher" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 16
    file.write_bytes(content)
    config = write_config(tmp_path, finished.world, tmp_path / "run",
                          **{"update.learning_rate": 2e-3, "focus.top_k": 3})  # fmt: skip
    run_without_server(str(config), 1)
    found = diff(Run.open(finished.run, round=1), Run.open(tmp_path / "run"))
    differing = names(found)
    assert {"teacher weights", "config update.learning_rate", "config focus.top_k"} <= differing
    assert "base student weights" not in differing and "draw" not in differing
    rate = next(row for row in found.inputs if row.name == "config update.learning_rate")
    assert (rate.a, rate.b) == (1e-3, 2e-3)
    numbers = {n.name: n for n in found.numbers}
    assert numbers["student IoU"].count == 8
    same = numbers["sampling_logprobs of the same answers"]
    assert same.count == 16 and same.largest == 0.0  # the same student, the same seeds
    assert known(numbers["teacher_logprobs of the same answers"].largest) > 0.0


@pytest.mark.parametrize(
    ("table", "column", "value", "name"),
    [
        ("rollouts", "pixel_hash", "x", "pixels of "),
        ("rollouts", "processor_hash", "x", "processor"),
        ("rollouts", "engine", "vllm", "engine"),
        ("rollouts", "engine_version", "9", "engine version"),
        ("rollouts", "git_commit", "abc", "code commit"),
        ("examples", "split", "eval", "train examples"),
    ],
)
def test_every_input_is_compared(
    finished: Finished, tmp_path: Path, table: str, column: str, value: str, name: str
) -> None:
    copy = Path(shutil.copytree(finished.run, tmp_path / "copy"))
    rewrite(copy, table, lambda rows: [row.update({column: value}) for row in rows])
    found = diff(Run.open(finished.run), Run.open(copy))
    assert any(n.startswith(name) for n in names(found))


def test_a_missing_config_is_named(finished: Finished, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.run, tmp_path / "copy"))
    shutil.rmtree(copy / "configs")
    with pytest.raises(VideoOPDError, match="cannot be read, and rows name it; restore it"):
        diff(Run.open(finished.run), Run.open(copy))


def test_the_command_prints_text_and_json(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [f"{finished.run}@1", str(finished.run)]
    assert main(["diff", *sides]) == 0
    text = capsys.readouterr().out
    assert "policy sampled from" in text and "eval IoU, strict" in text and "the same:" in text
    assert main(["diff", *sides, "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in content["inputs"]} == {"policy sampled from", "draw"}
    assert set(content["numbers"][0]) == {
        "name", "count", "of", "a", "b", "largest", "difference"
    }  # fmt: skip


def test_what_is_no_run_or_round_is_one_sentence(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", f"{finished.run}@9", str(finished.run)]) == 2
    assert "has not finished round 9; give one of those it has: 1, 2" in capsys.readouterr().err
    assert main(["diff", f"{finished.run}-no@1", str(finished.run)]) == 2
    assert "is no run" in capsys.readouterr().err
