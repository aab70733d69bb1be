"""Columns of an answer are named by their expressions."""

from __future__ import annotations

import polars as pl
import pytest

from storage.asking.sql_names import named


def columns(sql: str) -> list[str]:
    """As `query` does it: the first form that Polars takes, as it was typed at last."""
    t = pl.DataFrame({"a": [1, 2, 2], "b": [1.0, 2.0, 4.0], "l": [[1], [2, 3], [4]]})
    u = pl.DataFrame({"a": [1, 2], "c": [1.0, 2.0]})
    context = pl.SQLContext(t=t, u=u)
    for text in (*named(sql), sql):
        try:
            return context.execute(text, eager=True).columns
        except pl.exceptions.PolarsError:
            continue
    raise AssertionError(sql)


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("select median(b) from t", ["median(b)"]),
        ("SELECT count(*), max(b), min(b) FROM t", ["count(*)", "max(b)", "min(b)"]),
        ("select count(*) from t group by a", ["count(*)"]),
        ("select a, b from t", ["a", "b"]),
        ("select t.a, t.b from t", ["a", "b"]),
        ("select a+1 from t", ["a+1"]),
        ("select  round( avg(b),\n 2 )  from t", ["round( avg(b), 2 )"]),
        ("select count(*) as n, count(*) m, max(a) \"o p\" from t", ["n", "m", "o p"]),
        ("select a, a from t", ["a", "a:1"]),
        ("select count(*), count(*) from t", ["count(*)", "count(*):1"]),
        ("select t.a, u.a from t join u on t.a = u.a", ["a", "u.a"]),
        ("select *, a from t", ["a", "b", "l", "a:1"]),
        ("select * from t", ["a", "b", "l"]),
        ("select t.*, max(a) over () from t", ["a", "b", "l", "max(a) over ()"]),
        ("select 'x, y(' from t", ["'x, y('"]),
        ("select 1", ["1"]),
        ("select null, true from t", ["null", "true"]),
        ("select case when a>1 then 'b' end from t", ["case when a>1 then 'b' end"]),
        ("select case when a>1 then 'b' end k from t", ["k"]),
        ("select a::float from t", ["a::float"]),
        ("select cast(a as float) from t", ["cast(a as float)"]),
        ("select a is not null, not a = 1, -a from t", ["a is not null", "not a = 1", "-a"]),
        ("select l[1] from t", ["l[1]"]),
        ("select unnest(l) from t", ["unnest(l)"]),
        ("select distinct a % 2 from t order by a % 2", ["a % 2"]),
        ("select a % 2, sum(b) from t group by a % 2 having sum(b) > 1 order by sum(b)",
         ["a % 2", "sum(b)"]),
        ("select a, count(*) from t group by 1 order by 2 desc", ["a", "count(*)"]),
        ("with r as (select min(b), max(b) from t) select * from r", ["min(b)", "max(b)"]),
        ("with r as (select count(*) from t) select len + 1 from r", ["len + 1"]),
        ("select max(b) from t union all select min(b) from t", ["max(b)"]),
        ("select (select max(b) from t)", ["(select max(b) from t)"]),
        ("(select max(a) from t)", ["max(a)"]),
        ("select median(b) from t order by b", ["median(b)"]),
        ("select a is distinct from 2 from t", ["a is distinct from 2"]),
        ("select * exclude (b) from t", ["a", "l"]),
    ],
)  # fmt: skip
def test_names(sql: str, names: list[str]) -> None:
    assert columns(sql) == names
