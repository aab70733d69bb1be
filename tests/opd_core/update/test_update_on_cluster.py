"""An update on a real Ray of this machine: two ranks that Ray Train starts, killed and not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from opd_core.config.load import Config
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from opd_core.update.on_cluster import Asked, update_asked
from opd_core.update.student import TrainerFolders
from storage.runs.saved_steps import SavedSteps
from tests.opd_core.update.played_round import Round, assert_same_policy, assert_same_result

pytest.importorskip("ray")
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

CLUSTER = ["cluster.workers=2", "update.save_minutes=0"]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_world: World) -> Round:
    return Round(tmp_path_factory.mktemp("played"), tiny_world, "qwen3_vl")


def asked(played: Round, config: Config, folder: Path, within: Any) -> Asked:
    trainer = TrainerFolders(None, folder / "trainer-state", SavedSteps(folder))
    return Asked(
        config, played.policy, played.work, folder / "policy", config.student.path, trainer,
        False, within,
    )  # fmt: skip


@contextmanager
def dying_once(marker: Path, step: int) -> Iterator[None]:
    """In a rank: the second one is killed before this step, the first time that it comes there."""
    from torch import distributed

    from opd_core.update.trained_model import TrainedModel

    make_step, calls = TrainedModel.step, 0

    def deadly(self: TrainedModel, to_come: float) -> tuple[float, float]:
        nonlocal calls
        if calls == step and distributed.get_rank() == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return make_step(self, to_come)

    TrainedModel.step = deadly  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainedModel.step = make_step  # type: ignore[method-assign]


def test_an_update_whose_rank_is_killed_ends_as_one_process_does(
    played: Round, tmp_path: Path
) -> None:
    from contextlib import nullcontext

    alone = update_asked(asked(played, played.config, tmp_path / "one", nullcontext))
    config = played.with_settings(*CLUSTER)
    told: list[int] = []
    killed = partial(dying_once, tmp_path / "killed", 2)
    together = update_asked(
        asked(played, config, tmp_path / "two", killed), lambda step: told.append(step.step)
    )
    assert (tmp_path / "killed").exists() and together.went_on_at == 2
    assert told == [0, 1, 2], "each step once"
    assert_same_result(together, alone)
    assert_same_policy(tmp_path / "two", tmp_path / "one")
    assert not list(tmp_path.glob("two/*-ray")), "nothing of Ray Train stays"


@pytest.mark.kill
def test_an_update_whose_driver_is_killed_goes_on(played: Round, tmp_path: Path) -> None:
    from contextlib import nullcontext

    import cloudpickle

    config = played.with_settings(*CLUSTER)
    work = asked(played, config, tmp_path / "killed", nullcontext)
    (tmp_path / "asked").write_bytes(cloudpickle.dumps(work))
    script = (
        "import os, pickle, sys\n"
        "from opd_core.update.on_cluster import update_asked\n"
        "update_asked(pickle.load(open(sys.argv[1], 'rb')), lambda _: os.kill(os.getpid(), 9))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "asked")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    went_on: list[int] = []
    result = update_asked(work, on_going_on=went_on.append)
    assert went_on and went_on[0] >= 1
    alone = update_asked(asked(played, played.config, tmp_path / "one", nullcontext))
    assert_same_result(result, alone)
    assert_same_policy(tmp_path / "killed", tmp_path / "one")


@pytest.mark.parametrize(
    "setting, named",
    [
        ("update.offload=true", "update.offload = true"),
        ("update.weights='bfloat16'", "update.weights = 'bfloat16'"),
        ("update.optimizer='adamw_4bit'", "update.optimizer = 'adamw_4bit'"),
    ],
)
def test_what_is_of_one_process_is_refused_in_a_sentence(
    played: Round, tmp_path: Path, setting: str, named: str
) -> None:
    from contextlib import nullcontext

    config = played.with_settings(*CLUSTER, setting)
    with pytest.raises(VideoOPDError, match=named):
        update_asked(asked(played, config, tmp_path, nullcontext))
