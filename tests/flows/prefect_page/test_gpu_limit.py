"""The limit `gpu` of a real server: who waits, who does not, and a holder that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flows.prefect_page import gpu_limit
from flows.prefect_page.gpu_limit import LIMIT, in_line, occupied, set_limit
from opd_core.config.load import Config
from opd_core.types import VideoOPDError
from tests.known import known

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from prefect import flow
from flows.prefect_page.gpu_limit import occupied

@flow
def holds(cards):
    with occupied(cards, "score"):
        print("held", flush=True)
        sys.stdin.readline()
    print("given back", flush=True)

holds(int(sys.argv[1]))
"""
Hold = Callable[[int], subprocess.Popen[str]]


@pytest.fixture
def hold(page: SyncPrefectClient, prefect_api: str) -> Iterator[Hold]:
    """Starts a process that holds so many cards, until it is written a line."""
    started: list[subprocess.Popen[str]] = []
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": prefect_api,
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }

    def start(cards: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(cards)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def two_cards(page: SyncPrefectClient) -> Iterator[SyncPrefectClient]:
    set_limit(2)
    yield page
    page.delete_global_concurrency_limit_by_name(LIMIT)


def taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(LIMIT).active_slots


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_stage_waits_until_the_cards_of_another_are_free(
    two_cards: SyncPrefectClient, hold: Hold
) -> None:
    first = hold(2)
    assert known(first.stdout).readline() == "held\n"
    assert taken(two_cards) == 2
    second = hold(1)
    waiting = known(second.stderr).readline()
    assert waiting == (
        "score: waiting for 1 of the 2 slots of the limit 'gpu', 2 of which are taken\n"
    )
    assert second.poll() is None and taken(two_cards) == 2
    print(file=known(first.stdin), flush=True)
    assert known(second.stdout).readline() == "held\n"
    assert known(first.stdout).readline() == "given back\n"
    assert taken(two_cards) == 1
    print(file=known(second.stdin), flush=True)
    assert known(second.stdout).readline() == "given back\n"
    until(lambda: taken(two_cards) == 0)


def test_without_the_limit_nothing_is_waited_for(hold: Hold) -> None:
    process = hold(64)
    assert known(process.stdout).readline() == "held\n"
    print(file=known(process.stdin), flush=True)
    _, complaint = process.communicate(timeout=30)
    assert complaint == "", "and nothing is said of it"


def test_more_cards_than_there_are_is_a_refusal(two_cards: SyncPrefectClient) -> None:
    told = "takes 3 cards, and the limit 'gpu' .* has 2; raise"
    with pytest.raises(VideoOPDError, match=told), occupied(3, "score"):
        pass


@pytest.mark.in_turn
def test_the_slots_of_a_killed_holder_come_back(
    two_cards: SyncPrefectClient, hold: Hold, prefect_api: str
) -> None:
    """After a minute by the server's clock, which is turned on here: its file of leases says when
    each ends."""
    process = hold(2)
    assert known(process.stdout).readline() == "held\n"
    process.kill()
    process.wait()
    assert taken(two_cards) == 2, "nobody has given them back"
    (lease,) = (
        path for path in Path(os.environ["PREFECT_HOME"]).glob("concurrency_leases/*-*.json")
    )
    content = json.loads(lease.read_text())
    assert content["metadata"]["slots"] == 2
    index = lease.with_name("expirations.json")
    past = "2020-01-01T00:00:00+00:00"
    lease.write_text(json.dumps(content | {"expiration": past}))
    index.write_text(json.dumps({lease.stem: past}))
    until(lambda: taken(two_cards) == 0, 40.0)  # the server looks every 15 seconds
    next_one = hold(2)
    assert known(next_one.stdout).readline() == "held\n"


def test_a_stage_is_in_line_once_it_has_something_to_do(
    two_cards: SyncPrefectClient, write_config: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from prefect import flow

    from opd_core.config.load import load_config

    config = load_config(write_config(tmp_path))
    seen: list[int] = []

    @flow
    def stage_of(config: Config, works: bool) -> None:
        with in_line(config, "score") as wait:
            for _ in range(2 if works else 0):
                wait()
            seen.append(taken(two_cards))

    stage_of(config, True)
    assert seen == [0], "it computes on the CPU"
    monkeypatch.setattr(gpu_limit, "cards_of", lambda *_: 2)
    stage_of(config, False)
    stage_of(config, True)
    assert seen == [0, 0, 2] and taken(two_cards) == 0
