"""The report: the same evidence gives the same three files, and what is missing is said."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from flows.study.evidence import Evidence
from flows.study.plan import load_study
from flows.study.report import write_report
from flows.study.wrongness import Wrongness
from opd_core.tinyworld.wrongness import Judged, filtering
from tests.flows.study.study_points import point, result
from tests.flows.study.test_study_plan import STUDY
from tests.known import known

SESSION = {
    "command": "videoopd study mine.toml",
    "machine": "a machine, 2 cores",
    "commit": "abc123",
    "began": "2026-11-21 10:00 UTC",
}


JUDGED = [Judged(0.1 * n + 0.02, iou) for n, iou in enumerate([0, 0, 0.4, 1, 1, 0.3, 1, 1, 1, 1])]
CLAIM = """
[[claims]]
name = "Student beyond teacher"
statement = "the student ends above its teacher"
arms = ["opd", "long"]
against = ["base"]
rows = [{}, { measure = "cost_to_best", bound = 0.5 }]
"""


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    file = tmp_path / "mine.toml"
    file.write_text(STUDY.replace("[quick]", CLAIM + "[quick]", 1))
    curves = {
        "base": [[(0, 0.4)], [(0, 0.42)], [(0, 0.44)]],
        "opd": [[(0, 0.4), (10, 0.5)], [(0, 0.42), (12, 0.53)], [(0, 0.44), (11, 0.55)]],
        "long": [[(0, 0.4), (20, 0.4)]],
    }
    return Evidence(
        plan=load_study(file, tmp_path / "runs")[0],
        results=[result(a, s, *c) for a, seeds in curves.items() for s, c in enumerate(seeds)],
        tuning=[
            result("opd", 100, (0, 0.4), (9, 0.51), rate=1e-3),
            result("opd", 100, (0, 0.4), (9, 0.47), rate=1e-4),
        ],
        tuned={"opd": 1e-3, "long": 1e-4},
        missing={"long/lr-0.001/seed-1": "the loss is nan"},
        wrongness=Wrongness(100, 0.3, 1.5, 10, filtering(JUDGED)),
        sessions=[SESSION],
    )


def test_the_table_the_verdicts_and_where_they_come_from(
    evidence: Evidence, tmp_path: Path
) -> None:
    write_report(evidence, tmp_path / "out")
    text = (tmp_path / "out" / "mine.md").read_text()
    assert "| `opd` | Video-OPD | 0.001 | 3 | 1 | 10 | 1 k | 11 | 0.527 ± 0.063 |" in text
    assert "| `opd` | 79.0 ± 9.4 | 52.7 ± 6.3 | 26.3 ± 3.1 | 1.0 ± 0.0 | +1.473 ± 0.063 |" in text
    assert "30.0% are annotated badly" in text and "are +1.50 s longer" in text
    assert "| 0.1 | 10.0% | 100.0% | 25.0% |" in text and "| 0.5 | 50.0% | 60.0% | 75.0% |" in text
    assert "+0.107 ±" in text
    assert "| `long` | longer | 0.001 | 1 | 1 | 10 | 1 k | 20 | 0.400 | +0.000 | 0.400 |" in text
    assert "**Student beyond teacher: holds here.**" in text
    assert "| `opd` | 0.470 | **0.510** |" in text
    assert "All runs, tuning included: 71 CPU seconds, or 1 minutes of one core." in text
    assert "- `long/lr-0.001/seed-1`: the loss is nan" in text
    for part in SESSION.values():
        assert part in text
    assert "![mIoU and R1@0.7 of each arm](mine.svg)" in text
    assert "8 of" not in text and "4 of 4 rounds worked on the very examples" in text


def test_without_claims_no_heading_stands_over_nothing(evidence: Evidence, tmp_path: Path) -> None:
    study = evidence.plan.study.model_copy(update={"claims": ()})
    write_report(replace(evidence, plan=replace(evidence.plan, study=study)), tmp_path)
    assert not re.search(r"^## .*\n\n## ", (tmp_path / "mine.md").read_text(), re.MULTILINE)


def test_the_numbers_hold_every_point(evidence: Evidence, tmp_path: Path) -> None:
    write_report(evidence, tmp_path)
    numbers = json.loads((tmp_path / "mine.json").read_text())
    assert [(r["arm"], r["seed"], len(r["points"])) for r in numbers["runs"]] == [
        (r.arm, r.seed, len(r.points)) for r in evidence.results
    ]
    assert numbers["runs"][3]["points"][1]["miou"] == 0.5
    assert numbers["study"]["base"] == "study_base.toml"
    assert str(tmp_path) not in (tmp_path / "mine.json").read_text()


def test_the_plot_is_whole(evidence: Evidence, tmp_path: Path) -> None:
    write_report(evidence, tmp_path)
    picture = ET.parse(tmp_path / "mine.svg").getroot()
    words = {t.text for t in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"optimiser steps", "CPU seconds (one core)", "tokens through the models"} <= words
    assert {"eval mIoU", "eval R1@0.7", "opd", "long"} <= words
    base = next(word for word in words if word and word.startswith("base "))
    miou, r1_70 = known(re.fullmatch(r"base \((0\.\d{3}), (0\.\d{3})\)", base)).groups()
    text = (tmp_path / "mine.md").read_text()
    for number in (miou, f"{100 * float(r1_70):.1f}"):
        assert re.search(rf"^\| `base` .*{number}", text, re.MULTILINE), "as in the tables"


def test_the_same_evidence_gives_the_same_files(evidence: Evidence, tmp_path: Path) -> None:
    first = [p.read_bytes() for p in write_report(evidence, tmp_path / "a")]
    assert first == [p.read_bytes() for p in write_report(evidence, tmp_path / "b")]


def test_unequal_draws_and_resumed_rounds_are_said(evidence: Evidence, tmp_path: Path) -> None:
    other = evidence.results[3]
    changed = replace(
        other,
        points=(other.points[0], replace(point(1, 10, 0.5, ["a", "c"]), resumed=True)),
    )
    results = [*evidence.results[:3], changed, *evidence.results[4:]]
    write_report(replace(evidence, results=results), tmp_path)
    text = (tmp_path / "mine.md").read_text()
    assert "3 of 4 rounds worked on the very examples" in text and "shares 33%" in text
    assert "opd/seed-0, round 1" in text
