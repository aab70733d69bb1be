"""What is asked of the table of rollouts, and what it answers, beside polars on a real run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from flows.view.app import make_app
from flows.view.listing import listing, neighbours
from flows.view.place import Place
from flows.view.rollouts import ROWS, SORTS, Asked
from flows.view.rollouts_page import _edges, counted
from opd_core.types import VideoOPDError
from storage.asking.query import query
from storage.runs.run import Run

PORT = 8470


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return Run.open(finished.with_name("tiny"))


@pytest.fixture(scope="module")
def client(run: Run) -> TestClient:
    app = make_app(Place([run]), "key", PORT)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}")
    client.cookies.set(f"videoopd-{PORT}", "key")
    return client


def listed(run: Run, asked: Asked) -> list[str]:
    found = listing(run)
    return found.ids(found.order(asked))


REALS = st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 2) + 0.0)


@st.composite
def asks(draw: st.DrawFn) -> Asked:
    def maybe(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | values)

    ranges = {}
    for what in ("iou", "disagreement", "kl"):
        low, high = sorted((draw(REALS), draw(REALS)))
        ranges[f"{what}_from"] = maybe(st.just(low))
        ranges[f"{what}_below"] = maybe(st.just(high + 0.01))
    sort = maybe(st.sampled_from(sorted(SORTS)))
    return Asked(
        round=maybe(st.integers(1, 3)), source=maybe(st.sampled_from(["student", "it's"])),
        selected=maybe(st.sampled_from(["yes", "no", "undecided"])),
        reason=maybe(st.sampled_from(["selected", "teacher unreliable", "'; --"])),
        finish=maybe(st.sampled_from(["stop", "length"])),
        span=maybe(st.sampled_from(["yes", "no"])),
        text=maybe(st.sampled_from(["RED", "e", "1.0 -", "'", "%", "--", "/*", "r.d", "("])),
        sort=sort and draw(st.sampled_from(["", "-"])) + sort, **ranges,
    )  # fmt: skip


@pytest.fixture(scope="module")
def view(run: Run) -> pl.DataFrame:
    return run.trajectories().collect()


def by_polars(frame: pl.DataFrame, asked: Asked) -> list[str]:
    """The same list by expressions on the view, which know nothing of SQL."""
    c = pl.col
    for name, value in (("answered_by", asked.source), ("reason", asked.reason),
                        ("finish_reason", asked.finish)):  # fmt: skip
        if value is not None:
            frame = frame.filter(c(name) == value)
    if asked.round is not None:
        frame = frame.filter(c("policy_version") + 1 == asked.round)
    for name, what in (("student_iou", "iou"), ("disagreement", "disagreement"),
                       ("reverse_kl", "kl")):  # fmt: skip
        low, high = getattr(asked, f"{what}_from"), getattr(asked, f"{what}_below")
        frame = frame if low is None else frame.filter(c(name) >= low)
        frame = frame if high is None else frame.filter(c(name) < high)
    if asked.selected is not None:
        wanted = {"yes": True, "no": False, "undecided": None}[asked.selected]
        frame = frame.filter(c("selected").eq_missing(pl.lit(wanted, pl.Boolean)))
    if asked.span is not None:
        frame = frame.filter(c("predicted_start").is_not_null() == (asked.span == "yes"))
    if asked.text is not None:
        word = asked.text.lower()
        holds = [
            c(n).str.to_lowercase().str.contains(word, literal=True) for n in ("query", "text")
        ]
        frame = frame.filter(holds[0] | holds[1])
    column, down = asked.sorted_by
    if column is not None:
        frame = frame.sort(c(column), "rollout_id", descending=[down, False], nulls_last=True)
    return frame["rollout_id"].to_list()


@settings(max_examples=40)
@given(asks())
@example(Asked(text="r.d"))
@example(Asked(text="/*"))
def test_the_list_is_what_polars_finds_and_what_the_sql_says(
    run: Run, view: pl.DataFrame, asked: Asked
) -> None:
    found = listed(run, asked)
    assert found == by_polars(view, asked)
    assert query(run, asked.sql())["rollout_id"].to_list() == found[:ROWS]
    assert Asked.parse(parse_qsl(urlencode(asked.words()))) == asked


def test_pages_of_the_sql_are_the_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.view.rollouts.ROWS", 5)
    asked = Asked(sort="finish_reason")  # nearly all are alike
    found = listed(run, asked)
    assert len(found) > 15
    pages = range(1, -(-len(found) // 5) + 1)
    parts = [query(run, asked.on(p).sql())["rollout_id"].to_list() for p in pages]
    assert [i for part in parts for i in part] == found


WHERE = {
    "tokens > 15": pl.col("tokens") > 15,
    "span_end - span_start < 5 -- short": pl.col("span_end") - pl.col("span_start") < 5,
    "array_length(teacher_logprobs) > 3": pl.col("teacher_logprobs").list.len() > 3,
    "student_iou > avg(student_iou)": pl.col("student_iou") > pl.col("student_iou").mean(),
    "trained_in = 2 OR query LIKE '%red%';": (pl.col("trained_in") == 2)
    | pl.col("query").str.contains("red"),
    "text <> ';'": pl.col("text") != ";",
}


@pytest.mark.parametrize("where", WHERE)
def test_where_is_any_condition_over_the_view(run: Run, where: str) -> None:
    asked = Asked.parse([("where", where), ("sort", "-student_iou")])
    view = run.trajectories().filter(WHERE[where]).collect()
    wanted = view.sort("student_iou", "rollout_id", descending=[True, False])["rollout_id"]
    assert len(wanted) > 0 and listed(run, asked) == wanted.to_list()
    assert query(run, asked.sql())["rollout_id"].to_list() == wanted.to_list()[:ROWS]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("DELETE FROM rollouts", "queries only read, and 'DELETE' does not"),
        ("drop table rollouts", "queries only read, and 'drop' does not"),
        ("tokens > 3; DROP TABLE rollouts", "statement can be parsed at a time"),
        ("1 = 1) UNION SELECT (1", "closes a bracket that it has not opened"),
        ("wrong > 3", "there is no column 'wrong'; trajectories has rollout_id"),
        ("tokens", "must be of type `Boolean`"),
        ("tokens > 3 ORDER BY tokens", "the query failed"),
        ("rollout_id IN (SELECT a FROM read_csv('/etc/passwd'))", "leave out read_...()"),
        ("lpad(text, 1000000000, 'x') = ''", "it may take 2 GiB"),
    ],
)
def test_where_that_cannot_be_answered_is_a_sentence(
    run: Run, client: TestClient, where: str, said: str
) -> None:
    before = run.table_versions()
    answer = client.get("/tiny/rollouts", params={"where": where})
    assert answer.status_code == 400
    assert said.replace("'", "&#39;").replace(">", "&gt;") in answer.text
    assert run.table_versions() == before
    assert client.get("/tiny/rollouts", params={"where": "tokens > 0"}).status_code == 200


def test_where_that_takes_for_ever_is_stopped(
    run: Run, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.view.apart.SECONDS", 1.0)
    endless = " CROSS JOIN ".join(f"trajectories t{i}" for i in range(6))
    where = f"rollout_id IN (SELECT t0.rollout_id FROM {endless})"
    answer = client.get("/tiny/rollouts", params={"where": where})
    assert answer.status_code == 400 and "takes longer than 1 s" in answer.text
    assert client.get("/tiny/rollouts", params={"where": "tokens > 0"}).status_code == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"iou": "3"}, "no parameter &#39;iou&#39;; did you mean &#39;iou_from&#39;?"),
        ({"iou_from": "high"}, "iou_from=&#39;high&#39; is no number"),
        ({"iou_from": "nan"}, "iou_from=&#39;nan&#39; is no number"),
        ({"iou_from": "0.5", "iou_below": "0.5"}, "iou_from=0.5 is not less than iou_below=0.5"),
        ({"round": "0"}, "round=&#39;0&#39; is no whole number from 1 on"),
        ({"round": "²"}, "round=&#39;²&#39; is no whole number"),
        ({"selected": "maybe"}, "selected=&#39;maybe&#39; is not known; give yes or no"),
        ({"sort": "text"}, "sort=&#39;text&#39; is no column of the table"),
        ({"page": "99"}, "page=99 is past the last"),
        ({"page": ["1", "2"]}, "page is given twice"),
        ({"text": "x" * 3000}, "text has 3,000 characters"),
        ({"at": "9"}, "has not finished round 9"),
    ],
)
def test_a_wrong_parameter_is_named(client: TestClient, words: dict[str, Any], said: str) -> None:
    answer = client.get("/tiny/rollouts", params=words)
    assert answer.status_code == 400 and said in answer.text


NAMES = st.sampled_from([f.name for f in dataclasses.fields(Asked)] + ["at", "part", "x", ""])
VALUES = st.text(max_size=12) | REALS.map(str) | st.integers(-3, 10**12).map(str)


@settings(max_examples=60)
@given(st.lists(st.tuples(NAMES.filter(lambda n: n != "where"), VALUES), max_size=4))
@example([("text", "\x00'")])
@example([("text", "read_csv(")])
@example([("kl_from", "1e-300"), ("kl_below", "1e6")])
@example([("page", "9" * 40)])
@example([("iou_below", "-1")])
@example([("kl_below", "-1000")])
@example([("kl_from", "1000")])
@example([("iou_from", "1")])
@example([("iou_from", "0.999999"), ("iou_below", "0.9999991")])
def test_any_query_string_is_a_page_or_a_sentence(
    client: TestClient, words: list[tuple[str, str]]
) -> None:
    answer = client.get("/tiny/rollouts", params=tuple(words))
    assert answer.status_code in (200, 400, 404)
    if answer.status_code == 200 and "part" not in dict(words):
        asked = Asked.parse(words)
        assert Asked.parse([(k, str(v)) for k, v in asked.words().items()]) == asked


@settings(max_examples=25)
@given(st.text(max_size=30))
@example("(((((((((((((((((((((((((((((((((((((((((((((((((((((((1))))")
def test_any_where_is_a_page_or_a_sentence(client: TestClient, where: str) -> None:
    assert client.get("/tiny/rollouts", params={"where": where}).status_code in (200, 400)


def test_neighbours_are_those_of_the_list(run: Run) -> None:
    for asked in (Asked(), Asked(sort="-reverse_kl", iou_from=0.2), Asked(where="tokens > 3")):
        found = listed(run, asked)
        around = [None, *found, None]
        for place in (0, 1, len(found) // 2, len(found) - 1):
            wanted = (around[place], around[place + 2])
            assert neighbours(run, asked, found[place]) == wanted
    assert neighbours(run, Asked(round=1), listed(run, Asked(round=2))[0]) == (None, None)
    assert neighbours(run, Asked(), "v0-nobody-0") == (None, None)


def test_a_pinned_page_is_the_run_as_of_then(run: Run, client: TestClient) -> None:
    then = Run.open(run.path, 1)
    first = listed(then, Asked())
    assert set(first) < set(listed(run, Asked())) and len(first) < listing(run).count
    text = client.get("/tiny/rollouts?at=1").text
    assert f"of {len(first):,} rollouts" in text and f"{run.path}@1" in text
    with pytest.raises(VideoOPDError, match="has not finished round 7"):
        Run.open(run.path, 7)


def test_a_histogram_counts_what_its_links_lead_to(run: Run) -> None:
    every = listing(run)
    for what, column in (("iou", "student_iou"), ("kl", "reverse_kl")):
        values = every.values(Asked(), column).drop_nulls()
        edges = _edges(values, None, None)
        counts = counted(values, edges)
        assert sum(counts) == len(values) > 0 and 10 <= len(counts) <= 25
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            below = None if high == edges[-1] else high
            asked = Asked().but(**{f"{what}_from": low, f"{what}_below": below})
            assert len(listed(run, asked)) == count


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=30), st.none() | REALS)
def test_edges_hold_every_value(values: list[float], low: float | None) -> None:
    known = pl.Series([v for v in values if low is None or v >= low], dtype=pl.Float64)
    edges = _edges(known, low, None)
    assert edges == sorted(set(edges)) and sum(counted(known, edges)) == len(known)


def test_a_page_that_has_not_changed_is_not_made_again(client: TestClient) -> None:
    first = client.get("/tiny/rollouts?sort=tokens")
    etag = {"If-None-Match": first.headers["ETag"]}
    assert client.get("/tiny/rollouts?sort=tokens", headers=etag).status_code == 304
    assert client.get("/tiny/rollouts?sort=tokens&part=rows", headers=etag).status_code == 304
    assert client.get("/tiny/rollouts?sort=-tokens", headers=etag).status_code == 200
