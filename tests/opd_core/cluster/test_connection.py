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


def test_a_stage_without_the_section_imports_no_ray() -> None:
    code = (
        "import sys, flows.stages, opd_core.rollout.answers, opd_core.scoring.trees\n"
        "from opd_core.cluster.connection import staying_connected\n"
        "with staying_connected(): pass\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
