"""The steps of a running update: what a kill leaves, what a resume replaces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from storage.runs.run import Run
from storage.runs.running_steps import RunningSteps
from tests.storage.storage_factories import update

STEP = update().steps[0]


def numbers(running: RunningSteps, version: int = 1) -> list[tuple[int, float]]:
    return [(step.step, step.loss) for step in running.of(version)]


def filled(folder: Path, count: int = 4) -> RunningSteps:
    running = RunningSteps(folder)
    for number in range(count):
        running.add(1, replace(STEP, step=number, loss=float(number)))
    return running


def test_steps_are_read_back_whole(tmp_path: Path) -> None:
    running = filled(tmp_path, 1)
    assert running.of(1) == [replace(STEP, loss=0.0)]
    assert running.of(2) == [] and RunningSteps(tmp_path / "other").of(1) == []


def test_a_line_that_a_kill_has_cut_is_no_step_and_spoils_none(tmp_path: Path) -> None:
    running = filled(tmp_path)
    whole = running.path.read_bytes()
    for cut in range(len(whole)):
        running.path.write_bytes(whole[:cut])
        known = numbers(running)
        assert known == [(n, float(n)) for n in range(len(known))]
        running.add(1, replace(STEP, step=len(known), loss=9.0))
        assert numbers(running) == [*known, (len(known), 9.0)]


def test_a_step_that_is_made_again_replaces_it_and_those_after_it(tmp_path: Path) -> None:
    running = filled(tmp_path)
    running.add(1, replace(STEP, step=2, loss=7.0))
    assert numbers(running) == [(0, 0.0), (1, 1.0), (2, 7.0)]


def test_an_update_that_goes_on_keeps_what_was_saved(tmp_path: Path) -> None:
    running = filled(tmp_path)
    running.go_on_at(1, 3)
    assert numbers(running) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    running.go_on_at(2, 1)
    assert running.path.read_text() == ""


def test_a_finished_round_leaves_none(run: Run) -> None:
    filled(run.path)
    run.append("updates", [update()])
    run.finish_round(1)
    assert not run.running_steps().path.exists()


def test_a_file_that_cannot_be_written_is_a_warning_once_and_no_end(tmp_path: Path) -> None:
    running = RunningSteps(tmp_path)
    running.path.parent.write_text("")  # no folder can be there
    with pytest.warns(RuntimeWarning, match="the update goes on") as told:
        running.go_on_at(1, 0)
        running.add(1, STEP)
        running.add(1, replace(STEP, step=1))
        running.clear()
    assert len(told) == 1
