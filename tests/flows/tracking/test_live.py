"""Trackers beside rounds: told as steps come, and never in the way, whatever they do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.cli import main
from flows.tracking.live import tracked
from opd_core.config.load import Config, load_config
from opd_core.extensions import TRACKERS
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.foreign_package import install
from tests.storage.finished_run import Finished, write_config

TRACKERS_OF_OTHERS = '''
import json, os, signal, time
from opd_core.extensions import TrackerKind


class Noting:
    """Writes a line a point."""

    def __init__(self, about):
        about.folder.mkdir(parents=True, exist_ok=True)
        self._file = about.folder / f"{about.name}.jsonl"
        (about.folder / "pid").write_text(str(os.getpid()))

    def has(self, axis, name, number):
        return False

    def log(self, point):
        with self._file.open("a") as file:
            line = {"axis": point.axis, "number": point.number, **point.values}
            file.write(json.dumps(line) + "\\n")

    def finish(self):
        pass


class Raising(Noting):
    def log(self, point):
        raise RuntimeError("the disk of the tracker is full")


class Hanging(Noting):
    def log(self, point):
        while True:
            time.sleep(1)


class Killed(Noting):
    def log(self, point):
        os.kill(os.getpid(), signal.SIGKILL)


noting, raising, hanging, killed = (
    TrackerKind(about="of a test", opened=kind) for kind in (Noting, Raising, Hanging, Killed)
)
absent = TrackerKind(about="of a test", opened=Noting, needs=("no-such-package",))
'''
SECONDS = 20.0


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trackers of another package, here and in processes that are started."""
    names = ("noting", "raising", "hanging", "killed", "absent")
    folder = install(
        tmp_path / "package",
        "their_trackers",
        TRACKERS_OF_OTHERS,
        {"videoopd.trackers": {name: f"their_trackers:{name}" for name in names}},
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}:{Path.cwd()}")
    TRACKERS.__dict__.pop("_others", None)
    yield
    TRACKERS.__dict__.pop("_others", None)


@pytest.fixture
def config_of(two_rounds: Finished, tmp_path: Path) -> Callable[..., Config]:
    """The config of a copy of the run, with trackers."""

    def write(*names: str, seconds: float = SECONDS) -> Config:
        shutil.copytree(two_rounds.run, tmp_path / "told")
        path = write_config(
            two_rounds.config.parent, two_rounds.world, tmp_path / "told",
            **{"tracking.to": names, "tracking.seconds": seconds},
        )  # fmt: skip
        return load_config(path)

    return write


def noted(config: Config, name: str = "noting") -> list[dict[str, Any]]:
    files = list((config.trackers_path / name).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def pid_of(config: Config, name: str) -> str:
    file = config.trackers_path / name / "pid"
    return file.read_text() if file.exists() else ""


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def test_steps_are_told_as_they_come_and_rounds_when_they_are_finished(
    others: None, config_of: Callable[..., Config]
) -> None:
    config = config_of("noting")
    run = Run.open(config.run.path)
    known = sum(len(row) for row in run.updates().select("steps").collect()["steps"])
    step = run.updates().collect().row(0, named=True)["steps"][0]
    from opd_core.types import UpdateStep

    with warnings.catch_warnings(), tracked(config) as finished:
        warnings.simplefilter("error")
        for number in range(2):
            run.running_steps().add(3, replace(UpdateStep(**step), step=number, loss=40.0 + number))
            until(lambda n=number: 40.0 + n in [line.get("loss") for line in noted(config)])  # type: ignore[misc]
        assert not [line for line in noted(config) if line["axis"] == "round"]
        finished()
        until(lambda: len([line for line in noted(config) if line["axis"] == "round"]) == 3)
    lines = noted(config)
    steps = [line["number"] for line in lines if line["axis"] == "step"]
    assert steps == list(range(known + 2)), "each once"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", "failed (RuntimeError: the disk of the tracker is full)"),
        ("hanging", "was not done after 20 s"),
        ("killed", "was killed by signal 9"),
    ],
)
@pytest.mark.in_turn(always=["raising-failed (RuntimeError: the disk of the tracker is full)"])
def test_one_that_fails_or_hangs_is_a_sentence_and_the_others_go_on(
    others: None, config_of: Callable[..., Config], name: str, said: str
) -> None:
    config = config_of(name, "noting")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        began = time.monotonic()
        with tracked(config) as finished:
            finished()
            assert time.monotonic() - began < 2, "nothing waits for it"
            until(lambda: bool(noted(config)))
            until(lambda: bool(pid_of(config, name)))
            pid = int(pid_of(config, name))
            finished()
            began = time.monotonic()
        took = time.monotonic() - began
    ours = [str(w.message) for w in caught if "tracker" in str(w.message)]
    assert len(ours) == 1, ours
    assert ours[0].startswith(f"the tracker {name} {said}")
    assert f"videoopd track {config.run.path} --to {name}" in ours[0]
    assert took < SECONDS + 5
    assert not psutil.pid_exists(pid), "it is not left behind"
    assert [line["number"] for line in noted(config) if line["axis"] == "round"] == [0, 1, 2]


def test_its_process_ends_where_the_command_was_killed(
    others: None, config_of: Callable[..., Config], tmp_path: Path
) -> None:
    config = config_of("noting")
    pid = os.fork()
    if pid == 0:
        with tracked(config) as finished:
            finished()
            time.sleep(60)
        os._exit(0)
    until(lambda: len(noted(config)) > 3)
    child = int(pid_of(config, "noting"))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


def test_rounds_inside_are_told_to_the_trackers_that_are_there(
    others: None, config_of: Callable[..., Config]
) -> None:
    config = config_of("noting")
    with tracked(config), tracked(config) as inside:
        inside()
        until(lambda: len(noted(config)) > 3)
    assert [line["number"] for line in noted(config) if line["axis"] == "round"] == [0, 1, 2]


def test_a_missing_package_is_a_sentence_before_anything_is_computed(
    others: None,
    config_of: Callable[..., Config],
    two_rounds: Finished,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of("absent")
    path = two_rounds.config.with_name(f"{config.run.path.name}.toml")
    before = Run.open(config.run.path).tables.versions()
    assert main(["run", str(path)]) == 2
    said = capsys.readouterr().err
    assert "the tracker 'absent' is not installed here; install it with `pip install" in said
    assert Run.open(config.run.path).tables.versions() == before
    assert main(["track", str(config.run.path), "--to", "absent"]) == 2


def test_trackers_change_no_hash(
    others: None, config_of: Callable[..., Config], two_rounds: Finished
) -> None:
    assert config_of("noting").hash == load_config(two_rounds.config).hash


def test_a_name_that_is_none_has_a_hint(tmp_path: Path, two_rounds: Finished) -> None:
    with pytest.raises(VideoOPDError, match="did you mean 'wandb'"):
        load_config(two_rounds.config, ["tracking.to=['wand']"])
    with pytest.raises(VideoOPDError, match="names wandb twice; once is enough"):
        load_config(two_rounds.config, ["tracking.to=['wandb', 'wandb']"])


@pytest.mark.in_turn
def test_a_real_round_is_told_to_a_real_tracker(two_rounds: Finished, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tests.flows.tracking.test_trackers import assert_all_is_there_once

    shutil.copytree(two_rounds.run, tmp_path / "told")
    config = write_config(
        two_rounds.config.parent, two_rounds.world, tmp_path / "told",
        **{"tracking.to": ["tensorboard"], "tracking.seconds": 120.0},
    )  # fmt: skip
    run_without_server(str(config), 1)
    run = Run.open(tmp_path / "told")
    assert run.finished_rounds() == [1, 2, 3]
    assert_all_is_there_once("tensorboard", run, tmp_path / "videoopd-trackers")
