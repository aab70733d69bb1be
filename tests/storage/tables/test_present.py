"""What the annotation files hold now: `examples`, and what `data_changes` says of them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from opd_core.types import DataChange, Draw, Evaluation, GroundingExample, Span
from storage.audit import data as audit_data
from storage.audit.links import BrokenLink
from storage.runs.run import Run
from tests.storage.storage_factories import new_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = new_run(tmp_path)
    rows = [("stays", "train"), ("goes", "train"), ("moves", "train"), ("asked", "eval")]
    run.append(
        "examples",
        [GroundingExample(e, "a.mp4", 9.0, e, Span(1.0, 2.0), "s", split) for e, split in rows],
    )
    return run


def change(
    run: Run,
    sequence: int,
    item_id: str,
    change: str,
    split: str | None,
    duration: float | None = 9.0,
    newest_policy: int = 0,
) -> None:
    source = None if split is None else "s"
    duration = None if split is None else duration
    row = DataChange(sequence, item_id, change, split, duration, source, newest_policy)
    assert run.append("data_changes", [row]) == 1


def test_the_last_change_counts_and_rows_stay(run: Run) -> None:
    assert {e.example_id for e in run.present_examples()} == {"stays", "goes", "moves", "asked"}
    change(run, 1, "goes", "removed", None)
    change(run, 1, "moves", "moved", "eval")
    change(run, 2, "stays", "corrected", "train", duration=8.0)
    assert {e.example_id: e.split for e in run.present_examples()} == {
        "stays": "train", "moves": "eval", "asked": "eval",
    }  # fmt: skip
    change(run, 3, "stays", "removed", None)
    assert "stays" not in {e.example_id for e in run.present_examples()}
    (last,) = run.last_known_examples(pl.col("example_id") == "stays")
    assert (last.duration, last.split) == (8.0, "train"), "as last held"
    change(run, 4, "goes", "returned", "train")
    train = run.present_examples(pl.col("split") == "train")
    assert [e.example_id for e in train] == ["goes"]
    assert run.examples().collect().height == 4


def test_numbers_are_of_what_is_in_the_eval_split_now(run: Run) -> None:
    for example in ("asked", "moves"):
        row = Evaluation(0, "p", example, "?", (1,), "stop", None, 0.0, None, 0.0, "hf", 0.1)
        run.append("evaluations", [row], policy_version=0)
    assert run.present_evaluations().collect()["example_id"].to_list() == ["asked"]
    change(run, 1, "moves", "moved", "eval")
    assert run.present_evaluations().collect().height == 2


def test_the_audit_refutes_a_draw_of_what_was_no_training_annotation(run: Run) -> None:
    def draw(version: int, example: str) -> None:
        run.append("draws", [Draw(version, example, 0)], policy_version=version)

    draw(0, "goes")
    change(run, 1, "goes", "removed", None, newest_policy=0)  # in the round, after its draw
    assert audit_data.draws(run).count == 1
    draw(1, "goes")
    with pytest.raises(BrokenLink, match="goes of round 2: its split .* None and should be"):
        audit_data.draws(run)


def test_the_audit_refutes_a_draw_from_the_eval_split_and_of_nothing(run: Run) -> None:
    run.append("draws", [Draw(0, "asked", 0)], policy_version=0)
    with pytest.raises(BrokenLink, match="'eval' and should be 'train'"):
        audit_data.draws(run)


def test_the_audit_refutes_a_draw_before_its_annotation_came(run: Run) -> None:
    change(run, 1, "stays", "added", "train", newest_policy=2)
    run.append("draws", [Draw(1, "stays", 0)], policy_version=1)
    with pytest.raises(BrokenLink, match="its split when it was drawn"):
        audit_data.draws(run)
