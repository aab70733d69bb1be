"""Real trackers, told of a real run, and read back."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import cli, stages
from flows.stage.prepare import opened
from flows.tracking import points
from flows.tracking.about import about, name_of
from flows.tracking.telling import Telling, Told
from opd_core.extensions import TRACKERS
from storage.locks import InUseError
from storage.runs.run import Run
from tests import forked
from tests.flows.tracking.reading_back import READERS, Kept
from tests.storage.finished_run import Finished, write_config
from tests.tiny_config import ROOT


@pytest.fixture(params=list(READERS))
def tracker(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name)
    return name


@pytest.fixture
def copied(two_rounds: Finished, tmp_path: Path) -> Path:
    shutil.copytree(two_rounds.run, tmp_path / "superseded")
    return tmp_path / "superseded"


def tell(name: str, run: Run, folder: Path) -> Told:
    if name == "trackio":  # keeps to one folder a process
        at = f"{run.path}@{run.round}" if run.round is not None else str(run.path)
        words = ("track", at, "--to", name, "--out", str(folder))
        done = forked.run(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        steps, rounds = re.findall(r"(\d+) (?:steps|rounds)", done.stdout)
        return Told(int(steps), int(rounds))
    telling = Telling(name, "videoopd", folder)
    told = telling.all(run)
    telling.finish()
    if name == "wandb":
        time.sleep(1.1)  # it names a folder by the second, and a process keeps its service
    return told


def kept(name: str, run: Run, folder: Path) -> Kept:
    """What it has of this run; trackio and mlflow keep all in one file."""
    own = {"tensorboard", "wandb"}
    return READERS[name](folder / name / name_of(run) if name in own else folder / name)


def expected(run: Run) -> Iterator[tuple[str, int, float]]:
    for point in (*points.of_steps(run), *points.of_rounds(run)):
        for name, value in point.values.items():
            yield name, point.number, value


def assert_all_is_there_once(name: str, run: Run, folder: Path) -> None:
    found = kept(name, run, folder)
    wanted = {(n.replace("@", "_") if name == "mlflow" else n, k): v for n, k, v in expected(run)}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == [pytest.approx(value, rel=1e-6)], key


def test_every_tracker_of_ours_is_read_back() -> None:
    assert set(READERS) == set(TRACKERS)


def test_points_are_what_the_tables_hold(two_rounds: Finished) -> None:
    run = Run.open(two_rounds.run)
    updates = run.updates().sort("policy_version").collect().to_dicts()
    losses = [step["loss"] for update in updates for step in update["steps"]]
    assert [point.values["loss"] for point in points.of_steps(run)] == losses
    of_rounds = list(points.of_rounds(run))
    assert [point.number for point in of_rounds] == [0, 1, 2]
    for point in of_rounds:
        answers = run.evaluations().filter(pl.col("policy_version") == point.number).collect()
        assert point.values["tvg/miou/strict"] == pytest.approx(answers["iou"].mean())
        if point.number:
            sampled = run.rollouts().filter(pl.col("policy_version") == point.number - 1).collect()
            lengths = sampled["completion_token_ids"].list.len()
            assert point.values["completions/mean_length"] == pytest.approx(lengths.mean())
            assert point.values["reward"] == pytest.approx(sampled["student_iou"].mean())
            drawn = run.draws().filter(pl.col("policy_version") < point.number).collect().height
            train = run.present().filter(pl.col("split") == "train").collect().height
            assert point.values["epoch"] == drawn / train
            took = sum(s["seconds"] for s in updates[point.number - 1]["stages"])
            assert point.values["timing_s/step"] == pytest.approx(took, rel=0.5)
    base = of_rounds[0].values
    assert "teacher_kl" not in base and "reward" not in base, "absent is not told, and no zero"


@pytest.mark.in_turn(always=["tensorboard"])
def test_a_run_is_told_once_however_often_it_is_done(
    tracker: str, two_rounds: Finished, tmp_path: Path
) -> None:
    run = Run.open(two_rounds.run)
    told = tell(tracker, run, tmp_path)
    assert told == Told(sum(1 for _ in points.of_steps(run)), 3)
    assert_all_is_there_once(tracker, run, tmp_path)
    again = tell(tracker, run, tmp_path)
    assert again == (told if tracker == "wandb" else Told(0, 0)), "wandb's file is written anew"
    assert_all_is_there_once(tracker, run, tmp_path)


def test_two_do_not_tell_a_tracker_of_a_run_at_once(two_rounds: Finished, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = Run.open(two_rounds.run)
    telling = Telling("tensorboard", "videoopd", tmp_path)
    telling.steps(run)
    with pytest.raises(InUseError, match=f"tensorboard-{name_of(run)} is in use by process"):
        Telling("tensorboard", "videoopd", tmp_path).all(run)
    telling.finish()
    tell("tensorboard", run, tmp_path)
    assert_all_is_there_once("tensorboard", run, tmp_path)


def test_a_folder_that_cannot_be_made_is_told(
    two_rounds: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("track", str(two_rounds.run), "--to", "tensorboard", "--out", "/proc/trackers")
    assert cli.main(words) == 2
    assert "/proc/trackers of trackers cannot be made" in capsys.readouterr().err


@pytest.mark.in_turn(always=["tensorboard"])
def test_what_came_since_a_round_is_added(
    tracker: str, two_rounds: Finished, tmp_path: Path
) -> None:
    tell(tracker, Run.open(two_rounds.run, 1), tmp_path)
    assert {number for name, number in kept(tracker, Run.open(two_rounds.run), tmp_path)
            if name == "tvg/miou/strict"} == {0, 1}  # fmt: skip
    run = Run.open(two_rounds.run)
    tell(tracker, run, tmp_path)
    assert_all_is_there_once(tracker, run, tmp_path)


@pytest.mark.parametrize("tracker", ["tensorboard"])
def test_a_run_of_which_rows_were_superseded_is_another_one_to_a_tracker(
    tracker: str, two_rounds: Finished, copied: Path, tmp_path: Path
) -> None:
    pytest.importorskip(tracker)
    name, before = name_of(Run.open(copied)), list(expected(Run.open(copied)))
    tell(tracker, Run.open(copied), tmp_path)
    config = write_config(two_rounds.config.parent, two_rounds.world, copied)
    with opened(str(config)) as work:
        stages.score.fn(work, work.policy_at("score", 2), force=True)
    after = Run.open(copied)
    assert name_of(after) == f"{name}-rerun1"
    tell(tracker, after, tmp_path)
    assert_all_is_there_once(tracker, after, tmp_path)
    stayed = READERS[tracker](tmp_path / tracker / name)
    assert stayed == {(n, k): [pytest.approx(v, rel=1e-6)] for n, k, v in before}


def test_any_folder_has_a_name(two_rounds: Finished, tmp_path: Path) -> None:
    shutil.copytree(two_rounds.run, tmp_path / "a: 'b' #2")
    run = Run.open(tmp_path / "a: 'b' #2")
    assert name_of(run) == f"a-b-2-{run.run_id.replace('-', '')[:6]}"


def test_config_hashes_and_commit_are_told(two_rounds: Finished, tmp_path: Path) -> None:
    run = Run.open(two_rounds.run)
    config = about(run, "videoopd", tmp_path).config
    assert config["update.objective"] == "exact_reverse_kl" and config["run.id"] == run.run_id
    newest = run.updates().filter(pl.col("policy_version") == 2).collect().to_dicts()[0]
    assert config["hash.policy"] == newest["policy_hash"]
    assert config["hash.config"] == newest["config_hash"]
    assert config["hash.teacher"] == newest["teacher_hash"]
    assert config.get("git_commit") == newest["git_commit"]


@pytest.mark.in_turn(always=["tensorboard"])
def test_it_is_in_what_the_tracker_keeps(
    tracker: str, two_rounds: Finished, tmp_path: Path
) -> None:
    run = Run.open(two_rounds.run)
    tell(tracker, run, tmp_path)
    files: list[Any] = [f.read_bytes() for f in (tmp_path / tracker).rglob("*") if f.is_file()]
    wanted = run.committed(2).weights_hash.encode()
    assert any(wanted in content for content in files)
