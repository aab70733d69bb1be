"""An update on a real Ray of this machine: two ranks that Ray Train starts, killed and not."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from opd_core.config.load import Config
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from opd_core.update.continuation import continuation
from opd_core.update.on_cluster import Asked, interruptible, update_asked
from opd_core.update.rows import HeldRows
from opd_core.update.student import TrainerFolders
from storage.runs.saved_steps import SavedSteps
from tests import forked
from tests.opd_core.update.dying_once import DyingOnce
from tests.opd_core.update.played_round import Round, assert_same_policy, assert_same_result
from tests.tiny_config import ROOT

pytest.importorskip("ray")
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

CLUSTER = ["cluster.workers=2", "update.save_minutes=0"]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, tiny_world: World) -> Round:
    return Round(tmp_path_factory.mktemp("played"), tiny_world, "qwen3_vl")


def asked(
    played: Round, config: Config, folder: Path, steps: type[SavedSteps] | Any = SavedSteps
) -> Asked:
    trainer = TrainerFolders(None, folder / "trainer-state", steps(folder))
    return Asked(
        config,
        played.policy,
        HeldRows(played.work),
        folder / "policy",
        config.student.path,
        trainer,
        False,
    )


@pytest.mark.in_turn
def test_an_update_whose_rank_is_killed_ends_as_one_process_does(
    played: Round, tmp_path: Path
) -> None:
    alone = update_asked(asked(played, played.config, tmp_path / "one"))
    config = played.with_settings(*CLUSTER)
    told: list[int] = []
    work = asked(played, config, tmp_path / "two", partial(DyingOnce, step=2))
    together = update_asked(work, lambda step: told.append(step.step))
    assert (tmp_path / "two" / "killed").exists() and together.went_on_at == 2
    assert told == sorted(set(told)) and told[-1] == 2, "no step twice"
    assert_same_result(together, alone)
    assert_same_policy(tmp_path / "two", tmp_path / "one")
    assert not list(tmp_path.glob("two/*-ray")), "nothing of Ray Train stays"


@pytest.mark.kill
@pytest.mark.in_turn
def test_an_update_whose_driver_is_killed_goes_on(played: Round, tmp_path: Path) -> None:
    import cloudpickle

    config = played.with_settings(*CLUSTER)
    work = asked(played, config, tmp_path / "killed")
    (tmp_path / "asked").write_bytes(cloudpickle.dumps(work))
    script = (
        "import os, pickle, sys\n"
        "from opd_core.update.on_cluster import update_asked\n"
        "def told(step):\n"
        "    if step.step == 1:  # so the one before was saved\n"
        "        os.kill(os.getpid(), 9)\n"
        "update_asked(pickle.load(open(sys.argv[1], 'rb')), told)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "asked")]
    assert forked.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    went_on: list[int] = []
    result = update_asked(work, on_going_on=went_on.append)
    assert went_on and went_on[0] >= 1
    alone = update_asked(asked(played, played.config, tmp_path / "one"))
    assert_same_result(result, alone)
    assert_same_policy(tmp_path / "killed", tmp_path / "one")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["update.offload=true"], "update.offload = true"),
        (["update.weights='bfloat16'", "student.dtype='bfloat16'"], "update.weights = 'bfloat16'"),
        (["update.optimizer='adamw_4bit'"], "update.optimizer = 'adamw_4bit'"),
    ],
)
def test_what_is_of_one_process_is_refused_in_a_sentence(
    played: Round, settings: list[str], named: str
) -> None:
    config = played.with_settings(*CLUSTER, *settings)
    with pytest.raises(VideoOPDError, match=named):  # the stages ask before anything is sampled
        continuation(config, config.student.path, 0, None, None)


def test_what_one_rank_refuses_ends_the_update_with_its_sentence(
    played: Round, tmp_path: Path
) -> None:
    """Also in the middle of a step, where the other one waits for it."""
    config = played.with_settings(*CLUSTER)
    whole = asked(played, config, tmp_path)
    first, *others = played.work
    unscored = replace(first, scores=(None, *first.scores[1:]))
    with pytest.raises(VideoOPDError, match="has no teacher score, which update.objective"):
        update_asked(replace(whole, rows=HeldRows([unscored, *others])))
    assert not list(tmp_path.glob("*-ray"))


def test_ctrl_c_interrupts_whoever_handles_it_meanwhile() -> None:
    """Ray Train ends the process with 0, and leaves its handler."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
