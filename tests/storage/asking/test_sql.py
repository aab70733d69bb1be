from __future__ import annotations

import pytest

from opd_core.types import VideoOPDError
from storage.asking.query import query
from storage.runs.run import Run
from storage.tables.schemas import TABLES
from storage.tables.views import VIEWS
from tests.storage.storage_factories import rollout, score


@pytest.fixture
def filled(run: Run) -> Run:
    run.append("rollouts", [rollout(i, version=i % 2) for i in range(6)])
    run.append("teacher_scores", [score(0), score(2)])
    return run


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT count(*) FROM rollouts", [(6,)]),
        ("select policy_version, count(*) from rollouts group by 1 order by 1;", [(0, 3), (1, 3)]),
        ("-- how many\nWITH r AS (SELECT * FROM rollouts) SELECT count(*) FROM r", [(6,)]),
        ("select array_length(completion_token_ids) from rollouts limit 1", [(2,)]),
        ("select sum(x) from (select unnest(sampling_logprobs) as x from rollouts) u", [(-4.5,)]),
        (
            "select count(*) from rollouts r join teacher_scores s on r.rollout_id = s.rollout_id",
            [(2,)],
        ),
        (
            "select count(*) from (select row_number() over (partition by policy_version"
            " order by rollout_id) as n from rollouts) t where n = 3",
            [(2,)],
        ),
        ("select count(*) from updates", [(0,)]),
    ],
)
def test_queries(filled: Run, sql: str, rows: list[tuple[float, ...]]) -> None:
    assert query(filled, sql).rows() == rows


def test_show_tables(filled: Run) -> None:
    assert set(query(filled, "show tables").to_series()) == {*TABLES, *VIEWS}


@pytest.mark.parametrize(
    "sql",
    [
        "drop table rollouts", "DELETE FROM rollouts", "truncate table rollouts", "",
        "create table a as select 1", "insert into rollouts values (1)",
        "-- select\ndrop table draws",
        "select 1; drop table rollouts", "with a as (select 1) delete from rollouts", "select (",
        "select * from read_csv('/etc/hostname')", "select foo(1) from rollouts", "show me",
    ],
)  # fmt: skip
def test_anything_but_a_question_is_refused_and_changes_nothing(filled: Run, sql: str) -> None:
    versions = filled.tables.versions()
    with pytest.raises(VideoOPDError) as caught:
        query(filled, sql)
    assert ";" in str(caught.value) and "\n" not in str(caught.value)
    assert filled.tables.versions() == versions
    assert query(filled, "select count(*) from rollouts").item() == 6


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        (
            "select * from rollout",
            "no table 'rollout'; did you mean 'rollouts'. the tables are: ex",
        ),
        ("select iou from rollouts", "no column 'iou'; rollouts has rollout_id, policy_version"),
        ("select r.iou from rollouts r", "no column 'iou'; rollouts has rollout_id"),
    ],
)
def test_unknown_names_come_with_the_known_ones(filled: Run, sql: str, sentence: str) -> None:
    with pytest.raises(VideoOPDError, match=sentence):
        query(filled, sql)
