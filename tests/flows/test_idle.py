"""A stage with nothing to do, and a command on a busy run, end before anything heavy begins.

By what is loaded and what processor time it takes, not by the clock: a busy machine must not fail
it. `videoopd bench idle` measures the seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import alone
from flows.stage import processor_cache
from flows.stage.prepare import WorkLeft, opened
from opd_core.config.load import load_config
from opd_core.types import VideoOPDError
from storage.locks import InUseError, held, refuse_held
from storage.runs.run import Run
from storage.stages import STAGES
from tests.flows.conftest import ROOT
from tests.flows.kill_points import run_without_server
from tests.known import known

HEAVY = {"prefect", "torch", "transformers", "av", "decord"}
PROGRAM = """
import json, sys, time
from flows.cli import main
code = main(sys.argv[1:])
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"code": code, "loaded": loaded, "seconds": time.process_time()}))
"""


def told(environment: dict[str, str], *arguments: object) -> tuple[dict[str, Any], str, str]:
    """What a command loaded and used, what it printed, and what it complained about."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *lines, last = done.stdout.splitlines()
    return json.loads(last), "\n".join(lines), done.stderr


@pytest.fixture(scope="module")
def finished(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run of one round."""
    config: Path = write_config(tmp_path_factory.mktemp("finished"))
    run_without_server(str(config), 1)
    return config


def counts(config: Path) -> dict[tuple[str, int, int], int]:
    return Run.open(config.with_name("run")).rows_by_take()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_with_nothing_to_do_loads_nothing_heavy(
    name: str, finished: Path, command_environment: dict[str, str]
) -> None:
    before = counts(finished)
    said, text, _ = told(command_environment, "stage", name, finished, "--round", 1)
    assert said["code"] == 0 and f"{name} of round 1: 0 rows" in text
    assert not HEAVY & set(said["loaded"])
    assert said["seconds"] < 3.0
    assert counts(finished) == before


@pytest.mark.in_turn
def test_answers_that_are_there_are_shown_without_a_model(
    finished: Path, command_environment: dict[str, str]
) -> None:
    said, text, _ = told(command_environment, "evaluate", finished)
    assert said["code"] == 0 and "policy 1" in text
    assert not HEAVY & set(said["loaded"])
    asked = ("evaluate", finished, "--model", load_config(finished).teacher.path)
    assert told(command_environment, *asked)[0]["code"] == 0
    said, _, _ = told(command_environment, *asked)
    assert said["code"] == 0 and not HEAVY & set(said["loaded"])


@pytest.mark.parametrize("arguments", [("run",), ("stage", "score"), ("evaluate",)])
def test_a_busy_run_is_told_before_anything_is_loaded(
    arguments: tuple[str, ...], finished: Path, command_environment: dict[str, str]
) -> None:
    with Run.open(finished.with_name("run")).exclusive("round"):
        said, _, complaint = told(command_environment, *arguments, finished)
    assert said["code"] == 2 and "is in use by process" in complaint
    assert len(complaint.splitlines()) == 1
    assert not HEAVY & set(said["loaded"])


def test_each_stage_is_seen_to_have_something_to_do_and_does_it_once(
    write_config: Any, tmp_path: Path
) -> None:
    config = str(write_config(tmp_path))
    assert alone.nothing_to_do("draw", config, None, []) is None, "there is no run yet"
    assert not (tmp_path / "run").exists(), "looking makes none"
    with opened(config):
        pass
    more = ["rollout.rollouts_per_example=3"]
    for name in STAGES[:-1]:
        if name == "focus":
            with pytest.raises(VideoOPDError, match="rollouts of round 1 are still missing"):
                alone.nothing_to_do("focus", config, 1, more)
        before = counts(tmp_path / "config.toml")
        assert alone.nothing_to_do(name, config, 1, []) is None
        assert counts(tmp_path / "config.toml") == before, "looking writes no row"
        with opened(config) as work:
            alone.alone(name)(work, work.policy_at(name, 1), False)
        found = alone.nothing_to_do(name, config, 1, [])
        assert found is not None and found.rows == 0 and found.stage == name
    assert alone.nothing_to_do("evaluate", config, 1, []) is None
    with opened(config) as work:
        alone.alone("evaluate")(work, work.policy_at("evaluate", 1), False)
    assert known(alone.nothing_to_do("evaluate", config, 1, [])).notes["answers"] == 5
    assert alone.nothing_to_do("rollout", config, 1, more) is None
    found = alone.nothing_to_do("focus", config, 1, more)
    assert found is not None and found.rows == 0, "the round is committed, and its choice stays"


@pytest.mark.in_turn
def test_what_is_stale_is_something_to_do(write_config: Any, tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    run_without_server(config, 1)
    with opened(config) as work:
        alone.alone("score")(work, work.policy_at("score", 1), True)
    assert alone.nothing_to_do("score", config, 1, []) is not None
    assert alone.nothing_to_do("focus", config, 1, []) is None
    for force in (False, True):
        with pytest.raises(VideoOPDError, match=r"videoopd stage focus \S+config.toml --round 1"):
            alone.nothing_to_do("update", config, 1, [], force)
    before = counts(tmp_path / "config.toml")
    assert alone.nothing_to_do("focus", config, 1, [], True) is None
    assert counts(tmp_path / "config.toml") == before, "looking supersedes nothing"


def test_force_is_refused_before_anything_is_loaded(
    finished: Path, command_environment: dict[str, str]
) -> None:
    said, _, complaint = told(command_environment, "stage", "validate", finished, "--force")
    assert said["code"] == 2 and "forcing it would give the same answers" in complaint
    assert len(complaint.splitlines()) == 1
    assert not HEAVY & set(said["loaded"])


def test_only_looking_ends_where_the_work_begins(finished: Path) -> None:
    with opened(str(finished), looking=True) as work, pytest.raises(WorkLeft):
        work.about_to_work()
    with opened(str(finished)) as work:
        work.about_to_work()


def test_a_processor_is_opened_again_when_its_files_change(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from opd_core.prompts import encoder as prompts

    folder = Path(shutil.copytree(models["teacher"], tmp_path / "teacher"))
    first = processor_cache.processor_hash_of(folder, tmp_path)
    assert first == prompts.processor_hash(prompts.load_processor(folder))
    opened_again: list[Path] = []
    load = prompts.load_processor

    def counted(folder: Path) -> Any:
        opened_again.append(folder)
        return load(folder)

    monkeypatch.setattr(prompts, "load_processor", counted)
    assert processor_cache.processor_hash_of(folder, tmp_path) == first and not opened_again
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# other words #}")
    second = processor_cache.processor_hash_of(folder, tmp_path)
    assert opened_again and second != first
    assert second == prompts.processor_hash(load(folder))


def test_looking_at_a_lock_makes_nothing_and_is_in_nobodys_way(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".locks" / "round.lock"
    refuse_held(lock)
    assert not lock.parent.exists()
    with held(lock, "rollout", 0.0), pytest.raises(InUseError, match=r"stage rollout, since"):
        refuse_held(lock)
    refuse_held(lock)
    with held(lock, "score", 0.0):
        pass
