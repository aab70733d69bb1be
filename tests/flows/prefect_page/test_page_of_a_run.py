"""Two rounds on a real server, and what its API then says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.prefect_page import progress as page_progress
from flows.prefect_page.events import COMMITTED
from flows.prefect_page.sending import PAGE
from storage.runs.run import Run
from storage.stages import ROUND
from tests.flows.prefect_page.conftest import artifacts, table

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.server


def flow_names(client: SyncPrefectClient) -> set[str]:
    return {run.name for run in client.read_flow_runs()}


def committed(client: SyncPrefectClient, run: Run, count: int) -> list[dict[str, Any]]:
    """The events of a run's rounds, once there are so many: they arrive a moment later."""
    import time

    wanted = {
        "event": {"name": [COMMITTED]}, "resource": {"id": [f"videoopd.run.{run.run_id}"]}
    }  # fmt: skip
    end = time.monotonic() + 20
    while True:
        answer = client._client.post("/events/filter", json={"filter": wanted}).json()
        if len(answer["events"]) >= count or time.monotonic() > end:
            return sorted(answer["events"], key=lambda e: e["payload"]["round"])
        time.sleep(0.1)


@pytest.fixture
def short_rounds(write_config: Callable[..., Path], tmp_path: Path) -> Path:
    return write_config(tmp_path, {"run.path": f"paged {tmp_path.name}"})


def test_two_rounds_as_the_server_knows_them(
    page: SyncPrefectClient, short_rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.round import videoopd

    monkeypatch.setattr(page_progress, "FIRST_SECONDS", 1e9)
    summary = videoopd(str(short_rounds), rounds=2)
    run = Run.open(summary.run_path)
    name = run.path.name
    assert f"{name}-rounds-1-2" in flow_names(page)
    stem = "-".join(["videoopd", *name.replace("_", " ").split()])

    pages = artifacts(page, f"{stem}-round")
    assert [a.type for a in pages] == ["markdown", "markdown"], "one key, with a history"
    for number, (said, outcome) in enumerate(zip(pages, summary.rounds[1:], strict=True), 1):
        assert f"## {name}, round {number}\n" in str(said.data)
        assert outcome.miou is not None and f"| {outcome.miou:.3f} |" in str(said.data)
        assert f"@{number}\n" in str(said.data)
    for stage in (s.name for s in ROUND):
        rows = [table(a) for a in artifacts(page, f"{stem}-{stage}")]
        number = 0 if stage == "evaluate" else 1
        assert [row["round"] for row in rows] == list(range(number, 3)), stage
        assert all(row["rows written"] > 0 and row["seconds"] >= 0 for row in rows)
    (row, _) = [table(a) for a in artifacts(page, f"{stem}-rollout")]
    told = run.rollouts().collect()
    assert row["rows written"] == len(told.filter(told["policy_version"] == 0))
    measured = told.filter(told["policy_version"] == 0)["engine_mismatch"].max()
    assert row["largest engine mismatch, nats"] == pytest.approx(measured, abs=1e-6)
    assert row["tokens a second"] > 0 and row["memory of process, MB"] > 50
    assert artifacts(page, f"{stem}-rollout-progress") == [], "it took no ten seconds"

    first, second = committed(page, run, 2)
    assert first["resource"]["prefect.resource.name"] == name
    assert first["payload"]["policy_hash"] == run.committed(1).weights_hash
    assert second["payload"]["miou_before"] == first["payload"]["miou_after"]
    assert [e["resource"]["videoopd.goes-on"] for e in (first, second)] == ["yes", "no"]
    assert first["payload"]["config"] == str(short_rounds)

    # The same round is said again, as by a flow that was killed just after: it stays one event.
    from prefect import flow

    from flows.numbers.announced import announce
    from flows.stage.prepare import opened
    from flows.summaries import StageSummary

    @flow
    def again() -> None:
        with opened(str(short_rounds)) as work:
            announce(work, summary.rounds[-1], StageSummary("evaluate", 2, 0, 0, 0.0), 0)

    again()
    assert len(artifacts(page, f"{stem}-round")) == 3
    assert len(committed(page, run, 2)) == 2


def test_a_round_that_goes_on_keeps_its_number(
    page: SyncPrefectClient, short_rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its update is committed, it is still that round; a stage has a name, too."""
    from flows import round as the_round
    from flows.deployments import DEPLOYMENTS
    from flows.round import videoopd

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(the_round, "let_older_go", lambda _: None)
        patch.setattr(Run, "finish_round", killed)
        with pytest.raises(KeyboardInterrupt):
            videoopd(str(short_rounds))
    run = Run.open(short_rounds.with_name(f"paged {short_rounds.parent.name}"))
    assert run.current_policy().version == 1 and not run.is_finished(1)
    before = {r.id for r in page.read_flow_runs()}
    summary = videoopd(str(short_rounds))
    assert summary.rounds[-1].policy_version == 1
    DEPLOYMENTS["draw"](str(short_rounds))
    DEPLOYMENTS["evaluate"](str(short_rounds), round=0)
    name = run.path.name
    now = [r.name for r in page.read_flow_runs() if r.id not in before]
    assert sorted(now) == [
        f"{name}-draw-round-2", f"{name}-evaluate-round-0", f"{name}-round-1"
    ]  # fmt: skip


def test_what_takes_long_has_its_progress(
    page: SyncPrefectClient, short_rounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.round import videoopd

    monkeypatch.setattr(page_progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(page_progress, "EVERY_SECONDS", 0.0)
    summary = videoopd(str(short_rounds))
    stem = "-".join(["videoopd", *Path(summary.run_path).name.replace("_", " ").split()])
    (rollout,) = artifacts(page, f"{stem}-rollout-progress")
    assert (rollout.type, float(str(rollout.data))) == ("progress", 100.0)
    assert rollout.description == "rollout-round-1: 10 of 10"
    assert len(artifacts(page, f"{stem}-update-progress")) == 1


def test_progress_that_fails_stays_where_it_was(
    page: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    from flows.console.progress import progress

    monkeypatch.setattr(page_progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(page_progress, "EVERY_SECONDS", 0.0)

    @flow
    def fails() -> None:
        with page_progress.progress_artifact("ends", "score-round-1"), progress("score", 8) as on:
            on(2)
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fails()
    (shown,) = artifacts(page, "videoopd-ends-score-progress")
    assert float(str(shown.data)) == 25.0


def test_a_server_of_one_command_is_told_nothing(
    page: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, prefect_api: str
) -> None:
    """The tests' server ends with them, as that of `videoopd run` does."""
    from prefect import flow

    from flows.prefect_page.sending import is_wanted, sent
    from flows.server.prefect_settings import TEMPORARY

    @flow
    def asks() -> tuple[bool, object]:
        return is_wanted(), sent(lambda: 1)

    monkeypatch.delenv(PAGE)
    assert asks() == (False, None)
    monkeypatch.setenv(TEMPORARY, "http://127.0.0.1:1/api")
    assert asks() == (True, 1), "another server than the command's own"
    monkeypatch.setenv(PAGE, "0")
    assert asks() == (False, None), "as in a study"
    assert not is_wanted(), "no flow, no page"


def test_a_call_that_fails_is_told_once_and_not_tried_at_once(
    page: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect import flow

    from flows.prefect_page.sending import sent

    calls = []

    def fail() -> None:
        calls.append(1)
        raise OSError("no route\nto host")

    @flow
    def tells() -> list[object]:
        return [sent(fail), sent(fail)]

    assert tells() == [None, None]
    tells()
    assert len(calls) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "behind" in line]
    assert said == [
        "Prefect's page of this run is behind: OSError (no route); the work goes on"
    ]  # fmt: skip


def test_watched_progress_is_told_in_quiet_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.console.progress import Advance, progress, quietly, watched

    told: list[tuple[str, int]] = []

    @contextmanager
    def watch(what: str, total: int) -> Iterator[Advance]:
        yield lambda count, *_: told.append((what, count))

    with quietly(True), watched(watch), progress("score", 4) as advance:
        advance(3)
    with watched(watch), progress("nothing", 0) as advance:
        advance(0)
    with progress("unwatched", 2) as advance:
        advance(2)
    assert told == [("score", 3)]
