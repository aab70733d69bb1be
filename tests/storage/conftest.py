from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.runs.run import Run
from storage.tables.lance_tables import Tables
from tests import forked
from tests.storage.storage_factories import new_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables.create(tmp_path / "tables")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `storage_worker.py`; what still runs at the end of the test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def started(*arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        begun = subprocess.Popen if prefix else forked.Popen
        process = begun(
            [*prefix, sys.executable, str(Path(__file__).with_name("storage_worker.py"))]
            + [str(argument) for argument in arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()
