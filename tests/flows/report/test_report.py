"""What a report says, held against queries and arithmetic of its own."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from flows.audit.outcome import Auditing
from flows.audit.walk import Depth, Verdict
from flows.report import failures
from flows.report.page import Report, html, report
from flows.report.side import sides
from opd_core.tinyworld.world import World
from opd_core.types import Evaluation, QuarantinedItem, Span
from storage.asking.query import query
from storage.audit.links import Checked
from storage.runs import run_folder
from storage.runs.run import Run
from storage.tables.provenance import Provenance
from storage.tables.schemas import TABLES
from tests.flows.conftest import KILLED, Launch
from tests.flows.report.conftest import write_config
from tests.storage.storage_factories import new_run, one_of_each
from tests.storage.tables.test_older_formats import set_back

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
_PROVENANCE = Provenance("run", "rollout", 0, "hash", None, "attempt")
HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def made(tiny: Path) -> Report:
    return report([Run.open(tiny)], NOW)


class _Answer(NamedTuple):
    text: str
    iou: float
    start: float | None
    end: float | None


def _answers(run: Run, version: int) -> dict[str, _Answer]:
    rows = query(
        run,
        "SELECT example_id, text, iou, predicted_start, predicted_end FROM evaluations"
        f" WHERE policy_version = {version}",
    )
    return {row[0]: _Answer(*row[1:]) for row in rows.iter_rows()}


def test_means_and_the_paired_difference_are_those_of_the_rows(made: Report, run: Run) -> None:
    means = query(
        run, "SELECT policy_version, avg(iou) AS m, count(*) AS n FROM evaluations GROUP BY 1"
    )
    (policies,) = made.effects.policies
    shown = {row[0]: (row[1], (row[2] or "").split()[0]) for row in policies.rows}
    assert shown == {str(v): (str(n), f"{m:.3f}") for v, m, n in means.iter_rows()}

    before, after = _answers(run, 0), _answers(run, 2)
    apart = [after[name].iou - before[name].iou for name in before]
    (headline,) = made.effects.headlines
    assert headline.difference.split()[0] == f"{sum(apart) / len(apart):+.3f}"
    assert " to " in headline.difference and "16" in made.effects.compared[0].note


def test_changes_are_the_largest_ones_with_their_frames(made: Report, run: Run) -> None:
    before, after = _answers(run, 0), _answers(run, 2)
    apart = {name: after[name].iou - before[name].iou for name in before}
    assert made.changes is not None
    better, worse = made.changes.better, made.changes.worse
    largest = sorted((v for v in apart.values() if v > 0), reverse=True)[:4]
    smallest = sorted(v for v in apart.values() if v < 0)[:4]
    assert largest or smallest, "the rounds changed nothing, and the test would say nothing"
    assert [one.difference for one in better] == pytest.approx(largest)
    assert [one.difference for one in worse] == pytest.approx(smallest)
    assert made.changes.improved == sum(v > 0 for v in apart.values())
    examples = {one.example_id: one for one in run.present_examples()}
    for one in (*better, *worse):
        example = examples[one.example_id]
        assert (one.query, one.after.text) == (example.query, after[one.example_id].text)
        assert len(one.frames) == 8
        assert [frame.in_truth for frame in one.frames] == [
            example.span.start <= frame.seconds < example.span.end for frame in one.frames
        ]


def _kind_by_hand(answer: tuple[float, float] | None, truth: Span, iou: float) -> str:
    if answer is None:
        return "no span"
    if iou >= 0.5:
        return "right"
    if answer[1] <= truth.start or answer[0] >= truth.end:
        return "beside"
    if answer[0] <= truth.start and answer[1] >= truth.end:
        return "too long"
    if answer[0] >= truth.start and answer[1] <= truth.end:
        return "too short"
    off = abs(answer[0] - truth.start), abs(answer[1] - truth.end)
    return "wrong start" if off[0] > off[1] else "wrong end"


def test_failures_are_counted_by_kind(made: Report, run: Run) -> None:
    truths = {one.example_id: one.span for one in run.present_examples()}
    (side,) = sides([run])
    counted = failures.counts(side)
    for version in (0, 1, 2):
        kinds = Counter(
            _kind_by_hand(
                None if row.start is None or row.end is None else (row.start, row.end),
                truths[name],
                row.iou,
            )
            for name, row in _answers(run, version).items()
        )  # fmt: skip
        assert counted[version] == kinds
    assert made.failures is not None
    right = next(row for row in made.failures.table.rows if (row[0] or "").startswith("right"))
    assert (right[1] or "").split()[0] == str(counted[0].get("right", 0))


@pytest.mark.parametrize(
    ("start", "end", "iou", "said"),
    [
        (None, None, 0.0, "no span"),
        (2.0, 6.0, 1.0, "right"),
        (8.0, 9.0, 0.0, "beside"),
        (6.0, 9.0, 0.0, "beside"),  # they touch
        (0.0, 20.0, 0.2, "too long"),
        (2.0, 20.0, 0.22, "too long"),
        (3.0, 4.0, 0.25, "too short"),
        (5.5, 7.0, 0.1, "wrong start"),
        (0.0, 3.0, 0.17, "wrong end"),
        (0.0, 4.0, 0.33, "wrong end"),  # both ends are as far off
    ],
)
def test_a_kind_follows_from_the_ends(
    start: float | None, end: float | None, iou: float, said: str
) -> None:
    frame = pl.DataFrame(
        {"start": [start], "end": [end], "iou": [iou], "window_start": [2.0], "window_end": [6.0]},
        schema_overrides={"start": pl.Float64, "end": pl.Float64},
    )
    assert frame.select(failures.kind()).item() == said


def test_costs_are_what_the_rows_say_and_absent_is_not_zero(made: Report, run: Run) -> None:
    uses = [use for row in run.updates().collect()["stages"] for use in row]
    (table,) = made.costs.tables
    rows = {row[0]: row[1:] for row in table.rows}
    scored = [use for use in uses if use["stage"] == "score"]
    assert rows["score"][0] == f"{sum(use['seconds'] for use in scored):.1f}"
    assert rows["score"][3] == f"{sum(use['tokens'] for use in scored):,}"
    assert rows["draw"][3] is None and rows["score"][2] is None
    assert "CPU seconds are not known" in table.note


def test_what_was_run_is_named_with_hashes(made: Report, run: Run) -> None:
    facts = {row[0]: row[1] or "" for row in made.inputs.facts.rows}
    content = run_folder.read(run.path)
    update = run.updates().sort("policy_version").collect().row(-1, named=True)
    assert content["student"]["weights_hash"] in facts["student"]
    assert content["teacher"]["weights_hash"] in facts["teacher"]
    assert update["policy_hash"] in facts["newest policy"]
    assert facts["config"] == f"hash {update['config_hash']}"
    assert (facts["seed"], facts["rounds"], facts["as of"]) == ("0", "2", "now")
    assert facts["code"] == update["git_commit"] or update["git_commit"] is None
    videos = [one.video_path for one in run.present_examples() if one.split == "eval"]
    assert f"sentences {len(videos)}, videos {len(set(videos))}" in facts["eval data"]
    set_by_hand = {row[0]: row[1] for row in made.inputs.set_by_hand.rows}
    assert set_by_hand["focus.top_k"] == "4" and "focus.curriculum" not in set_by_hand
    every = {row[0]: row[1] for row in made.inputs.configs.rows}
    assert every["focus.curriculum"] == "tvdf"


def test_the_same_run_gives_the_same_page(made: Report, tiny: Path) -> None:
    page = html(made)
    assert page == html(report([Run.open(tiny)], NOW))
    assert len(page.encode()) < 1_000_000 and "2026-01-02 03:04 UTC" in page


def test_a_pinned_round_is_a_report_of_that_round(tiny: Path) -> None:
    made = report([Run.open(tiny, 1)], NOW)
    assert made.title == "Report of tiny@1"
    assert [row[0] for row in made.effects.policies[0].rows] == ["0", "1"]
    assert {row[0]: row[1] for row in made.inputs.facts.rows}["as of"] == "round 1"
    assert made.changes is not None and made.changes.after == "policy 1"


def test_two_runs_are_compared_on_what_both_answered(tiny: Path, seeded: Path) -> None:
    a, b = Run.open(tiny), Run.open(seeded)
    made = report([a, b], NOW)
    ours, theirs = _answers(a, 2), _answers(b, 1)
    both = sorted(ours.keys() & theirs.keys())
    apart = [theirs[name].iou - ours[name].iou for name in both]
    assert 0 < len(both) < len(ours)
    first = made.effects.headlines[0]
    assert first.what == "Eval mIoU, tiny to seeded"
    assert first.difference.split()[0] == f"{sum(apart) / len(apart):+.3f}"
    assert made.changes is not None and made.changes.compared == len(both)
    assert made.inputs.differences is not None
    assert ("config run.seed", "0", "1") in made.inputs.differences.rows
    assert all("tiny" in chart and "seeded" in chart for chart in made.rounds.charts)
    assert made.title == "Report of tiny and seeded"


def test_runs_of_one_name_are_told_apart(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "tiny")
    first, second = sides([Run.open(tiny), Run.open(copy)])
    assert (first.name, second.name) == (f"{tiny.parent.name}/tiny", f"{tmp_path.name}/tiny")
    twice = sides([Run.open(tiny), Run.open(tiny)])
    assert [side.name for side in twice] == ["tiny (1)", "tiny (2)"]


@pytest.mark.parametrize(("point", "evaluated"), [("before save", True), ("before sample", False)])
def test_a_half_done_run_is_reported_as_far_as_it_is(
    tmp_path: Path, tiny_world: World, launch: Launch, point: str, evaluated: bool
) -> None:
    config = write_config(tmp_path, "half", tiny_world)
    assert launch(config, point) == KILLED

    made = report([Run.open(tmp_path / "half")], NOW)

    page = html(made)
    assert made.changes is None and "There are no two policies" in page
    facts = {row[0]: row[1] for row in made.inputs.facts.rows}
    assert facts["rounds"] == "0" and facts["newest policy"] is None
    assert "Eval mIoU, 95 % interval by video" in (
        page if evaluated else " ".join(made.rounds.nothing_of)
    )
    said = "Only policy 0 of half has been evaluated." if evaluated else "No policy of half has"
    assert said in page and ("Nothing has been evaluated." in page) is not evaluated
    assert ("Loss" in made.steps.nothing_of) is not evaluated
    if evaluated:
        assert made.steps.notes == (
            "The last 1 steps of half are of an update that is not finished.",
        )


def test_without_its_frame_store_a_report_says_so(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "alone")
    page = html(report([Run.open(copy)], NOW))
    assert "data:image" not in page and "has no frames of this video any more" in page


def test_what_the_last_audit_said_is_told_with_what_came_since(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "audited")
    run = Run.open(copy)
    (before,) = report([run], NOW).audited
    assert before.whole is None and "has not been audited" in before.about

    holds = Verdict("rollouts are of exactly the parent's weights", Checked(16, "rollouts"), None)
    auditing = Auditing(run, Depth(videos=0.5))
    auditing.keep([holds, Verdict("scores are the update's", None, "score v0-a: 1 should be 2")])
    (after,) = report([run], NOW).audited
    assert after.whole is False and "1 of 2 links are broken." in after.about
    assert "50% of the videos decoded again" in after.about and "other rows" not in after.about
    assert after.links is not None
    assert [row[0] for row in after.links.rows] == ["holds", "broken"]
    assert after.links.rows[1][2] == "broken: score v0-a: 1 should be 2"

    lost = QuarantinedItem("x", "rollout", None, "gone", 0, "no file")
    run.tables.append("quarantine", [lost], _PROVENANCE)
    (later,) = report([Run.open(copy)], NOW).audited
    assert "Tables with other rows since: " in later.about and "quarantine" in later.about
    (table,) = report([Run.open(copy)], NOW).lost
    assert ("rollout", "1", "gone; tried again in the next round") in table.rows


def test_what_models_say_stays_text(tiny: Path, tmp_path: Path) -> None:
    """An answer, a folder, a reason: all may hold what a browser would run."""
    copy = shutil.copytree(tiny, tmp_path / "<b>tiny & co")
    config = next((copy / "configs").glob("*.json"))
    student = run_folder.read(copy)["student"]["path"]
    teacher = run_folder.read(copy)["teacher"]["path"]
    run = Run.create(copy, config.read_text(), config.stem, student, teacher)
    answered = set(run.evaluations().collect()["example_id"])
    asked = [one for one in run.present_examples() if one.split == "eval"]
    fresh = next(one for one in asked if one.example_id not in answered)
    for version, iou, span in ((0, 0.0, None), (2, 1.0, fresh.span)):
        answer = (fresh.example_id, HOSTILE, (1,), "stop", span, iou, span, iou, "hf", 0.1)
        row = Evaluation(version, "hash", *answer)
        run.append("evaluations", [row], stage="evaluate", policy_version=version)

    page = html(report([Run.open(copy)], NOW))

    assert "<script" not in page and "<b>tiny" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 2
    assert "&lt;b&gt;tiny &amp; co" in page


def test_a_run_without_a_round_and_one_of_an_older_format_have_a_report(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert "Nothing has been evaluated." in html(report([run], NOW))
    for name, record in one_of_each().items():
        run.append(name, [record], stage=TABLES[name].writer or "score")
    set_back(run.path / "tables")
    page = html(report([Run.open(run.path)], NOW))
    assert "Every setting" in page and "<script" not in page
