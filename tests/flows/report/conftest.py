"""What the tests of reports share: a run of two rounds, and one of one round with another seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.prompts.batches import forget_decoded
from opd_core.tinyworld.world import World
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.tiny_config import as_toml, tiny_settings


def write_config(folder: Path, name: str, world: World, **more: object) -> Path:
    """A config of a run `folder/name` on the tiny world, whose models answer with spans."""
    file = folder / f"{name}.toml"
    keys = {key.replace("__", "."): value for key, value in more.items()}
    file.write_text(as_toml(tiny_settings(folder / name, world) | keys))
    return file


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def tiny(place: Path, tiny_world: World) -> Path:
    """The folder of a run of two rounds; to be read only."""
    forget_decoded()  # by other tests of this process; the store is to have the frames
    run_without_server(str(write_config(place, "tiny", tiny_world, evaluate__max_examples=16)), 2)
    return place / "tiny"


@pytest.fixture(scope="session")
def seeded(place: Path, tiny_world: World) -> Path:
    """The folder of a run of one round with another seed, which answers fewer sentences."""
    run_without_server(str(write_config(place, "seeded", tiny_world, run__seed=1)), 1)
    return place / "seeded"


@pytest.fixture
def run(tiny: Path) -> Run:
    return Run.open(tiny)
