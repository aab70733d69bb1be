from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.storage.finished_run import Finished, finished_run


@pytest.fixture(scope="session")
def two_rounds(tmp_path_factory: pytest.TempPathFactory, tiny_world: Any) -> Finished:
    """A real run of two rounds; to be left as it is."""
    return finished_run(tmp_path_factory.getbasetemp() / "finished", Path(tiny_world.videos).parent)
