"""The stages stand once, in `storage/stages.py`: loop, tables and front page say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from flows import stages
from flows.stage.task import StageFunction
from opd_core.types import Rerun
from storage.stages import RESCORE, ROUND, STAGES, makes_stale, policy_version_of, round_number
from storage.tables.schemas import TABLES
from storage.tables.takes import Takes

ROOT = Path(__file__).resolve().parents[2]


def test_the_loop_calls_them_in_order() -> None:
    tree = ast.parse((ROOT / "flows" / "round.py").read_text())
    (listed,) = (
        node.value.elts
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List) and node.value.elts
    )
    assert tuple(call.func.id for call in listed if isinstance(call, ast.Call)) == STAGES  # type: ignore[attr-defined]
    assert all(isinstance(getattr(stages, name), StageFunction) for name in STAGES)


def test_the_front_page_has_them_in_order_with_the_tables_they_write() -> None:
    rows = re.findall(
        r"^\| (\w+) \| [^|]+ \| (`[^|]+`) \|$", (ROOT / "README.md").read_text(), re.M
    )
    written = {
        stage: [name for name, table in TABLES.items() if table.writer == stage] for stage in STAGES
    }
    assert [(stage, re.findall(r"`(\w+)`", tables)) for stage, tables in rows] == list(
        written.items()
    )


def test_each_reads_what_came_before_it() -> None:
    known: set[str] = set()
    for stage in (*ROUND, RESCORE):
        assert set(stage.reads) <= known, stage.name
        known.add(stage.name)


def test_what_belongs_to_no_round_is_done_once() -> None:
    """A rerun supersedes rows of its round; a stage that has none cannot be run again."""
    for stage in (*ROUND, RESCORE):
        columns = {table.round_column for table in TABLES.values() if table.writer == stage.name}
        assert columns and (None in columns) == bool(stage.once), stage.name


@pytest.mark.parametrize(
    ("stage", "stale"),
    {
        "draw": {"rollout", "score", "rescore", "focus", "update"},
        "rollout": {"score", "rescore", "focus", "update"},
        "score": {"rescore", "focus", "update"},
        "focus": {"update"},
        "update": set(),
        "evaluate": set(),
        "rescore": set(),
    }.items(),
)
def test_what_a_rerun_makes_stale(stage: str, stale: set[str]) -> None:
    assert set(makes_stale(stage)) == stale


def test_only_what_has_rows_becomes_stale_and_in_the_order_of_a_round() -> None:
    rows = {("draw", 1, 0): 4, ("score", 1, 0): 8, ("rescore", 1, 0): 8, ("focus", 1, 0): 8,
            ("update", 0, 0): 1, ("evaluate", 1, 0): 5}  # fmt: skip
    (begun,) = Takes().next_take("draw", 1, "forced", rows)
    assert begun == Rerun(1, 1, "draw", 1, "forced", 4, ("score", "focus", "rescore"))
    takes = Takes((begun,))
    assert [s.stage for s in takes.stale()] == ["score", "focus", "rescore"]
    assert takes.in_the_way("rollout", 1) is None and takes.in_the_way("validate", 1) is None
    found = takes.in_the_way("update", 1)
    assert found is not None and found.command("C") == "videoopd stage score C --round 2"
    assert takes.stale()[-1].command("C") == "videoopd rescore C --round 2"
    again = takes.next_take("update", 0, "forced", rows)
    assert [(r.stage, r.policy_version, r.new_take) for r in again] == [
        ("update", 0, 1), ("evaluate", 1, 1), ("focus", 1, 1), ("rescore", 1, 1), ("score", 1, 1),
    ]  # fmt: skip


def test_a_round_is_called_by_the_policy_that_it_makes() -> None:
    for stage in (*STAGES, RESCORE.name):
        version = 3 if stage == "evaluate" else 2
        assert (round_number(stage, version), policy_version_of(stage, 3)) == (3, version)
