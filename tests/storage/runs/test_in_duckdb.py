"""DuckDB over a run: the same rows as `videoopd query` gives, at any round and after any rerun."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import stages
from flows.commands.ask import texts_of
from flows.stage.prepare import opened
from opd_core.types import QuarantinedItem, VideoOPDError
from storage.asking.query import query
from storage.runs.run import Run
from storage.tables.schemas import TABLES
from storage.tables.views import VIEWS
from tests.storage.finished_run import Finished, finished_run, write_config
from tests.storage.storage_factories import rollout, score, update

duckdb = pytest.importorskip("duckdb")

NAMES = (*TABLES, *VIEWS, *(f"{name}_all" for name in TABLES))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_world: Any) -> Finished:
    return finished_run(tmp_path_factory.getbasetemp() / "finished", tiny_world.videos.parent)


@pytest.fixture
def rerun(finished: Finished, tmp_path: Path) -> Path:
    """A copy in which scores of round 2 were made again, and what follows from them is stale."""
    shutil.copytree(finished.run, tmp_path / "asked")
    config = write_config(finished.config.parent, finished.world, tmp_path / "asked")
    with opened(str(config)) as work:
        stages.score.fn(work, work.policy_at("score", 2), force=True)
    return tmp_path / "asked"


def ordered(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return sorted(frame.to_dicts(), key=repr)


def assert_same_rows(run: Run) -> None:
    texts = texts_of(run)
    connection = run.duckdb(texts)
    for name in NAMES:
        ours = query(run, f"SELECT * FROM {name}", texts)
        theirs = connection.sql(f"SELECT * FROM {name}").pl()
        assert theirs.columns == ours.columns, name
        assert ordered(theirs) == ordered(ours), name


def test_every_table_and_view_has_the_rows_of_query(finished: Finished) -> None:
    run = Run.open(finished.run)
    assert_same_rows(run)
    for name in ("rollouts", "updates", "evaluations", *VIEWS):
        assert query(run, f"SELECT count(*) FROM {name}").item() > 0


def test_so_it_has_at_a_round(finished: Finished) -> None:
    then, now = Run.open(finished.run, 1), Run.open(finished.run)
    assert_same_rows(then)
    count = "SELECT count(*) FROM rollouts"
    assert then.duckdb().execute(count).fetchall() < now.duckdb().execute(count).fetchall()


def test_so_it_has_after_a_rerun_where_rows_are_superseded_and_stale(rerun: Path) -> None:
    run = Run.open(rerun)
    assert_same_rows(run)
    connection = run.duckdb()
    (shown,), (every,) = (
        connection.sql(f"SELECT count(*) FROM {name}").fetchall()
        for name in ("teacher_scores", "teacher_scores_all")
    )
    assert 0 < shown[0] < every[0]
    stale = "SELECT count(*) FROM selections WHERE policy_version = 1"
    assert connection.execute(stale).fetchall() == [(0,)]
    assert_same_rows(Run.open(rerun, 2))


def test_steps_of_an_update_are_read(finished: Finished) -> None:
    connection = Run.open(finished.run).duckdb()
    rows = connection.sql(
        "SELECT u.policy_version, s.step, s.loss FROM updates u, unnest(u.steps) AS t(s) ORDER BY 1, 2"
    ).fetchall()
    updates = Run.open(finished.run).updates().sort("policy_version").collect().to_dicts()
    assert rows == [
        (u["policy_version"], step["step"], step["loss"]) for u in updates for step in u["steps"]
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            "SELECT policy_version, count(*), avg(reverse_kl) FROM trajectories"
            " WHERE selected AND student_iou >= 0 GROUP BY 1 ORDER BY 1",
            None,
        ),
        ("SELECT rollout_id FROM trajectories WHERE query LIKE '%a%' ORDER BY 1", None),
        ("SELECT count(*) FROM tokens WHERE trained AND advantage < -0.1", None),
        (
            "SELECT t.rollout_id FROM trajectories t JOIN rollouts r USING (rollout_id)"
            " WHERE r.finish_reason = 'stop' ORDER BY 1 LIMIT 3",
            None,
        ),
        (
            "SELECT rollout_id, list_sum(sampling_logprobs) FROM rollouts ORDER BY 1 LIMIT 5",
            "SELECT rollout_id, array_sum(sampling_logprobs) FROM rollouts ORDER BY 1 LIMIT 5",
        ),
        ("SELECT count(*) FROM trajectories WHERE teacher_iou IS NULL OR rank < 3", None),
    ],
)
def test_filters_joins_and_means_are_those_of_query(
    finished: Finished, theirs: str, ours: str | None
) -> None:
    run = Run.open(finished.run)
    expected = query(run, ours or theirs).rows()
    assert expected
    found = run.duckdb().sql(theirs).fetchall()
    assert [tuple(map(_rounded, row)) for row in found] == [
        tuple(map(_rounded, row)) for row in expected
    ]


def _rounded(value: object) -> object:
    return pytest.approx(value, rel=1e-5) if isinstance(value, float) else value


def test_a_filter_on_a_table_is_lances_own(finished: Finished) -> None:
    connection = Run.open(finished.run).duckdb()
    sql = "EXPLAIN SELECT text FROM rollouts WHERE rollout_id = 'x'"
    (_, plan) = connection.sql(sql).fetchall()[0]
    assert "ARROW_SCAN" in plan and "Filters:" in plan
    assert "Projections: text" in plan and "FILTER " not in plan


def test_opening_reads_no_rows_and_a_query_no_more_than_its_columns(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    collected = pl.LazyFrame.collect_batches

    def noted(frame: pl.LazyFrame, *args: Any, **given: Any) -> Any:
        asked.append(frame.collect_schema().names())
        return collected(frame, *args, **given)

    monkeypatch.setattr(pl.LazyFrame, "collect_batches", noted)
    connection = Run.open(finished.run).duckdb()
    assert not asked
    connection.sql("SELECT avg(disagreement) FROM trajectories WHERE selected").fetchall()
    assert [sorted(names) for names in asked] == [["disagreement", "selected"]]


@pytest.mark.parametrize(
    "sql",
    ["INSERT INTO rollouts SELECT * FROM rollouts", "DELETE FROM rollouts", "UPDATE rollouts SET take = 1",
     "INSERT INTO trajectories SELECT * FROM trajectories", "TRUNCATE rollouts"],
)  # fmt: skip
def test_nothing_of_the_run_is_written(finished: Finished, sql: str) -> None:
    run = Run.open(finished.run)
    versions = run.tables.versions()
    with pytest.raises(duckdb.Error):
        run.duckdb().execute(sql)
    assert run.tables.versions() == versions


def test_rows_that_come_later_are_not_seen(run: Run) -> None:
    run.append("rollouts", [rollout(0)])
    connection = run.duckdb()
    run.append("rollouts", [rollout(1)])
    run.append("teacher_scores", [score(0)])
    run.append("updates", [update()])
    assert connection.execute("SELECT count(*) FROM rollouts").fetchall() == [(1,)]
    assert run.duckdb().execute("SELECT count(*) FROM rollouts").fetchall() == [(2,)]


def test_of_a_table_of_several_stages_only_the_stages_own_rows_are_superseded(run: Run) -> None:
    run.append("rollouts", [rollout(0)])
    run.append("teacher_scores", [score(0)])
    for stage in ("rollout", "score", "import"):
        item = QuarantinedItem(stage, stage, "a.mp4", "cannot be read", None, None)
        version = None if stage == "import" else 0
        run.append(
            "quarantine", [replace(item, policy_version=version)], stage=stage, policy_version=version
        )
    run.begin("score", 0, lambda _: "tiny.toml", force=True).new_take()
    shown = query(run, "SELECT stage FROM quarantine ORDER BY stage").to_series().to_list()
    assert shown == ["import", "rollout"]
    again = Run.open(run.path)
    for name in ("quarantine", "quarantine_all", "teacher_scores", "teacher_scores_all"):
        ours = query(again, f"SELECT * FROM {name}")
        assert ordered(again.duckdb().sql(f"SELECT * FROM {name}").pl()) == ordered(ours), name


def test_a_run_of_an_older_format_has_nulls(run: Run) -> None:
    import json

    import lance

    run.append("updates", [update()])
    lance.dataset(run.path / "tables" / "updates.lance").drop_columns(["stages", "moved_share"])
    file = run.path / "tables" / "format.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"schema_version": content["schema_version"] - 1}))
    older = Run.open(run.path)
    ours = query(older, "SELECT * FROM updates")
    assert ours["stages"].is_null().all()
    assert ordered(older.duckdb().sql("SELECT * FROM updates").pl()) == ordered(ours)


def test_without_duckdb_it_is_a_sentence_with_the_fix(run: Run) -> None:
    code = (
        "import sys; sys.modules['duckdb'] = None\n"
        "from storage.runs.run import Run\n"
        "from opd_core.types import VideoOPDError\n"
        f"try: Run.open({str(run.path)!r}).duckdb()\n"
        "except VideoOPDError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'install it with `pip install "videoopd[duckdb]"`' in done.stdout
    assert issubclass(VideoOPDError, Exception)
