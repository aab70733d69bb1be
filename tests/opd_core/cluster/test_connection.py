"""Joining Ray: what is said where that cannot be. With no section nobody asks for Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opd_core.cluster import connection
from opd_core.config.load import load_config
from opd_core.types import VideoOPDError
from tests.tiny_config import ROOT


def joined(address: str) -> None:
    overrides = ["cluster.workers=2", f"cluster.address='{address}'"]
    with connection.connected(load_config(ROOT / "configs" / "tiny.toml", overrides)):
        pass


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda _: None)
    with pytest.raises(VideoOPDError, match=r'`pip install "videoopd\[cluster\]"`'):
        joined("auto")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "does not answer .*refused.*; start it there"),
        ("somewhere", "is no address; write 'auto' or 'host:port'"),
        ("ray://here", "is no address"),
    ],
)
def test_an_address_that_is_none(address: str, told: str) -> None:
    with pytest.raises(VideoOPDError, match=told):
        joined(address)


def test_a_dashboard_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = "ray._private.utils.get_dashboard_dependency_error"
    monkeypatch.setattr(missing, lambda: ImportError("No module named 'aiohttp'"))
    config = load_config(
        ROOT / "configs" / "tiny.toml", ["cluster.workers=2", "cluster.dashboard=true"]
    )
    told = r"cluster\.dashboard = true .*'aiohttp'.*`pip install \"videoopd\[cluster\]\"`"
    with pytest.raises(VideoOPDError, match=told), connection.connected(config):
        pass


def test_a_cluster_that_is_joined_has_its_own_dashboard() -> None:
    overrides = ["cluster.workers=2", "cluster.address='auto'", "cluster.dashboard=true"]
    with pytest.raises(VideoOPDError, match=r"remove cluster\.dashboard"):
        load_config(ROOT / "configs" / "tiny.toml", overrides)


DASHBOARD = """
import time
import ray
from opd_core.cluster.connection import connected
from opd_core.config.load import load_config
from ray.util.state import list_actors  # asks the dashboard
from ray.util.state.exception import RayStateApiException

class Worker:
    def begin(self):
        pass

config = load_config("configs/tiny.toml", ["cluster.workers=1", "cluster.dashboard=true"])
with connected(config):
    actor = ray.remote(Worker).options(name="rollout-round-0-0").remote()
    ray.get(actor.begin.remote())
    address = ray.get_runtime_context().gcs_address  # another test's Ray may run here too
    end = time.monotonic() + 120
    while True:  # on a busy machine it is up some time after it has begun
        try:
            print([(one.name, one.state) for one in list_actors(address)])
            break
        except (RayStateApiException, ValueError):
            if time.monotonic() > end:
                raise
            time.sleep(1)
"""


@pytest.mark.slow
@pytest.mark.in_turn
def test_the_dashboard_of_our_own_ray_names_stages() -> None:
    command = [sys.executable, "-c", DASHBOARD]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[('rollout-round-0-0', 'ALIVE')]"
    assert "Ray's dashboard: http://127.0.0.1:" in done.stderr


def test_a_stage_without_the_section_imports_no_ray() -> None:
    code = (
        "import sys, flows.stages, opd_core.rollout.answers, opd_core.scoring.trees\n"
        "from opd_core.cluster.connection import staying_connected\n"
        "with staying_connected(): pass\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
