"""Exact divergences: seen in the view of tokens, and each way to falsify them is caught."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.audit.walk import Depth, audit
from flows.rescore import rescore_run
from opd_core.tinyworld.world import World
from storage.asking.query import query
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.known import known
from tests.storage.finished_run import append_again, rewrite
from tests.tiny_config import as_toml, tiny_settings

LINK = "divergences are of kept scores, and possible"
KEPT = {"score.hidden_states": True, "score.teacher_entropy": True}


@pytest.fixture(scope="module")
def rescored(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round that was rescored, and of another that was not."""
    folder = tmp_path_factory.mktemp("rescored")
    config = folder / "run.toml"
    config.write_text(as_toml(tiny_settings(folder / "run", tiny_world) | KEPT))
    run_without_server(str(config), 2)
    rescore_run(Run.open(folder / "run"), 1)
    return folder / "run"


@pytest.fixture
def copy(rescored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rescored, tmp_path / "copy"))


def broken(run: Path) -> str | None:
    verdicts = {v.link: v.broken for v in audit(Run.open(run), Depth(videos=0.0))}
    return verdicts[LINK]


def test_a_token_has_its_divergences_where_they_were_made(rescored: Path) -> None:
    run = Run.open(rescored)
    rows = run.tokens().collect()
    stored = {row["rollout_id"]: row for row in run.divergences().collect().to_dicts()}
    scores = {row["rollout_id"]: row for row in run.teacher_scores().collect().to_dicts()}
    assert stored and {row["policy_version"] for row in stored.values()} == {0}
    for row in rows.to_dicts():
        place, score = row["position"], scores.get(row["rollout_id"])
        entropy = None if score is None else score["teacher_entropies"][place]
        assert row["teacher_entropy"] == entropy
        for name in ("forward_kl", "reverse_kl", "js"):
            exact = stored.get(row["rollout_id"])
            assert row[name] == (None if exact is None else exact[name][place])
    sql = "select policy_version, count(js) as n, avg(reverse_kl) from tokens group by 1 order by 1"
    (first, second) = query(run, sql).rows()
    assert first[1] == sum(len(row["js"]) for row in stored.values()) and first[2] > 0
    assert second[1:] == (0, None)


def test_rescored_rows_hold(rescored: Path) -> None:
    verdicts = {v.link: v for v in audit(Run.open(rescored), Depth(videos=0.0))}
    assert [v.broken for v in verdicts.values() if v.broken] == []
    assert (
        known(verdicts[LINK].checked).count == Run.open(rescored).divergences().collect().height > 0
    )


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("teacher_hash", "x", "teacher x has no score of it with hidden states"),
        ("rollout_id", "v0-x-0", "policy 0 has no such rollout"),
        ("policy_version", 1, "policy 1 has no such rollout"),
        ("forward_kl", [0.5], "the length of forward_kl is 1 and should be"),
        ("js", [], "the length of js is 0 and should be"),
    ],
)
def test_a_row_of_another_score(
    copy: Path, column: str, value: str | int | list[float], words: str
) -> None:
    rewrite(copy, "divergences", lambda rows: rows[-1].update({column: value}))
    assert words in known(broken(copy))


@pytest.mark.parametrize(
    ("column", "number", "words"),
    [
        ("reverse_kl", -(2**-7), "reverse_kl is -0.0078125"),
        ("forward_kl", math.inf, "forward_kl is inf"),
        ("forward_kl", math.nan, "forward_kl is nan"),
        ("js", 0.75, "js is 0.75"),
        ("js", 0.6875, "should be 'at most"),
        ("reverse_kl", 0.0, "reverse_kl is 0.0 and should be 'at least"),
        ("forward_kl", 0.0, "forward_kl is 0.0 and should be 'at least"),
    ],
)
def test_a_number_that_cannot_be(copy: Path, column: str, number: float | None, words: str) -> None:
    """At the token on which policy and teacher are furthest apart."""
    tokens = Run.open(copy).tokens().collect().filter(policy_version=0).drop_nulls("js")
    order = "advantage" if number == 0.0 else column
    worst = tokens.sort(tokens[order].abs(), descending=column != "js").row(0, named=True)

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["rollout_id"] == worst["rollout_id"]:
                row[column][worst["position"]] = number

    rewrite(copy, "divergences", change)
    found = broken(copy)
    assert found is not None and words in found
    assert f"{worst['rollout_id']}, token {worst['position']}" in found


def test_a_row_that_is_there_twice(copy: Path) -> None:
    append_again(copy, "divergences", lambda row: None)
    assert "the number of its rows is 2 and should be 1" in known(broken(copy))
