"""The frame store: what is put comes back, is bounded, and survives whatever happens to it.

Clips are plain bytes here; what they mean is tested in `tests/opd_core/video/test_clip.py`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from opd_core.types import VideoOPDError
from storage.frames import video_hashes
from storage.frames.store import FrameStore, usage
from tests.known import known

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
SPEC = '{"fps": 2.0}'


@pytest.fixture(autouse=True)
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests count as old, although they were just written."""
    monkeypatch.setattr(video_hashes, "FRESH_SECONDS", 0.0)


def video(folder: Path, name: str) -> Path:
    path = folder / f"{name}.mp4"
    path.write_text(f"the video {name}")
    return path


def payload(name: str, size: int = 1000) -> bytes:
    return hashlib.sha256(name.encode()).digest() * (size // 32)


def fill(store: FrameStore, folder: Path, names: list[str], size: int = 1000) -> list[Path]:
    paths = [video(folder, name) for name in names]
    for name, path in zip(names, paths, strict=True):
        assert store.get(path, SPEC) is None
        store.put(path, SPEC, payload(name, size))
    return paths


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return FrameStore.open(tmp_path / "frames", 64 * MIB)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_clip_comes_back_by_content_and_spec(store: FrameStore, tmp_path: Path) -> None:
    (path,) = fill(store, tmp_path, ["a"])
    other = FrameStore.open(store.folder, 64 * MIB)
    assert store.get(path, SPEC) == other.get(path, SPEC) == payload("a")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    assert other.get(copy, SPEC) == payload("a"), "known by its content, not by its name"
    assert other.get(path, '{"fps": 1.0}') is None
    path.write_text("another video")
    assert other.get(path, SPEC) is None
    assert other.get(tmp_path / "missing.mp4", SPEC) is None
    assert known(usage(store.folder))[:2] == (1, 1)
    assert usage(tmp_path / "nowhere") is None


def test_a_file_is_hashed_once_also_by_the_next_process(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    original = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return original(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    (path,) = fill(store, tmp_path, ["a"])
    again = FrameStore.open(store.folder, 64 * MIB)
    assert again.get(path, SPEC) == store.get(path, SPEC) == payload("a")
    assert len(hashed) == 1
    path.write_text("the video A")  # as long, another time
    assert again.get(path, SPEC) is None
    assert len(hashed) == 2


def test_a_file_that_was_just_changed_is_hashed_again(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_hashes, "FRESH_SECONDS", 60.0)
    (path,) = fill(store, tmp_path, ["a"])
    stat = path.stat()
    monkeypatch.setattr(video_hashes, "_stat", lambda _: (stat.st_size, 1, 1))
    path.write_text("the video b")
    assert store.get(path, SPEC) is None


def test_a_half_written_line_costs_one_hashing(store: FrameStore, tmp_path: Path) -> None:
    (path,) = fill(store, tmp_path, ["a"])
    with (store.folder / "files.jsonl").open("ab") as file:
        file.write(b'{"path": "/x", "st')
    again = FrameStore.open(store.folder, 64 * MIB)
    assert again.get(path, SPEC) == payload("a")
    (more,) = fill(again, tmp_path, ["b"])
    assert FrameStore.open(store.folder, 64 * MIB).get(more, SPEC) == payload("b")


def test_what_changed_while_it_was_decoded_is_not_kept(store: FrameStore, tmp_path: Path) -> None:
    path = video(tmp_path, "a")
    assert store.get(path, SPEC) is None
    path.write_text("another video by now")
    store.put(path, SPEC, payload("a"))
    assert known(usage(store.folder)).clips == 0


def test_it_is_bounded_and_what_was_used_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 2 * MIB
    store = FrameStore.open(tmp_path / "frames", bound)
    paths = fill(store, tmp_path, [f"v{i}" for i in range(16)], 100_000)
    assert known(usage(store.folder)).clips == 16
    for path in paths[:3]:  # the oldest, but used
        assert store.get(path, SPEC)
    names = [f"w{i}" for i in range(20)]
    for name in names:
        fill(store, tmp_path, [name], 100_000)
        assert store.get(paths[0], SPEC) == payload("v0", 100_000)
        assert size_of(store.folder) <= bound
    assert 0.6 * bound < known(usage(store.folder)).bytes <= bound
    found = [name for name in names if store.get(tmp_path / f"{name}.mp4", SPEC)]
    assert found == names[-len(found) :] and len(found) >= 10
    assert [p for p in paths[3:] if store.get(p, SPEC)] == []
    for name in found:
        assert store.get(tmp_path / f"{name}.mp4", SPEC) == payload(name, 100_000)


def test_a_clip_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    store = FrameStore.open(tmp_path / "frames", 1000)
    path = video(tmp_path, "a")
    assert store.get(path, SPEC) is None
    store.put(path, SPEC, payload("a", 4000))
    assert known(usage(store.folder)).clips == 0


def test_a_spoilt_clip_is_replaced(store: FrameStore, tmp_path: Path) -> None:
    (path, _) = fill(store, tmp_path, ["a", "b"])
    store.discard(path, SPEC)
    assert store.get(path, SPEC) is None
    store.put(path, SPEC, payload("better"))
    again = FrameStore.open(store.folder, 64 * MIB)
    assert known(usage(again.folder)).clips == 2 and again.get(path, SPEC) == payload("better")


def test_a_full_disk_is_told_once_and_stops_nothing(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = fill(store, tmp_path, ["a"])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="no more frames are kept: .*its disk is full"):
        fill(store, tmp_path, ["b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(store, tmp_path, ["c"])
    assert store.get(path, SPEC) == payload("a")


def test_a_lost_or_cut_off_file_costs_its_clip_only(store: FrameStore, tmp_path: Path) -> None:
    lost, kept = fill(store, tmp_path, ["a", "b"])
    for file in (store.folder / "clips").rglob("*-*"):
        if file.read_bytes() == payload("a"):
            file.unlink()
    assert store.get(lost, SPEC) is None and store.get(kept, SPEC) == payload("b")
    store.put(lost, SPEC, payload("a"))
    assert FrameStore.open(store.folder, 64 * MIB).get(lost, SPEC) == payload("a")


def test_what_a_killed_process_left_aside_goes(tmp_path: Path) -> None:
    store = FrameStore.open(tmp_path / "frames", 64 * MIB)
    fill(store, tmp_path, ["a"])
    (folder,) = (store.folder / "clips").iterdir()
    old, new = folder / ".old", folder / ".new"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    again = FrameStore.open(store.folder, 64 * MIB)
    fill(again, tmp_path, ["b"])
    assert not old.exists() and new.exists()
    assert known(usage(store.folder)).clips == 2


def test_a_store_of_the_older_format_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    (folder / "clips.lance" / "data").mkdir(parents=True)
    (folder / "clips.lance" / "data" / "x.lance").write_bytes(b"x" * 1000)
    (folder / "used.log").write_text("a 1")
    (folder / "format.json").write_text('{"frame_store": 1}')
    fill(FrameStore.open(folder, 64 * MIB), tmp_path, ["a"])
    assert {p.name for p in folder.iterdir()} == {"format.json", "clips", "files.jsonl"}
    assert known(usage(folder)).clips == 1


def test_a_store_on_a_read_only_disk_is_read(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = fill(store, tmp_path, ["a"])

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", read_only)
    monkeypatch.setattr(Path, "write_bytes", read_only)
    assert store.get(path, SPEC) == payload("a")
    with pytest.warns(RuntimeWarning, match="its file system is read-only"):
        fill(store, tmp_path, ["b"])


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "photo.png").write_text("precious")
    with pytest.raises(VideoOPDError, match="set frames.path to a new or empty folder"):
        FrameStore.open(folder, MIB)
    assert [p.name for p in folder.iterdir()] == ["photo.png"]
    FrameStore.open(tmp_path / "frames", MIB)
    (tmp_path / "frames" / "format.json").write_text('{"frame_store": 99}')
    with pytest.raises(VideoOPDError, match=r"format 99.*remove the folder"):
        FrameStore.open(tmp_path / "frames", MIB)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_many_threads_share_a_store(store: FrameStore, tmp_path: Path) -> None:
    paths = [video(tmp_path, f"v{i}") for i in range(12)]
    wrong: list[int] = []

    def work(start: int) -> None:
        for step in range(36):
            i = (start + step * 5) % 12
            found = store.get(paths[i], SPEC)
            if found is None:
                store.put(paths[i], SPEC, payload(f"v{i}"))
            elif found != payload(f"v{i}"):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and known(usage(store.folder)).clips == 12


WORKER = """
import hashlib, sys
from pathlib import Path
from storage.frames import store as frames, video_hashes
video_hashes.FRESH_SECONDS = 0.0
folder, number, bound = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = frames.FrameStore.open(folder / "frames", bound)
print("ready", flush=True)
for i in list(range(number)) * 3 + list(reversed(range(number))) * 3:
    path = folder / f"v{i}.mp4"
    found, wanted = store.get(path, "{}"), hashlib.sha256(b"v%d" % i).digest() * 1500
    if found is None:
        store.put(path, "{}", wanted)
    assert found in (None, wanted), i
print("done", flush=True)
"""


def start(folder: Path, number: int, bound: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(number), str(bound)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def right(folder: Path, number: int, bound: int) -> int:
    """How many of the clips are there, each checked."""
    store = FrameStore.open(folder / "frames", bound)
    found = [store.get(folder / f"v{i}.mp4", "{}") for i in range(number)]
    assert all(c in (None, payload(f"v{i}", 48_000)) for i, c in enumerate(found))
    return sum(clip is not None for clip in found)


def test_processes_share_a_store(tmp_path: Path) -> None:
    for i in range(40):
        video(tmp_path, f"v{i}")
    workers = [start(tmp_path, 40, 64 * MIB) for _ in range(2)]
    for worker in workers:
        assert worker.communicate(timeout=60)[0].split() == ["ready", "done"]
    assert right(tmp_path, 40, 64 * MIB) == 40


def test_a_store_that_another_process_begins_is_a_store(tmp_path: Path) -> None:
    """Also where that process was killed before it had written what the folder is."""
    folder = tmp_path / "frames"
    (folder / "clips").mkdir(parents=True)
    (folder / ".format.json.1f3a").touch()
    FrameStore.open(folder, MIB)
    assert usage(folder) == (0, 0, (folder / "format.json").stat().st_size)
    other = tmp_path / "other"
    (other / "clips").mkdir(parents=True)
    (other / "notes.txt").touch()
    with pytest.raises(VideoOPDError, match="no frame store"):
        FrameStore.open(other, MIB)


@pytest.mark.kill
def test_killed_writers_leave_a_whole_store(tmp_path: Path) -> None:
    """While evicting all the time."""
    bound = MIB
    for i in range(40):
        video(tmp_path, f"v{i}")
    for seconds in (0.0, 0.05, 0.13, 0.3):
        worker = start(tmp_path, 40, bound)
        assert worker.stdout and worker.stdout.readline() == "ready\n"
        time.sleep(seconds)
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        right(tmp_path, 40, bound)
    assert start(tmp_path, 40, bound).communicate(timeout=60)[0].split() == ["ready", "done"]
    assert right(tmp_path, 40, bound) > 8
    assert size_of(tmp_path / "frames") <= bound


def test_all_clips_of_a_video_are_found_by_its_content_or_its_name_when_it_is_gone(
    store: FrameStore, tmp_path: Path
) -> None:
    first, second = fill(store, tmp_path, ["a", "b"])
    store.get(first, "another spec")
    store.put(first, "another spec", payload("again"))
    looked_at = known(FrameStore.reading(store.folder))
    found = [file.read_bytes() for file in looked_at.clips_of(first)]
    assert sorted(found) == sorted([payload("a"), payload("again")])
    moved = second.rename(tmp_path / "moved.mp4")
    (clip,) = looked_at.clips_of(moved)
    assert clip.read_bytes() == payload("b")
    assert looked_at.clips_of(second) == [clip]  # gone, and known by that name
    first.write_text("another video")
    assert looked_at.clips_of(first) == []
    assert looked_at.clips_of(tmp_path / "never.mp4") == []
