"""The server is gone in the middle of a round: the round is finished all the same."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.server import local, processes
from flows.server.prefect_settings import answers
from storage.runs.run import Run
from tests import forked

ROOT = Path(__file__).resolve().parents[3]
BEHIND = re.compile(r"Prefect's page of this run is behind: .*; the work goes on")
"""Prefect logs into the same file from threads of its own: a line may begin within one of its."""
ONE_ROUND = """
import os, signal, sys
from flows import stages
from flows.round import videoopd

score = stages.score.fn

def without_a_server(*given):
    os.kill(int(sys.argv[2]), signal.SIGKILL)
    return score(*given)

stages.score.fn = without_a_server
videoopd(sys.argv[1])
"""


@pytest.mark.server
@pytest.mark.in_turn
def test_a_round_is_finished_without_its_server(
    write_config: Callable[..., Path], tmp_path: Path, command_environment: dict[str, str],
    prefect_home: Callable[[], Path],
) -> None:  # fmt: skip
    config = write_config(tmp_path / "run-of-it")
    port, home = local._free_port(), prefect_home()
    url = f"http://127.0.0.1:{port}/api"
    environment = command_environment | {"PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    words = ("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    server = processes.start(
        [sys.executable, *words, "--no-ui"], environment, str(home), home / "log", tmp_path
    )
    log = tmp_path / "round.txt"
    try:
        end = time.monotonic() + 120
        while not answers(url):
            assert time.monotonic() < end and server.poll() is None
            time.sleep(0.2)
        with log.open("w") as output:
            process = forked.Popen(
                [sys.executable, "-c", ONE_ROUND, config, server.pid],
                cwd=ROOT, env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        while process.poll() is None and not (
            _is_finished(config.with_name("run")) and BEHIND.search(log.read_text())
        ):
            assert time.monotonic() < end + 60, log.read_text()[-3000:]
            time.sleep(0.2)
        # What is left is Prefect's own: it may try for minutes to report the flow's state.
        process.kill()
        process.wait()
    finally:
        processes.stop(str(home))
    said = BEHIND.findall(log.read_text())
    assert len(said) == 1, log.read_text()[-6000:]
    assert len(Run.open(config.with_name("run")).evaluations().collect()) == 10


def _is_finished(run: Path) -> bool:
    try:
        return Run.open(run).is_finished(1)
    except Exception:  # it is not there yet
        return False
