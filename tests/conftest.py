"""What all tests share: a guarded environment, one small tiny world, configs that use it.

The guard stands at the top, before anything imports Prefect or torch: both read their settings from
the environment when they are imported. No test touches the project's own `.prefect`, `runs` or
`worlds`.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
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

# A collection walks through all that torch and Prefect have imported: a twentieth of a round.
gc.set_threshold(50_000, 20, 20)

# A shell's background job ignores Ctrl-C, what nohup began the end of its terminal, and so do their
# children; some tests send both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from flows.server import prefect_settings  # noqa: E402

prefect_settings.apply()

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from opd_core import child_process  # noqa: E402
from tests import forked  # noqa: E402
from tests.fork_server import ray_forks_workers  # noqa: E402
from tests.ray_worker import DOOR  # noqa: E402
from tests.tiny_config import as_toml, tiny_settings  # noqa: E402
from tests.turns import has_its_turn, source_hash  # noqa: E402

if TYPE_CHECKING:
    from opd_core.tinyworld.world import World
    from tests.vllm_server import Served

ray_forks_workers(begins=forked.fork_server)

# What a test takes depends on what else the machine does; speed is `make bench`'s.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


LONGEST = (
    "test_two_machines.py", "test_older_policies.py", "test_kill.py", "test_deployments.py",
    "test_killed_update.py", "test_vllm.py", "test_rerun.py", "test_round.py",
    "test_teacher_elsewhere.py", "test_run_page.py", "test_trajectory_page.py", "test_place.py",
    "test_rollouts_page.py", "test_rollouts.py", "test_study.py", "test_vllm_server.py",
    "test_frame.py", "test_changed_settings.py", "test_audit_divergences.py",
    "test_cluster_round.py", "test_update_on_cluster.py", "test_moe_rounds.py",
    "test_focus_rounds.py", "test_changing_annotations.py", "test_models_by_name.py",
    "test_sharded_update.py", "test_diff.py", "test_several_teachers.py", "test_idle.py",
    "test_audit.py", "test_cleanup.py", "test_object_store.py",
)  # fmt: skip
"""Files whose tests take a minute or more, the longest first: they begin in this order, so that no
worker is alone with one at the end (with pytest-xdist's `--no-loadscope-reorder`)."""
WORLD = ("tiny_world", "models", "prefect_api")
"""Fixtures that take seconds before a test begins, and whose tests mostly do whole stages."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--in-turn", action="store_true", help="a fifth of the tests marked in_turn")


def pytest_report_header(config: pytest.Config) -> str | None:
    if not config.getoption("in_turn"):
        return None
    return f"in turn: a fifth of the long tests, by the source ({source_hash()[:12]})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is made of the tiny world, however indirectly: `make quick` leaves it out. Leave
    out the tests whose turn it is not. Put the longest files first."""
    if config.getoption("in_turn"):
        source, every = source_hash(), list(items)
        items[:] = [item for item in every if has_its_turn(item, source)]
        config.hook.pytest_deselected(items=list({*every} - {*items}))
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))
    for item in items:
        if set(WORLD) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.world)


@pytest.fixture(scope="module", autouse=True)
def no_frames_of_other_tests() -> None:
    """What another file's tests have decoded in this process would not go into a frame store."""
    if "opd_core.prompts.batches" in sys.modules:
        from opd_core.prompts.batches import forget_decoded

        forget_decoded()


@pytest.fixture(scope="session", autouse=True)
def workers_begin_with_their_imports() -> Iterator[None]:
    """An engine's process of these tests' own process is forked, and so are the workers of a Ray
    that it or a forked process starts: nine CPU seconds less for each. Those of a `subprocess`
    begin as anybody's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DOOR, forked.door().getsockname())
        known = SimpleNamespace(**vars(subprocess) | {"Popen": forked.child_of_vllm})
        patch.setattr(child_process, "subprocess", known)
        yield


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


@pytest.fixture(scope="module")
def served_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An untrained teacher behind a real server on loopback, which holds 3 GB while it runs."""
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


@pytest.fixture(scope="session")
def prefect_home(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a home for another server, with the tables of its database, which Prefect makes in five
    CPU seconds."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("prefect-home")
        with (
            closing(sqlite3.connect(f"{_HOME}/prefect.db")) as known,
            closing(sqlite3.connect(home / "prefect.db")) as new,
        ):
            known.backup(new)
        return home

    return make
