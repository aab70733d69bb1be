"""The table of names: each has one meaning, and a column behind it."""

from __future__ import annotations

import re

from flows.numbers import rounds, steps
from flows.tracking import names


def test_a_name_stands_for_one_thing() -> None:
    listed = [name for name, *_ in names.listed()]
    assert len(listed) == len(set(listed))


def test_each_has_a_column_that_is_there_and_a_meaning() -> None:
    assert {n.column for n in names.STEPS} <= set(steps.columns())
    assert {n.column for n in (*names.ROUNDS, *names.metrics())} <= set(rounds.columns())
    assert all(means for *_, means in names.listed())


def test_no_number_of_a_step_is_left_out() -> None:
    axis = {"policy_version", "run_step", "running", "step"}
    assert set(steps.columns()) - axis == {n.column for n in names.STEPS}


def test_names_are_such_as_any_tracker_takes() -> None:
    for name, *_ in names.listed():
        assert re.fullmatch(r"[A-Za-z0-9_./@-]+", name), name


def test_metrics_are_named_by_what_they_are_and_their_protocol() -> None:
    made = {n.column: n.name for n in names.metrics()}
    assert made["strict_miou"] == "tvg/miou/strict"
    assert made["strict_miou_low"] == "tvg/miou/strict/low"
    assert made["timelens_r1_50"] == "tvg/r1@0.5/timelens"
    assert made["parse_failures"] == "tvg/no_span"
    assert made["timelens_parse_failures"] == "tvg/no_span/timelens"
