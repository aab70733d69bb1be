"""A cluster that others have started is joined, and left as it was."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from opd_core.cluster.machines import on_a_worker
from opd_core.cluster.work import cut
from opd_core.cluster.workers import by_workers
from opd_core.config.load import load_config
from opd_core.types import Policy, VideoOPDError
from tests.opd_core.cluster.fragile_work import Fragile, example, refuse
from tests.tiny_config import ROOT

pytestmark = pytest.mark.slow
WORKER_PORTS = (10002, 19999)
"""Ray's own, which its head may not have."""


@pytest.fixture
def address() -> Iterator[str]:
    """Of a Ray of two cores that was started by hand."""
    folder = tempfile.mkdtemp(prefix="ray-")  # the paths of its sockets must be short
    port = free_port()
    head = subprocess.Popen(
        [
            Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}",
            "--include-dashboard=false", "--num-cpus=2", "--object-store-memory=100000000",
            f"--temp-dir={folder}", "--disable-usage-stats",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert head.stdout is not None
    assert any("Ray runtime started" in line for line in head.stdout), "it has ended"
    yield f"127.0.0.1:{port}"
    assert head.poll() is None, "it is there still"
    head.terminate()
    head.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        if not WORKER_PORTS[0] <= port <= WORKER_PORTS[1]:
            return port


@pytest.mark.in_turn
def test_its_workers_do_the_work(address: str, tmp_path: Path) -> None:
    def work(workers: int) -> Fragile:
        overrides = [f"cluster.workers={workers}", f"cluster.address='{address}'"]
        config = load_config(ROOT / "configs" / "tiny.toml", [*overrides, "machine.threads=1"])
        return Fragile(config, Policy(0, config.student.path, "h"), tmp_path)

    plan = cut([example(v) for v in range(6)], 2, lambda _: True)
    rows = [row for batch in by_workers(work(2), plan) for row in batch.records]
    assert sorted(rows) == [f"{v}-0" for v in range(6)]
    assert on_a_worker(work(2).config, os.getpid) != os.getpid()
    with pytest.raises(VideoOPDError, match="^this is not so$"):
        on_a_worker(work(2).config, refuse, "this is not so")
    with pytest.raises(VideoOPDError, match="3 take 3 cores, and the cluster has 2"):
        list(by_workers(work(3), plan))
