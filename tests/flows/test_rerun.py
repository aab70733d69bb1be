"""Stages run again by force: what is superseded, what becomes stale, what follows from it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lance
import polars as pl
import pytest

from flows import stages
from flows.audit.walk import Depth, audit
from flows.commands.status import print_status
from flows.rescore import rescore_run
from flows.stage.prepare import opened
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.asking.query import query
from storage.runs.run import Run
from storage.runs.run_folder import CONFIG_SOURCE_FILE
from storage.stages import STAGES
from storage.tables.schemas import TABLES
from tests import forked
from tests.flows.conftest import MODULES
from tests.flows.kill_points import run_without_server
from tests.stages_before import stages_before

ROOT = Path(__file__).resolve().parents[2]
ROUND = stages_before("update")


def stage(config: str, name: str, round: int | None = None, force: bool = False) -> Any:
    """As the deployment of a stage does it, without a Prefect server."""
    with opened(config) as work:
        return getattr(stages, name).fn(work, work.policy_at(name, round), force)


def begin(config: str, names: Sequence[str] = ROUND) -> None:
    with opened(config) as work:
        for name in names:
            getattr(stages, name).fn(work, work.policy())


def everything(run: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows that are on disk, of every table."""
    return {
        name: lance.dataset(run / "tables" / f"{name}.lance").to_table().to_pylist()
        for name in TABLES
    }


def assert_nothing_was_deleted(before: dict[str, list[dict[str, Any]]], run: Path) -> None:
    after = everything(run)
    for name, rows in before.items():
        assert after[name][: len(rows)] == rows, name


def verdicts(run: Path, deep: float = 0.0) -> dict[str, str]:
    """link -> what is wrong with it."""
    found = audit(Run.open(run), Depth(videos=0.0, deep=deep, seed=1))
    return {v.link: v.broken for v in found if v.broken}


def status(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    print_status(Run.open(run))
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def takes(run: Path, name: str, version: int = 0) -> dict[int, int]:
    """take -> rows on disk, of a round."""
    frame = Run.open(run).scan(name, superseded=True)
    frame = frame.filter(pl.col(TABLES[name].round_column or "") == version)
    return dict(sorted(frame.group_by("take").len().collect().iter_rows()))


def test_a_forced_score_makes_focus_stale_until_it_is_run_again(
    write_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_config(tmp_path)), tmp_path / "run"
    begin(config)
    before = everything(run)
    scored = len(before["teacher_scores"])
    done = stage(config, "score", force=True)
    assert done.rows == scored and "hit_rate" in done.notes
    assert takes(run, "teacher_scores") == {0: scored, 1: scored}
    assert Run.open(run).teacher_scores().collect()["take"].unique().to_list() == [1]
    assert Run.open(run).selections().collect().is_empty(), "stale rows are not shown"
    with pytest.raises(VideoOPDError) as refused:
        stage(config, "update")
    assert "focus of round 1 was computed from rows of score that take 1 superseded" in str(
        refused.value
    )
    assert f"videoopd stage focus {config} --round 1" in str(refused.value)
    shown = status(run, capsys)
    assert "focus of round 1 was computed from rows of score that take 1 superseded" in shown
    assert f"score of round 1, take 1 (forced): {scored} rows superseded" in shown
    assert "continue videoopd run " in shown, "a round does its own stale stages again"
    assert stage(config, "focus").rows == len(before["selections"])
    assert stage(config, "focus").rows == 0, "and that once"
    assert "stale" not in status(run, capsys)
    stage(config, "update")
    assert verdicts(run) == {}
    assert_nothing_was_deleted(before, run)
    sql = "SELECT take, count(*) AS n FROM teacher_scores_all GROUP BY take ORDER BY take"
    assert query(Run.open(run), sql).rows() == [(0, scored), (1, scored)]
    assert query(Run.open(run), "SELECT count(*) FROM teacher_scores").item() == scored
    attempts = {row["attempt"] for row in everything(run)["teacher_scores"]}
    assert len(attempts) == 2


def test_a_past_round_run_again_supersedes_all_that_came_of_it(
    write_config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_config(tmp_path)), tmp_path / "run"
    run_without_server(config, 3)
    before = everything(run)
    old = {v: Run.open(run).policy(v) for v in (1, 2, 3)}
    stage(config, "focus", round=2, force=True)
    found = verdicts(run)
    assert found.keys() == {"nothing stands on superseded rows"}
    assert "update of round 2 was computed from rows of focus that take 1" in str(found)
    shown = status(run, capsys)
    assert "stale update of round 2" in shown
    assert re.search(r"continue videoopd stage update \S+ --round 2 ", shown)
    assert "stale all of round 3, 4: update of round 2 has to be run again first" in shown
    with pytest.raises(VideoOPDError, match="draw of round 4 cannot run yet: update of round 2"):
        run_without_server(config)
    with pytest.raises(VideoOPDError, match="update of round 3 cannot run yet: update of round 2"):
        stage(config, "update", round=3)
    stage(config, "update", round=2)
    again = Run.open(run)
    assert [u["policy_version"] for u in again.updates().collect().to_dicts()] == [1, 2]
    new = again.policy(2)
    assert new.path.name == "v2.take1" and again.current_policy() == new
    assert old[2].path.is_dir() and old[3].path.is_dir()
    (row,) = again.updates().filter(pl.col("policy_version") == 2).collect().to_dicts()
    assert "policy 1 has no state of an optimiser" in row["optimizer_restarted"], "of policy 3 only"
    assert set(again.rollouts().collect()["policy_version"]) == {0, 1}
    assert set(again.trajectories().collect()["policy_version"]) == {0, 1}
    assert again.evaluations().collect()["policy_version"].max() == 1
    assert verdicts(run) == {}
    run_without_server(config)
    assert Run.open(run).finished_rounds() == [1, 2, 3], "evaluated and tagged again"
    tags = lance.dataset(run / "tables" / "updates.lance").tags.list()
    assert {"round-1", "round-2", "round-2.1", "round-3"} == set(tags)
    run_without_server(config)
    assert Run.open(run).current_policy().path.name == "v3.take1"
    assert takes(run, "rollouts", 2) == {0: 20, 1: 20}
    then = Run.open(run, round=3)
    assert then.version == "round-3.1"
    assert set(then.rollouts().collect()["take"]) == {0, 1}
    assert_nothing_was_deleted(before, run)
    assert verdicts(run, deep=1.0) == {}
    assert verdicts_at(run, 2) == {}


def verdicts_at(run: Path, round: int) -> dict[str, str]:
    found = audit(Run.open(run, round=round), Depth(videos=0.0))
    return {v.link: v.broken for v in found if v.broken}


KILLED = """
import sys
from tests.flows.kill_points import arm
from flows import stages
from flows.stage.prepare import opened
config, name, point, n = sys.argv[1:]
arm(point, int(n))
with opened(config) as work:
    getattr(stages, name).fn(work, work.policy(0), True)
"""


def kill(config: str, name: str, point: str, n: int) -> None:
    """Force a stage of round 1 in a process that dies at a point."""
    done = forked.run(
        [sys.executable, "-c", KILLED, config, name, point, n],
        modules=MODULES,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'flows'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr


@pytest.mark.in_turn
def test_a_forced_stage_that_was_killed_goes_on_with_its_take(
    write_config: Any, tmp_path: Path
) -> None:
    # Each batch at once: the kill comes after the first.
    settings = {"storage.flush_seconds": 0.0}
    config, run = str(write_config(tmp_path, settings)), tmp_path / "run"
    run_without_server(config)
    before = everything(run)
    kill(config, "rollout", "after append:rollouts", 1)
    written = takes(run, "rollouts")
    assert 0 < written[1] < written[0] == 20
    assert stage(config, "rollout", round=1).rows == 20 - written[1]
    assert takes(run, "rollouts") == {0: 20, 1: 20}, "no further take"
    old, new = (
        {r["rollout_id"]: r for r in everything(run)["rollouts"] if r["take"] == take}
        for take in (0, 1)
    )
    measured = ("seconds", "engine_mismatch")
    own = [c.name for c in TABLES["rollouts"].own_columns if c.name not in measured]
    assert all(old[i][c] == new[i][c] for i in old for c in own), "same seeds, same answers"
    with pytest.raises(VideoOPDError, match="focus of round 1 cannot run yet: score of round 1"):
        stage(config, "focus", round=1)
    for name in ("score", "focus"):
        stage(config, name, round=1)
    kill(config, "update", "after publish", 1)
    assert Run.open(run).current_policy().version == 0, "its update is superseded"
    assert "published, not committed" in notes(run)
    stage(config, "update", round=1)
    assert Run.open(run).current_policy().path.name == "v1.take1"
    stage(config, "update", round=1, force=True)
    assert Run.open(run).current_policy().path.name == "v1.take2"
    run_without_server(config)
    assert Run.open(run).current_policy().version == 1
    assert Run.open(run, round=1).version == "round-1.2"
    assert verdicts(run) == {}
    assert_nothing_was_deleted(before, run)


def notes(run: Path) -> str:
    found = audit(Run.open(run), Depth(videos=0.0))
    return "\n".join(note for v in found if v.checked for note in v.checked.notes)


@pytest.mark.in_turn
def test_other_answers_do_not_meet_the_old_scores_in_the_views(
    write_config: Any, tmp_path: Path
) -> None:
    """Forced under another config, rollouts are other rollouts of the same ids."""
    config, run = str(write_config(tmp_path)), tmp_path / "run"
    run_without_server(config)
    write_config(tmp_path, {"rollout.max_new_tokens": 5})
    # It is another question to the teacher too, whose answers decide what is sampled.
    with pytest.raises(VideoOPDError, match=rf"videoopd stage validate {config} --round 1"):
        stage(config, "rollout", round=1, force=True)
    with opened(config) as work:
        stages.validate.fn(work, work.policy(0))
    stage(config, "rollout", round=1, force=True)
    opened_run = Run.open(run)
    assert opened_run.trajectories().collect()["teacher_logprobs"].is_null().all()
    assert not opened_run.trajectories().collect()["trained"].any()
    assert opened_run.tokens().collect()["position"].max() == 4
    assert opened_run.scan("teacher_scores", superseded=True).collect().height
    for name in ("score", "focus", "update"):
        stage(config, name, round=1)
    rows = Run.open(run).tokens().collect()
    assert rows.filter("trained").height and rows["position"].max() == 4
    assert Run.open(run).scan("updates").collect()["take"].to_list() == [1]
    assert verdicts(run, deep=1.0) == {}


def test_a_forced_score_is_computed_and_not_copied(write_config: Any, tmp_path: Path) -> None:
    other = write_config(tmp_path / "other")
    begin(str(other))
    config = str(write_config(tmp_path, {"score.cache": other.with_name("run")}))
    begin(config)
    run = tmp_path / "run"
    copied = Run.open(run).teacher_scores().collect()["reused_from"].is_not_null()
    assert copied.all()
    stage(config, "score", force=True)
    fresh = Run.open(run).teacher_scores().collect()
    computed = fresh.filter(pl.col("reused_from").is_null())
    assert computed.height and fresh.height == copied.len()
    ours = Run.open(run).run_id
    assert fresh["reused_from"].drop_nulls().str.starts_with(ours).all(), "twins within the round"


@pytest.mark.in_turn
def test_a_draw_of_unusable_examples_is_drawn_again(
    write_config: Any, tiny_world: World, tmp_path: Path
) -> None:
    settings = {"rollout.examples_per_round": 3, "focus.curriculum": "uniform"}
    videos = Path(shutil.copytree(tiny_world.videos, tmp_path / "videos"))
    config = str(write_config(tmp_path, {**settings, "data.videos": videos}))
    begin(config, ["draw"])
    run = tmp_path / "run"
    first = set(Run.open(run).draws().collect()["example_id"])
    examples = Run.open(run).examples().collect()
    for path in examples.filter(pl.col("example_id").is_in(first))["video_path"].unique():
        (videos / path).unlink()
    with pytest.raises(VideoOPDError) as refused:
        run_without_server(config)
    assert f"videoopd stage draw {config} --round 1 --force" in str(refused.value)
    with pytest.raises(VideoOPDError):
        run_without_server(config)
    drawn = stage(config, "draw", force=True)
    assert drawn.rows == 3
    assert not first & set(Run.open(run).draws().collect()["example_id"])
    run_without_server(config, 2)
    assert takes(run, "draws") == {0: 3, 1: 3}
    later = Run.open(run).draws().filter(pl.col("policy_version") == 1).collect()
    assert not first & set(later["example_id"])
    assert verdicts(run) == {}


def test_a_rerun_of_nothing_and_of_what_is_not_there(write_config: Any, tmp_path: Path) -> None:
    config, run = str(write_config(tmp_path)), tmp_path / "run"
    run_without_server(config)
    versions = Run.open(run).tables.versions()
    for name in STAGES:
        assert stage(config, name, round=1).rows == 0
    assert Run.open(run).tables.versions() == versions
    with pytest.raises(VideoOPDError, match="forcing it would give the same answers"):
        stage(config, "validate", round=1, force=True)
    assert Run.open(run).reruns().collect().is_empty()
    with pytest.raises(VideoOPDError, match="in round 7; give a round from 1 to 2"):
        stage(config, "score", round=7, force=True)
    stage(config, "evaluate", round=1, force=True)
    assert takes(run, "evaluations", 1) == {0: 5, 1: 5}
    assert Run.open(run).takes().stale() == []
    assert verdicts(run) == {}


@pytest.mark.in_turn
def test_the_command_runs_a_stage(
    write_config: Any, tmp_path: Path, command: Any, prefect_api: str
) -> None:
    config = write_config(tmp_path)
    begin(str(config))
    done = command("stage", "score", config, "--force")
    assert done.returncode == 0, done.stderr
    assert re.match(r"score of round 1: \d+ rows; ", done.stdout)
    assert "fork" not in done.stderr, "the server is started beside Lance, not forked from it"
    change = ("--set", "rollout.max_new_tokens=5")
    done = command("stage", "rollout", config, "--force", *change, server=prefect_api)
    assert done.returncode == 0, done.stderr
    assert takes(tmp_path / "run", "rollouts", 0) == {0: 20, 1: 20}, "the teacher was asked too"
    done = command("stage", "stale", config, *change, server=prefect_api)
    assert done.returncode == 0, done.stderr
    told = [line.split(";")[0].split(":")[0] for line in done.stdout.splitlines()]
    assert told[:2] == ["score of round 1", "focus of round 1"]
    assert told[2:] == ["nothing is stale any more"]
    assert Run.open(tmp_path / "run").takes().stale() == []


@pytest.mark.in_turn
def test_everything_stale_is_run_again_in_its_order(
    write_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from flows import launch

    config, run = str(write_config(tmp_path, {"score.hidden_states": True})), tmp_path / "run"
    with pytest.raises(VideoOPDError, match="there is no run at"):
        launch.run_stale(config, None, False, ())
    run_without_server(config, 2)
    rescore_run(Run.open(run))
    stage(config, "rollout", round=1, force=True)
    ran: list[tuple[str, int]] = []

    def one(name: str, file: str, round: int, force: bool, overrides: Sequence[str]) -> None:
        ran.append((name, round))
        if name == "rollout":  # as its deployment does
            stage(file, "validate", round)
        stage(file, name, round, force)

    monkeypatch.setattr(launch, "_connect", lambda: None)
    monkeypatch.setattr(launch, "_run_one", one)
    with pytest.raises(VideoOPDError, match="without --force"):
        launch.run_stale(config, None, True, ())
    assert ran == []
    launch.run_stale(config, 1, False, ())
    assert ran == [("score", 1), ("focus", 1), ("update", 1)]
    assert Run.open(run).takes().stale() == [], "the update made round 2 again from nothing"
    assert "nothing of round 1 is stale any more" in capsys.readouterr().out
    run_without_server(config, 2)  # the first finishes round 1 again
    stage(config, "draw", round=2, force=True)
    ran.clear()
    launch.run_stale(config, None, False, ())
    assert ran == [("rollout", 2), ("score", 2), ("focus", 2), ("update", 2)]
    launch.run_stale(config, None, False, ())
    assert capsys.readouterr().out.endswith("\nnothing is stale\n")
    assert verdicts(run) == {}


def test_divergences_of_other_scores_are_computed_again(write_config: Any, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, {"score.hidden_states": True}))
    run_without_server(config)
    run = tmp_path / "run"
    rescore_run(Run.open(run))
    first = takes(run, "divergences")[0]
    stage(config, "score", round=1, force=True)
    assert Run.open(run).divergences().collect().is_empty()
    assert "videoopd rescore" in "".join(
        s.command("CONFIG") for s in Run.open(run).takes().stale() if s.stage == "rescore"
    )
    rescore_run(Run.open(run))
    rescore_run(Run.open(run))
    assert takes(run, "divergences") == {0: first, 1: first}
    assert {s.stage for s in Run.open(run).takes().stale()} == {"focus", "update"}


@pytest.mark.in_turn
def test_a_refused_rescore_names_the_config_of_an_older_run(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a run does not say which file it was continued with; `configs/` here is looked at."""
    path = write_config(tmp_path / "configs", {"run.path": "../run", "score.hidden_states": True})
    run_without_server(str(path), 2)
    stage(str(path), "focus", round=1, force=True)
    run = tmp_path / "run"
    (run / CONFIG_SOURCE_FILE).unlink()
    monkeypatch.chdir(tmp_path)
    refused = r"run that again first: videoopd stage update configs/config\.toml --round 1$"
    with pytest.raises(VideoOPDError, match=refused):
        rescore_run(Run.open(run), 2)
