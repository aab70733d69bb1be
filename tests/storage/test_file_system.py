from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from opd_core.types import VideoOPDError
from storage import file_system
from storage.file_system import lacking_there, refuse_lacking, shown
from storage.runs.run import Run
from storage.runs.run_folder import check_place
from tests.storage.storage_factories import checkpoint, new_run
from tests.syscalls import CAN_REFUSE, without

CREATE = """
import sys
from storage.runs.run import Run

path, student, teacher = sys.argv[1:]
Run.create(path, "{}", "c0ffee", student, teacher)
print("made")
"""
LACKING = [
    ("flock", errno.ENOLCK, "file locks, which keep two writers apart"),
    ("link", errno.EPERM, "hard links that refuse a name that is taken"),
    ("rename", errno.EXDEV, "rename that replaces a file at once"),
    ("fsync", errno.EINVAL, "fsync of files and folders"),
    ("pwrite", errno.EOPNOTSUPP, "writing in the middle of a file"),
]


@pytest.fixture(autouse=True)
def _nothing_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "_fits", set())


def test_a_disk_gives_all_of_it_in_a_few_milliseconds_and_nothing_stays(tmp_path: Path) -> None:
    began = time.perf_counter()
    refuse_lacking(tmp_path)
    assert time.perf_counter() - began < 1.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not CAN_REFUSE, reason="numbers of system calls are those of Linux on x86-64")
@pytest.mark.parametrize(("call", "number", "said"), LACKING)
def test_a_run_is_refused_where_the_kernel_refuses_a_call(
    tmp_path: Path, call: str, number: int, said: str
) -> None:
    models = [checkpoint(tmp_path / name) for name in ("student", "teacher")]
    run = tmp_path / "run"
    run.mkdir()
    told = without(call, number, CREATE, run, *models)
    assert f"VideoOPDError: the file system of {run}/.locks has no {said}" in told
    assert "set run.path to a folder on" in told
    assert not (run / "tables").exists() and not (run / "run.json").exists()


@pytest.mark.skipif(not CAN_REFUSE, reason="numbers of system calls are those of Linux on x86-64")
def test_lance_itself_fails_without_hard_links(tmp_path: Path) -> None:
    """Why they are asked for: the day that it needs them no more, they can go from the list."""
    code = """
import sys
import lance, pyarrow
lance.write_dataset(pyarrow.table({"id": [1]}), sys.argv[1])
print("written")
"""
    told = without("link", errno.EPERM, code, tmp_path / "a.lance")
    assert "written" not in told and "LanceError" in told


PRETENDING: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "file locks": lambda patch: patch.setattr(fcntl, "flock", lambda *_: None),
    "hard links": lambda patch: patch.setattr(os, "link", _copied_over),
    "rename of folders": lambda patch: patch.setattr(Path, "rename", _moved_over),
    "mapped into memory": lambda patch: patch.setattr(mmap, "mmap", _no_device),
}
"""What a file system does that says yes and does something else."""


def _copied_over(old: Path, new: Path) -> None:
    new.write_bytes(old.read_bytes())


def _moved_over(old: Path, new: Path) -> None:
    os.system(f"rm -rf {new} && mv {old} {new}")


def _no_device(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENODEV, "No such device")


@pytest.mark.parametrize("said", PRETENDING)
def test_what_only_pretends_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    PRETENDING[said](monkeypatch)
    with pytest.raises(VideoOPDError, match=rf"^the file system of {tmp_path} has no.*{said}"):
        check_place(tmp_path / "runs" / "mine")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VideoOPDError, match="its disk is full"):
        refuse_lacking(tmp_path)


def test_what_a_killed_probe_left_makes_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / ".locks").mkdir(parents=True)
    (tmp_path / "run" / f"{file_system.PROBE}abc").mkdir()
    run = new_run(tmp_path)
    assert Run.open(run.path).run_id == run.run_id


def test_another_machine_sees_the_folder_the_lock_and_the_rename(tmp_path: Path) -> None:
    with shown(tmp_path) as there:
        assert lacking_there(there) is None
        (there.probe / "word").write_text("before")
        assert lacking_there(there) == "rename that is seen on other machines at once"
    assert "not the same folder there" in str(lacking_there(there))


def test_locks_that_hold_on_one_machine_alone_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown(tmp_path) as there:
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        assert lacking_there(there) == "file locks that hold between machines"
