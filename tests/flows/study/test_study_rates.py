"""Which runs are missing, and at which rate: with arms that take the rate of another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.study import run as running
from flows.study.curves import Result
from flows.study.plan import Plan, StudyRun, load_study
from flows.study.run import StudyOptions, best_rates, missing_runs
from tests.flows.study.study_points import result
from tests.flows.study.test_study_plan import STUDY


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    file = tmp_path / "mine.toml"
    file.write_text(STUDY.replace("rounds = 5", 'rate_of = "opd"'))
    return load_study(file, tmp_path / "runs")[0]


def test_the_rate_of_another_is_the_best_of_its_tuning_runs(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {1e-4: 0.5, 1e-3: 0.6}

    def results(plan: Plan, runs: Sequence[StudyRun]) -> list[Result]:
        return [
            result(r.arm, r.seed, (0, 0.4), (1, ends[rate]), rate=rate)
            for r in runs
            if (rate := r.learning_rate) in ends
        ]

    monkeypatch.setattr(running, "_results", results)
    assert best_rates(plan) == {"opd": 1e-3, "long": 1e-3}
    ends.clear()
    assert best_rates(plan) == {}, "what cannot be tuned leaves the others without a rate"


def test_to_run_an_arm_is_to_tune_the_one_it_has_its_rate_from(plan: Plan, tmp_path: Path) -> None:
    options = StudyOptions(plan.file, False, 1, False, ("long",), tmp_path, tmp_path)
    assert missing_runs(plan, options, plan.tuning_runs()) == plan.tuning_runs()
    assert {r.arm for r in plan.tuning_runs()} == {"opd"}
    runs = plan.runs({"opd": 1e-3, "long": 1e-3})
    assert {r.arm for r in missing_runs(plan, options, runs)} == {"long"}
