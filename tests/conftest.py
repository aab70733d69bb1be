"""What all tests share: a guarded environment, one small tiny world, configs that use it.

The guard stands at the top, before anything imports Prefect or torch: both read their settings from
the environment when they are imported. No test touches the project's own `.prefect`, `runs` or
`worlds`.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

_HOME = tempfile.mkdtemp(prefix="videoopd-tests-")
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
os.environ |= {
    "PREFECT_HOME": _HOME,
    # One thread: beside another busy process, two are many times slower. Same numbers anywhere.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}

# A shell's background job ignores Ctrl-C, and so do its children; some tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from flows.server import prefect_settings  # noqa: E402

prefect_settings.apply()

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from tests.tiny_config import as_toml, tiny_settings  # noqa: E402

if TYPE_CHECKING:
    from opd_core.tinyworld.world import World
    from tests.vllm_server import Served

# What a test takes depends on what else the machine does; speed is `make bench`'s.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


WORLD = ("tiny_world", "models", "prefect_api")
"""Fixtures that take seconds before a test begins, and whose tests mostly do whole stages."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is made of the tiny world, however indirectly: `make quick` leaves it out."""
    for item in items:
        if set(WORLD) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.world)


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small tiny world: 24 + 8 videos, about 70 + 24 sentences."""
    from opd_core.tinyworld.world import make_world

    return make_world(tmp_path_factory.mktemp("world"), 7, train_videos=24, eval_videos=8)


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_world: World) -> Callable[..., Path]:
    """Writes a config for a run that takes seconds: `tiny_config({"focus.top_k": 4}) -> path`."""

    def write(overrides: dict[str, Any] | None = None, name: str = "tiny.toml") -> Path:
        path = tmp_path / name
        path.write_text(as_toml(tiny_settings(tmp_path / "run", tiny_world) | (overrides or {})))
        return path

    return write


@pytest.fixture(scope="session")
def served_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An untrained teacher behind a real server on loopback, started once for all tests."""
    pytest.importorskip("vllm")
    from tests.opd_core.engines.vllm_fixtures import make_model
    from tests.vllm_server import Served, vllm_server

    folder = tmp_path_factory.mktemp("served")
    model = make_model(folder / "teacher", "teacher", 1)
    with vllm_server(model, folder / "server.log") as address:
        yield Served(model, address)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """A Prefect server for flows that are called in the test's own process; yields its address."""
    from flows.server.local import connect

    wait_for_server = connect()
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    wait_for_server()
    url = os.environ.pop("PREFECT_API_URL")  # subprocesses find their own
    # The heartbeat's thread costs each flow a second.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield url
