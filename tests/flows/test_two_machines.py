"""Two machines of a Ray cluster: one of them dies in the middle of each stage of a round."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from flows.stage.shared_folders import refuse_unshared
from opd_core.config.load import Config, load_config
from opd_core.types import VideoOPDError
from storage.asking.contents import contents, differences
from storage.file_system import Shown, shown
from storage.runs.run import Run
from tests import forked
from tests.flows.clusters import (
    PATIENCE_SECONDS,
    STAGES,
    asked_to_kill,
    replace_machine,
    two_machines,
)
from tests.flows.conftest import WriteConfig
from tests.tiny_config import ROOT

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.kill, pytest.mark.timeout(2400)]

ROUND = {
    "cluster.workers": 2,
    "update.save_minutes": 0,
    "rollout.prompts_per_batch": 2,
    "evaluate.prompts_per_batch": 1,
}


@pytest.mark.in_turn
def test_a_machine_dies_in_each_stage_and_the_round_ends_as_if_none_had(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # ranks anywhere import what kills them
    calm = write_config(tmp_path / "calm", ROUND)
    forked.run([sys.executable, "-m", "tests.flows.clusters", str(calm)], check=True)
    expected = contents(Run.open(calm.with_name("run")))
    assert len(expected["rollouts"]) == 20
    with two_machines() as cluster:
        hit = write_config(tmp_path / "hit", ROUND | {"cluster.address": cluster.address})
        deaths: list[str] = []
        process = forked.Popen(
            [sys.executable, "-m", "tests.flows.clusters", str(hit), str(tmp_path)]
        )
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while process.poll() is None and time.monotonic() < until:
                for stage in STAGES:
                    node = asked_to_kill(tmp_path, stage)
                    if node is not None and stage not in deaths:
                        replace_machine(cluster, node or None)
                        deaths.append(stage)
                        (tmp_path / f"{stage}.killed").touch()
                time.sleep(0.1)
            assert process.poll() == 0
        finally:
            process.kill()
            process.wait()
    assert deaths == list(STAGES)
    assert differences(contents(Run.open(hit.with_name("run"))), expected) == []


def test_a_machine_that_does_not_see_the_folders_is_named(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_machines() as cluster:
        settings = ROUND | {"cluster.address": cluster.address}
        config = load_config(write_config(tmp_path, settings))
        locks = config.run.path / ".locks"
        locks.mkdir(parents=True)
        refuse_unshared(config)
        assert list(locks.iterdir()) == []
        gone = config.model_copy(
            update={"data": config.data.model_copy(update={"videos": tmp_path / "elsewhere"})}
        )
        with pytest.raises(VideoOPDError, match=r"machine .* has no folder .*elsewhere; put it on"):
            refuse_unshared(gone)

        content = config.model_dump() | {
            "teachers": [
                {"name": name, "path": path}
                for name, path in (("one", config.teacher.path), ("two", tmp_path / "absent"))
            ]
        }
        del content["teacher"]
        with pytest.raises(VideoOPDError, match=r"machine .* has no folder .*absent; put it on"):
            refuse_unshared(Config.model_validate(content))

        def of_another_folder(folder: Path) -> AbstractContextManager[Shown]:
            with shown(folder) as here:
                pass  # gone again: what a machine sees that has another folder there
            return nullcontext(here)

        monkeypatch.setattr("flows.stage.shared_folders.shown", of_another_folder)
        with pytest.raises(VideoOPDError, match="seen from machine .* not the same folder there"):
            refuse_unshared(config)
