"""A round whose tables are in an object store is the round whose tables are in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli import main
from storage.asking.contents import contents, differences
from storage.runs.run import Run
from storage.tables import place
from tests.flows.conftest import Launch, WriteConfig
from tests.object_store import object_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with object_store() as prefix:
        yield prefix


@pytest.mark.kill
@pytest.mark.in_turn
def test_a_killed_round_in_a_store_ends_as_one_in_a_folder(
    store: str,  # before what is launched, which has its environment
    launch: Launch,
    write_config: WriteConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_folder = write_config(tmp_path / "folder")
    in_store = write_config(tmp_path / "store", {"storage.tables": store})
    assert launch(in_store, "before write:append", 4) == -9
    for config in (in_folder, in_store):
        assert launch(config) == 0, config.with_name("log.txt").read_text()
    run = in_store.with_name("run")
    assert place.store_of(run / "tables")
    assert not list((run / "tables").glob("*.lance"))
    expected = contents(Run.open(in_folder.with_name("run")))
    assert len(expected["rollouts"]) == 20
    assert differences(contents(Run.open(run)), expected) == []
    for command in (["status"], ["audit"], ["query"]):
        asked = ["SELECT 'n ' || count(*) AS n FROM rollouts"] if command == ["query"] else []
        assert main([*command, str(run), *asked]) == 0
    assert "n 20" in capsys.readouterr().out
