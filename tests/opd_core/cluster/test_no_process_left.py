"""Whoever started Ray is killed, or interrupted: nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.tiny_config import ROOT

CODE = """
import ray
from opd_core.cluster.connection import connected
from opd_core.config.load import load_config

@ray.remote
class Busy:
    def work(self):
        import time
        time.sleep(600)

    def ready(self):
        pass

with connected(load_config("configs/tiny.toml", ["cluster.workers=2"])):
    busy = Busy.options(max_concurrency=2).remote()
    ray.get(busy.ready.remote())
    print("ready", flush=True)
    ray.get(busy.work.remote())
"""


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.in_turn(always=["9"])
def test_nothing_is_left(sent: signal.Signals) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None and starter.stdout.readline() == "ready\n"
    started = psutil.Process(starter.pid).children(recursive=True)
    assert len(started) > 3
    starter.send_signal(sent)
    starter.wait(timeout=60)
    deadline = time.monotonic() + 60
    while left := [p for p in started if is_there(p) and not name(p).startswith(AGENTS)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    for process in filter(is_there, started):
        process.kill()


AGENTS = ("ray::Dashboard", "ray::RuntimeEnv")
"""Ray's own, which after a SIGKILL try for a minute to tell the one that is no more."""


def name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def is_there(process: psutil.Process) -> bool:
    """A zombie is gone: who adopted it has not asked yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
