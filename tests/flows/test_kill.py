"""Killed at any moment, the same command finishes the round as if nothing had happened.

A real process gets a real SIGKILL at points of every stage, and at random moments. The same command
then has to end with the tables of a run that nobody disturbed: the same rows, none twice, none
lost, bit for bit in every column that is no timing and no provenance, and the same weights.
`kill_points.py` says how; two of the tests kill `videoopd run` itself, with its Prefect server.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from opd_core.types import VideoOPDError
from storage.asking.contents import contents as everything
from storage.runs.policies import read_manifest, weights_hash
from storage.runs.run import Run
from storage.tables.schemas import TABLES
from tests import forked
from tests.flows.conftest import KILL_SCRIPT, KILLED, Launch

pytestmark = pytest.mark.kill

ROUND = {
    # Its writes would shift which append is the n-th; it has kill tests of its own.
    "frames.enabled": False,
    "rollout.prompts_per_batch": 4,
    "update.objective": "exact_reverse_kl",
    "storage.flush_seconds": 0,  # every batch its own append, which the points below count
}

POINTS = [
    ("after create", 1),  # the tables are there, run.json is not
    ("after append:examples", 1),
    ("before write", 4),  # while the tables are created
    ("before write:append", 2),  # inside an append
    ("before append:draws", 1),
    ("before sample", 4),  # the teacher's, in the second batch of validate
    ("before append:teacher_predictions", 2),
    ("before append:rollouts", 2),
    ("after append:rollouts", 2),
    ("before append:teacher_scores", 1),
    ("before append:selections", 1),
    ("before step", 2),
    ("before save", 1),
    ("after save", 1),
    ("after rename", 2),  # inside publish: what the trainer keeps is there, the checkpoint not yet
    ("before rename", 3),  # the checkpoint is whole, under its staging name
    ("after rename", 3),
    ("after publish", 1),
    ("after append:updates", 1),
    ("after append:evaluations", 3),  # the first of the new policy's two
    ("before finish", 1),
    ("before tag", 5),
    ("after finish", 1),
]


@pytest.fixture(scope="module")
def undisturbed(
    launch: Launch, write_config: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Contents and duration of a run that nobody killed."""
    config = write_config(tmp_path_factory.mktemp("undisturbed"), ROUND)
    began = time.monotonic()
    assert launch(config) == 0, config.with_name("log.txt").read_text()
    found = contents(config.with_name("run"))
    assert len(found["rollouts"]) == 20 and len(found["evaluations"]) == 10
    return {"seconds": time.monotonic() - began, "contents": found}


def contents(path: Path) -> dict[str, Any]:
    """All rows of a run that are no timing and no provenance; its weights are looked at again."""
    run = Run.open(path)
    found = everything(run)
    for name, spec in TABLES.items():
        keys = [tuple(str(row[key]) for key in spec.key) for row in found[name]]
        assert len(set(keys)) == len(keys), f"{name} has a row twice"
    for row in found["updates"]:
        folder = path / row["checkpoint"]
        assert read_manifest(folder)["weights_hash"] == row["policy_hash"] == weights_hash(folder)
    return found


def assert_finished(path: Path, undisturbed: dict[str, Any]) -> None:
    expected = undisturbed["contents"]
    found = contents(path)
    for name in TABLES:
        assert found[name] == expected[name], f"{name} differs from the undisturbed run's"
    run = Run.open(path)
    for name in TABLES:
        tagged = run.tables.scan(name, "round-1").collect()
        assert tagged.height == len(expected[name]), f"{name} is not tagged as it was finished"
    left = {p.name for p in (path / "policies").iterdir()} | {p.name for p in path.glob(".*ing-*")}
    assert left == {"v1"}, "a killed attempt's folders are still there"


@pytest.mark.parametrize(("point", "n"), POINTS, ids=[f"{p} {n}" for p, n in POINTS])
@pytest.mark.in_turn(
    always=[
        "after create 1",
        "before append:rollouts 2",
        "before step 2",
        "before rename 3",
        "after append:updates 1",
    ]
)
def test_a_round_killed_at_a_point_is_finished_by_the_same_command(
    launch: Launch, undisturbed: dict[str, Any], write_config: Any, tmp_path: Path,
    point: str, n: int,
) -> None:  # fmt: skip
    config = write_config(tmp_path, ROUND)
    log = config.with_name("log.txt")
    assert launch(config, point, n) == KILLED, log.read_text()
    assert launch(config) == 0, log.read_text()
    if point == "after finish":  # that round was complete: the command has begun the next
        assert [row["policy_version"] for row in contents(tmp_path / "run")["updates"]] == [1, 2]
    else:
        assert_finished(tmp_path / "run", undisturbed)


@pytest.mark.in_turn
def test_a_round_killed_again_and_again_is_finished_at_last(
    launch: Launch, undisturbed: dict[str, Any], write_config: Any, tmp_path: Path
) -> None:
    """Every attempt appends one batch and dies, in whatever stage it is."""
    config = write_config(tmp_path, ROUND)
    attempts = 0
    while (code := launch(config, "after write:append", 1)) == KILLED:
        attempts += 1
        assert attempts < 20, "the round makes no progress"
    assert code == 0, config.with_name("log.txt").read_text()
    assert attempts >= 5
    assert_finished(tmp_path / "run", undisturbed)


def test_killed_with_batches_collected_it_computes_those_again(
    launch: Launch, undisturbed: dict[str, Any], write_config: Any, tmp_path: Path
) -> None:
    """With a long flush_seconds a SIGKILL loses the stage's batches, never more and never half."""
    config = write_config(tmp_path, ROUND | {"storage.flush_seconds": 3600})
    log = config.with_name("log.txt")
    assert launch(config, "before sample", 8) == KILLED, log.read_text()
    run = Run.open(tmp_path / "run")
    assert run.teacher_predictions().collect().height == 20 and run.rollouts().collect().is_empty()
    assert launch(config) == 0, log.read_text()
    assert_finished(tmp_path / "run", undisturbed)


@pytest.mark.in_turn
def test_a_round_killed_at_random_moments_is_finished(
    launch: Launch, undisturbed: dict[str, Any], write_config: Any, tmp_path: Path
) -> None:
    moments = random.Random(0)
    for number in range(4):
        folder = tmp_path / str(number)
        config = write_config(folder, ROUND)
        code = launch(config, seconds=moments.uniform(0.1, 1.0) * undisturbed["seconds"])
        assert code in (KILLED, 0), config.with_name("log.txt").read_text()
        if code == KILLED and not is_finished(folder / "run"):
            assert launch(config) == 0, config.with_name("log.txt").read_text()
        assert_finished(folder / "run", undisturbed)


def is_finished(run: Path) -> bool:
    """Whether it was killed after its round was finished, when the next launch begins another."""
    try:
        Run.open(run, round=1)
    except VideoOPDError:
        return False
    return True


@pytest.mark.server
@pytest.mark.parametrize(("point", "n"), [("before append:rollouts", 2), ("after publish", 1)])
@pytest.mark.in_turn(always=["before append:rollouts-2"])
def test_the_real_command_killed_is_finished_by_itself(
    undisturbed: dict[str, Any], write_config: Any, tmp_path: Path, command: Any,
    command_environment: dict[str, str], point: str, n: int,
) -> None:  # fmt: skip
    config = write_config(tmp_path, ROUND)
    killed = forked.run(
        [sys.executable, KILL_SCRIPT, "--command", point, n, config],
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert killed.returncode == KILLED, killed.stderr
    finished = command("run", config)
    assert finished.returncode == 0, finished.stderr
    assert_finished(tmp_path / "run", undisturbed)
    assert not left_behind(command_environment["PREFECT_HOME"]), "a server outlived its command"


def left_behind(home: str) -> list[psutil.Process]:
    """Processes with this Prefect home, after they have had ten seconds to end."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == home:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    alive: list[psutil.Process] = psutil.wait_procs(found, timeout=10)[1]
    return alive
