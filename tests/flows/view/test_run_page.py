"""The run page: its numbers, several runs beside each other, and a run that goes on meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import Browser, Page, expect

from flows import cli
from flows.charts.curves import OF_ROUNDS, OF_STEPS
from flows.numbers import rounds
from flows.stage.prepare import opened
from flows.view.run_curves import Drawn, round_charts, step_charts
from flows.view.run_page import uneven
from opd_core.types import QuarantinedItem, UpdateStep
from storage.runs import letting_go
from storage.runs.run import Run
from tests.flows.view.conftest import Viewed, copied, serving
from tests.flows.view.test_frame import asked
from tests.known import known
from tests.tiny_config import ROOT

WITHIN = 30_000
"""Milliseconds in which what is new has to be seen; five seconds where nobody else computes."""


def region(page: Page, name: str) -> str:
    return page.get_by_role("region", name=name).inner_text()


@contextmanager
def not_loaded_again(page: Page) -> Iterator[None]:
    page.evaluate("window.stays = true")
    yield
    assert page.evaluate("window.stays") is True


def quarantined(run: Run, reason: str) -> None:
    item = QuarantinedItem("v.mp4#1", "rollout", "v.mp4", reason, 2)
    run.append("quarantine", [item], stage="rollout", policy_version=2)


# --- what it says ---------------------------------------------------------------------------------


def test_its_table_has_the_numbers_of_the_tables(browser: Browser, viewed: Viewed) -> None:
    run = Run.open(viewed.runs["tiny"])
    answers = run.present_evaluations().group_by("policy_version").agg(pl.col("iou").mean())
    iou = dict(answers.collect().iter_rows())
    page = viewed.page(browser)
    lines = region(page, "Table of rounds").splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        [str(version), f"{iou[version]:.3f}"] for version in (2, 1, 0)
    ]
    pairs = run.rollouts().join(run.teacher_scores(), on="rollout_id").collect()
    for version, line in zip((2, 1), lines, strict=False):
        mine = pairs.filter(pl.col("policy_version") == version - 1)
        gap = [
            s - t
            for row in mine.select("sampling_logprobs", "teacher_logprobs").iter_rows()
            for s, t in zip(*row, strict=True)
        ]
        assert f"{sum(gap) / len(gap):.3f}" in line.split("\t")


def test_its_charts_are_named_and_say_what_they_show(browser: Browser, viewed: Viewed) -> None:
    page = viewed.page(browser)
    titles = " | ".join(known(c.get_attribute("aria-label")) for c in page.locator("svg").all())
    for title in ("Eval mIoU", "Eval R1", "KL to the teacher", "Disagreement", "without a span",
                  "Effective sample size", "Loss", "Gradient norm", "Learning rate",
                  "Time by stage", "Tokens through the models"):  # fmt: skip
        assert title in titles
    last = rounds.rounds(Run.open(viewed.runs["tiny"])).row(-1, named=True)
    assert f"{last['strict_miou']:.4g} ({last['strict_miou_low']:.4g} to" in titles
    bars = page.locator("svg.chart-stacks").first.locator("title").all_text_contents()
    assert any("update" in bar for bar in bars)


def test_as_of_a_round_there_is_nothing_later(browser: Browser, viewed: Viewed) -> None:
    page = viewed.page(browser)
    page.get_by_role("link", name="the run as of round 1").click()
    expect(page.get_by_text("as of round 1", exact=True)).to_be_visible()
    lines = region(page, "Table of rounds").splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["1", "0"]
    rollouts = page.get_by_role("navigation").get_by_role("link", name="rollouts")
    assert known(rollouts.get_attribute("href")).endswith("/rollouts?at=1")
    assert viewed.said(page) == []


def test_a_run_named_at_a_round_shows_no_later_one(browser: Browser, finished: Path) -> None:
    with serving([Run.open(finished.with_name("tiny"), 1)]) as viewed:
        page = viewed.page(browser)
        assert region(page, "Table of rounds").splitlines()[1].split()[0] == "1"
        assert asked(viewed, "/tiny?at=2", Cookie=viewed.cookie())[0] == 400


def test_a_run_that_was_moved_away_takes_no_other_page_with_it(
    finished: Path, tmp_path: Path
) -> None:
    copied(finished, tmp_path, "other")
    with serving([Run.open(finished.with_name("tiny")), Run.open(tmp_path / "other")]) as viewed:
        (tmp_path / "other").rename(tmp_path / "moved")
        status, body, _ = asked(viewed, "/tiny", Cookie=viewed.cookie())
        assert status == 200 and "other is not drawn" in body
        assert asked(viewed, "/other", Cookie=viewed.cookie())[0] == 400
        (tmp_path / "moved").rename(tmp_path / "other")
        status, body, _ = asked(viewed, "/tiny", Cookie=viewed.cookie())
        assert status == 200 and "other is not drawn" not in body


def test_policies_say_where_they_come_from(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    copied(finished, tmp_path)
    run = Run.open(tmp_path / "tiny")
    letting_go.tag(run, 1, "good")
    hashes = [run.policy(version).weights_hash[:12] for version in (2, 1, 0)]
    with serving([run]) as viewed:
        page = viewed.page(browser)
        lines = region(page, "Table of policies").splitlines()[1:]
        assert [line.split()[1] for line in lines] == hashes
        assert [line.split()[3] for line in lines[:2]] == hashes[1:]
        assert "good" in lines[1] and "good" not in lines[0]


# --- several runs ---------------------------------------------------------------------------------


def test_several_runs_are_drawn_in_one_chart(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    copied(finished, tmp_path, "other")
    copied_again = tmp_path / "again"
    copied(finished, copied_again, "other")
    paths = (finished.with_name("tiny"), tmp_path / "other", copied_again / "other")
    with serving([Run.open(path) for path in paths]) as viewed:
        page = viewed.page(browser)
        assert page.locator("h1").inner_text() == "Runs"
        assert page.get_by_text(", policy 2").count() == len(paths)
        page.locator("main").get_by_role("link", name="tiny").click()
        chart = page.get_by_role("img", name="Eval mIoU")
        for name in ("tiny", "other", "other-2"):
            assert name in known(chart.get_attribute("aria-label"))
        page.get_by_role("link", name="leave out other", exact=True).click()
        said = known(page.get_by_role("img", name="Eval mIoU").get_attribute("aria-label"))
        assert "tiny" in said and "other-2" in said and "other:" not in said
        page.get_by_role("link", name="leave out other-2").click()
        said = known(page.get_by_role("img", name="Eval mIoU").get_attribute("aria-label"))
        assert "other" not in said
        page.get_by_role("link", name="draw other-2").click()
        said = known(page.get_by_role("img", name="Eval mIoU").get_attribute("aria-label"))
        assert "other-2" in said
        assert viewed.said(page) == []


def test_runs_that_were_not_evaluated_alike_are_told_apart() -> None:
    def drawn(name: str, counts: list[int | None]) -> Drawn:
        rounds = pl.DataFrame({"eval_examples": counts}, schema={"eval_examples": pl.Int64()})
        return Drawn(name, 1, rounds, pl.DataFrame(), pl.DataFrame())

    whole, part, none = drawn("a", [308, 308]), drawn("b", [20, None]), drawn("c", [None])
    assert uneven([whole, part, none]) == [("a", 308), ("b", 20)]
    assert uneven([whole, none]) == uneven([whole]) == []


def test_a_title_says_all_of_itself_where_runs_are_drawn_together() -> None:
    """A chart's title is cut where it is too long for it."""
    columns = {column for curve in (*OF_ROUNDS, *OF_STEPS) for column in curve.columns.values()}
    intervals = [f"{c}_{end}" for c in columns for end in ("low", "high")]
    frame = pl.DataFrame(
        {name: [0.5] for name in ["policy_version", "run_step", *columns, *intervals]}
    )
    runs = [Drawn(name, 1, frame, frame, pl.DataFrame()) for name in ("a", "b")]
    assert not [svg for svg in (*round_charts(runs), *step_charts(runs)) if "…" in svg]


# --- a run that goes on ---------------------------------------------------------------------------


def test_nothing_is_computed_again_while_nothing_changes(viewed: Viewed) -> None:
    _, _, headers = asked(viewed, "/tiny", Cookie=viewed.cookie())
    same = {"Cookie": viewed.cookie(), "If_None_Match": headers["etag"]}
    for path in ("/tiny", "/tiny?part=live"):
        status, body, again = asked(viewed, path, **same)
        assert (status, body, again["etag"]) == (304, "", headers["etag"])
    assert asked(viewed, "/tiny?at=1", **same)[0] == 200  # another page


def test_the_page_of_another_server_is_another_one(viewed: Viewed) -> None:
    """At the usual port a browser keeps `/tiny` as of round 1 and asks the next server."""
    run = viewed.runs["tiny"]
    with serving([Run.open(run, 1)]) as pinned:
        _, then, headers = asked(pinned, "/tiny", Cookie=pinned.cookie())
    kept = {"Cookie": viewed.cookie(), "If_None_Match": headers["etag"]}
    status, now, _ = asked(viewed, "/tiny", **kept)
    assert status == 200 and now != then


def test_new_rows_and_steps_are_seen_without_loading_again(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    with opened(str(copied(finished, tmp_path))) as work, serving([work.run]) as viewed:
        page = viewed.page(browser)
        assert "Nothing: every item could be used." in page.locator("main").inner_text()
        (done,) = work.run.updates().select("steps").collect().head(1)["steps"]
        step = UpdateStep(**done[0])
        with not_loaded_again(page):
            quarantined(work.run, "it has no frames")
            expect(page.get_by_text("it has no frames")).to_be_visible(timeout=WITHIN)
            for number in range(3):
                work.run.running_steps().add(3, replace(step, step=number, loss=7.5))
            expect(page.locator("#going-on")).to_contain_text("3 steps", timeout=WITHIN)
            loss = known(page.get_by_role("img", name="Loss").get_attribute("aria-label"))
            assert "7.5" in loss
        assert viewed.said(page) == []


@pytest.mark.slow
def test_a_running_round_is_followed_to_its_end(
    browser: Browser, finished: Path, tmp_path: Path
) -> None:
    config = copied(finished, tmp_path)
    go_on = (
        "import sys; sys.path.insert(0, sys.argv[2]);"
        "from tests.flows.kill_points import run_without_server;"
        "run_without_server(sys.argv[1], 1)"
    )
    with serving([Run.open(tmp_path / "tiny")]) as viewed:
        page = viewed.page(browser)
        expect(page.locator("#going-on")).to_contain_text("nothing drawn yet")
        with not_loaded_again(page):
            running = subprocess.Popen([sys.executable, "-c", go_on, str(config), str(ROOT)])
            try:
                expect(page.locator("#going-on")).to_contain_text("8 drawn", timeout=120_000)
                assert running.wait(timeout=240) == 0
            finally:
                running.kill()
                running.wait()
            table = page.get_by_role("region", name="Table of rounds")
            expect(table.locator("tbody th").first).to_have_text("3", timeout=WITHIN)
            expect(page.locator("#going-on")).to_contain_text("nothing drawn yet")
        assert viewed.said(page) == []


def test_focus_and_what_is_open_survive_what_is_new(
    browser: Browser, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(str(copied(finished, tmp_path))) as work, serving([work.run]) as viewed:
        assert cli.main(["audit", str(work.run.path), "--videos", "0"]) == 0
        page = viewed.page(browser)
        page.locator("#audit-links summary").click()
        link = page.get_by_role("link", name="the run as of round 1")
        link.focus()
        quarantined(work.run, "it has no frames")
        expect(page.get_by_text("it has no frames")).to_be_visible(timeout=WITHIN)
        expect(link).to_be_focused()
        expect(page.locator("#audit-links li").first).to_be_visible()


def test_a_server_that_is_gone_is_told(browser: Browser, finished: Path) -> None:
    with serving([Run.open(finished.with_name("tiny"))]) as viewed:
        page = viewed.page(browser)
    expect(page.get_by_role("status")).to_contain_text("does not answer", timeout=WITHIN)


# --- the audit ------------------------------------------------------------------------------------


def test_the_last_audit_is_shown_with_what_came_since(
    browser: Browser, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(str(copied(finished, tmp_path))) as work, serving([work.run]) as viewed:
        page = viewed.page(browser)
        audit = page.get_by_role("region", name="Audit")
        assert "No audit has been kept" in audit.inner_text()
        assert cli.main(["audit", str(work.run.path), "--videos", "0"]) == 0
        links = sum(line.startswith("✓") for line in capsys.readouterr().out.splitlines())
        expect(audit).to_contain_text(f"✓ all {links} links hold", timeout=WITHIN)
        expect(audit).to_contain_text(time.strftime("%Y-%m-%d", time.gmtime()))
        expect(audit).to_contain_text("Nothing has changed since")
        quarantined(work.run, "it has no frames")
        expect(audit).to_contain_text("Changed since: quarantine.", timeout=WITHIN)

        weights = work.run.policy(2).path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        assert cli.main(["audit", str(work.run.path), "--videos", "0"]) == 1
        expect(audit).to_contain_text(f"of {links} links broken", timeout=WITHIN)
        expect(audit).to_contain_text("checkpoints hold the weights that were committed")
