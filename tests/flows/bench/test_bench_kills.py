"""What the bench of a hundred kills stands on: it sees what is lost, and where a kill fell."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from flows.bench.interleaved import Row
from flows.bench.kills import _Bench, _problems, _remember, _stage
from flows.bench.run import keep
from flows.stage.prepare import opened
from opd_core.types import VideoOPDError
from storage.asking.contents import contents, differences
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.storage.finished_run import append_again


@pytest.fixture(scope="module")
def finished(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run of one round."""
    config: Path = write_config(tmp_path_factory.mktemp("undisturbed"))
    run_without_server(str(config), 1)
    return config


def bench_of(run: Path) -> _Bench:
    """A bench that has seen `run` undisturbed."""
    bench = _Bench(run.parent, "", "", 1, random.Random(0), 1)
    _remember(bench, Run.open(run))
    return bench


def test_a_run_that_lost_nothing_has_no_problems_and_another_has(
    finished: Path, tmp_path: Path
) -> None:
    run = finished.with_name("run")
    bench = bench_of(run)
    assert _problems(bench, run) == []
    assert _stage(bench, run) == "after the last round"
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    append_again(copy, "rollouts", lambda row: None)
    problems = _problems(bench, copy)
    assert problems[0] == "rollouts has 1 rows twice" and "audit, " in problems[1]


def test_a_kill_is_put_down_to_the_stage_whose_rows_are_missing(
    finished: Path, write_config: Any, tmp_path: Path
) -> None:
    bench = bench_of(finished.with_name("run"))
    with opened(str(write_config(tmp_path))) as work:
        assert _stage(bench, tmp_path / "run") == "evaluate"
        for stage, following in (
            (stages.evaluate, "draw"),
            (stages.draw, "validate"),
            (stages.validate, "rollout"),
            (stages.rollout, "score"),
            (stages.score, "focus"),
            (stages.focus, "update"),
        ):
            stage.fn(work, work.policy())
            assert _stage(bench, tmp_path / "run") == following
        stages.update.fn(work, work.policy())
        assert _stage(bench, tmp_path / "run") == "evaluate"
        stages.evaluate.fn(work, work.policy())
        assert _stage(bench, tmp_path / "run") == "finish"


def test_contents_differ_in_what_was_lost_or_doubled_or_changed(finished: Path) -> None:
    whole = contents(Run.open(finished.with_name("run")))
    assert differences(whole, copy.deepcopy(whole)) == []
    assert all("written_at" not in row for rows in whole.values() for row in rows)
    changes: tuple[tuple[Callable[[list[Any]], object], str], ...] = (
        (lambda rows: rows.pop(0), "rollouts has lost 1 rows"),
        (lambda rows: rows.append(rows[0]), "rollouts has 1 rows twice"),
        (lambda rows: rows.append(rows[0] | {"rollout_id": "v9"}), "1 rows too many, ('v9',)"),
        (lambda rows: rows[3].update(text="?"), ": text differs"),
    )
    for change, words in changes:
        other = copy.deepcopy(whole)
        change(other["rollouts"])
        (problem,) = differences(other, whole)
        assert words in problem


def row(name: str, value: float) -> Row:
    return Row(name, value, "x", "", None, {})


def test_a_bench_keeps_the_rows_of_the_others(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "bench.json"
    keep(out, "monday", [row("trees", 1.0), row("memory", 2.0)])
    keep(out, "tuesday", [row("trees", 3.0)])
    rows = {r["name"]: r for r in json.loads(out.read_text())["rows"]}
    assert (rows["trees"]["value"], rows["trees"]["machine"]) == (3.0, "tuesday")
    assert (rows["memory"]["value"], rows["memory"]["machine"]) == (2.0, "monday")
    out.write_text(json.dumps({"machine": "sunday", "rows": [{"name": "old", "value": 1}]}))
    keep(out, "tuesday", [row("trees", 3.0)])
    rows = {r["name"]: r for r in json.loads(out.read_text())["rows"]}
    assert rows["old"]["machine"] == "sunday", "as it was written before rows had their own"
    out.write_text("[]")
    with pytest.raises(VideoOPDError, match=r"is not what a bench wrote; move it away"):
        keep(out, "tuesday", [])
