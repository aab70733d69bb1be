"""The frame store: what is put comes back, is bounded, and survives whatever happens to it.

Clips are plain bytes here; what they mean is tested in `tests/opd_core/test_clip.py`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path

import lance
import pytest

from opd_core.types import VideoOPDError
from storage import clip_index, clip_table, eviction, frames, locks, video_hashes
from storage.clip_index import usage
from storage.frames import FrameStore

ROOT = Path(__file__).resolve().parents[2]
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
    store.close()
    return paths


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return FrameStore.open(tmp_path / "frames", 64 * MIB)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_clip_comes_back_by_content_and_spec(store, tmp_path):
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
    assert usage(store.folder)[:2] == (1, 1)
    assert usage(tmp_path / "nowhere") is None


def test_what_waits_to_be_written_is_there_already(store, tmp_path):
    path = video(tmp_path, "a")
    assert store.get(path, SPEC) is None
    store.put(path, SPEC, payload("a"))
    assert store.get(path, SPEC) == payload("a")
    assert len(store) == 0
    store.close()
    assert len(store) == 1 and store.get(path, SPEC) == payload("a")


def test_a_file_is_hashed_once_also_by_the_next_process(store, tmp_path, monkeypatch):
    hashed = []
    original = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: hashed.append(file.name) or original(file, name)
    )
    (path,) = fill(store, tmp_path, ["a"])
    again = FrameStore.open(store.folder, 64 * MIB)
    assert again.get(path, SPEC) == store.get(path, SPEC) == payload("a")
    assert len(hashed) == 1
    path.write_text("the video A")  # as long, another time
    assert again.get(path, SPEC) is None
    assert len(hashed) == 2


def test_a_file_that_was_just_changed_is_hashed_again(store, tmp_path, monkeypatch):
    monkeypatch.setattr(video_hashes, "FRESH_SECONDS", 60.0)
    (path,) = fill(store, tmp_path, ["a"])
    stat = path.stat()
    monkeypatch.setattr(video_hashes, "_stat", lambda _: (stat.st_size, 1, 1))
    path.write_text("the video b")
    assert store.get(path, SPEC) is None


def test_a_half_written_line_costs_one_hashing(store, tmp_path):
    (path,) = fill(store, tmp_path, ["a"])
    with (store.folder / "files.jsonl").open("ab") as file:
        file.write(b'{"path": "/x", "st')
    (store.folder / "used.log").write_bytes(b"\xff\xfe broken\n12")
    again = FrameStore.open(store.folder, 64 * MIB)
    assert again.get(path, SPEC) == payload("a")
    (more,) = fill(again, tmp_path, ["b"])
    assert FrameStore.open(store.folder, 64 * MIB).get(more, SPEC) == payload("b")


def test_what_changed_while_it_was_decoded_is_not_kept(store, tmp_path):
    path = video(tmp_path, "a")
    assert store.get(path, SPEC) is None
    path.write_text("another video by now")
    store.put(path, SPEC, payload("a"))
    store.close()
    assert len(store) == 0


def test_it_is_bounded_and_what_was_used_last_stays(tmp_path, monkeypatch):
    bound = 2 * MIB
    store = FrameStore.open(tmp_path / "frames", bound)
    paths = fill(store, tmp_path, [f"v{i}" for i in range(16)], 100_000)
    assert len(store) == 16
    for path in paths[:3]:  # the oldest, but used
        assert store.get(path, SPEC)
    names = [f"w{i}" for i in range(20)]
    for name in names:
        fill(store, tmp_path, [name], 100_000)
        assert store.get(paths[0], SPEC) == payload("v0", 100_000)
        assert size_of(store.folder) <= bound
    assert 0.6 * bound < usage(store.folder).bytes <= bound
    found = [name for name in names if store.get(tmp_path / f"{name}.mp4", SPEC)]
    assert found == names[-len(found) :] and len(found) >= 10
    assert [p for p in paths[3:] if store.get(p, SPEC)] == []
    for name in found:
        assert store.get(tmp_path / f"{name}.mp4", SPEC) == payload(name, 100_000)


def test_a_clip_larger_than_the_bound_is_not_kept(tmp_path):
    store = FrameStore.open(tmp_path / "frames", 1000)
    path = video(tmp_path, "a")
    assert store.get(path, SPEC) is None
    store.put(path, SPEC, payload("a", 4000))
    store.close()
    assert len(store) == 0


def test_a_spoilt_clip_is_replaced(store, tmp_path):
    (path, _) = fill(store, tmp_path, ["a", "b"])
    store.discard(path, SPEC)
    assert store.get(path, SPEC) is None
    store.put(path, SPEC, payload("better"))
    store.close()
    again = FrameStore.open(store.folder, 64 * MIB)
    assert len(again) == 2 and again.get(path, SPEC) == payload("better")


def test_many_small_writes_leave_few_files(store, tmp_path):
    reader = FrameStore.open(store.folder, 64 * MIB)
    for i in range(60):
        fill(store, tmp_path, [f"v{i}"])
        assert reader.get(tmp_path / f"v{i // 2}.mp4", SPEC) == payload(f"v{i // 2}")
    files = [f for f in (store.folder / clip_table.TABLE).rglob("*") if f.is_file()]
    assert len(files) <= 4 * (eviction.JOIN_ABOVE + 2)
    for i in range(60):
        assert reader.get(tmp_path / f"v{i}.mp4", SPEC) == payload(f"v{i}")


def test_nobody_waits_for_another_writer(store, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "KEEP_BYTES", 5000)
    monkeypatch.setattr(frames, "FLUSH_CLIPS", 2)
    (written,) = fill(store, tmp_path, ["a"])
    with locks.held(store.folder / ".locks" / "frames.lock", "frames", 0.0):
        began = time.monotonic()
        paths = [video(tmp_path, f"v{i}") for i in range(8)]
        for i, path in enumerate(paths):
            assert store.get(path, SPEC) is None
            store.put(path, SPEC, payload(f"v{i}"))
        assert store.get(written, SPEC) == payload("a")
        assert store.get(paths[-1], SPEC) == payload("v7")
        assert store.get(paths[0], SPEC) is None, "more than KEEP_BYTES do not wait"
        assert not store.flush()
        assert time.monotonic() - began < 5.0
    assert store.flush()
    assert len(store) == 6


def test_a_full_disk_is_told_once_and_stops_nothing(store, tmp_path, monkeypatch):
    (path,) = fill(store, tmp_path, ["a"])

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(lance, "write_dataset", full)
    with pytest.warns(RuntimeWarning, match="no more frames are kept: .*its disk is full"):
        fill(store, tmp_path, ["b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(store, tmp_path, ["c"])
    assert store.get(path, SPEC) == payload("a")


def test_a_lost_file_costs_its_clips_only(store, tmp_path):
    (path,) = fill(store, tmp_path, ["a"])
    for file in (store.folder / clip_table.TABLE / "data").rglob("*"):
        if file.is_file():
            file.unlink()
    again = FrameStore.open(store.folder, 64 * MIB) if _opens(store.folder) else None
    for one in [store, again] if again else [store]:
        assert one.get(path, SPEC) is None
    with pytest.warns(RuntimeWarning, match="damaged .* begins anew"):
        store.put(path, SPEC, payload("a"))
        store.close()
    assert store.get(path, SPEC) == payload("a")
    assert FrameStore.open(store.folder, 64 * MIB).get(path, SPEC) == payload("a")


def _opens(folder: Path) -> bool:
    try:
        FrameStore.open(folder, 64 * MIB)
    except VideoOPDError as error:
        assert "remove the folder, which is only a cache" in str(error)
        return False
    return True


def test_foreign_folders_are_left_alone(tmp_path):
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


def test_many_threads_share_a_store(store, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "FLUSH_CLIPS", 3)
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
    store.close()
    assert not wrong and len(store) == 12


WORKER = """
import hashlib, sys
from pathlib import Path
from storage import eviction, frames, video_hashes
video_hashes.FRESH_SECONDS, frames.FLUSH_CLIPS, eviction.FRAGMENT_BYTES = 0.0, 2, 300_000
folder, number, bound = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = frames.FrameStore.open(folder / "frames", bound)
print("ready", flush=True)
for i in list(range(number)) * 3 + list(reversed(range(number))) * 3:
    path = folder / f"v{i}.mp4"
    found, wanted = store.get(path, "{}"), hashlib.sha256(b"v%d" % i).digest() * 1500
    if found is None:
        store.put(path, "{}", wanted)
    assert found in (None, wanted), i
store.close()
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
    table = lance.dataset(folder / "frames" / clip_table.TABLE).to_table(columns=["key"])
    keys = table["key"].to_pylist()
    assert len(keys) == len(set(keys)), "nothing is there twice"
    return sum(clip is not None for clip in found)


def test_a_version_that_is_cleared_away_while_it_is_read(store, tmp_path, monkeypatch):
    """The other process has committed the next one by then, which is read instead."""
    for name in "abc":
        fill(store, tmp_path, [name])  # a fragment each
    whole, read = clip_index.Index, []

    def reading(dataset, before=None):
        read.append(int(dataset.version))
        if len(read) == 1:
            other = lance.dataset(tmp_path / "frames" / clip_table.TABLE)
            other.optimize.compact_files()
            other.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
        return whole(dataset, before)

    monkeypatch.setattr(clip_index, "Index", reading)
    assert len(FrameStore.open(tmp_path / "frames", MIB)) == 3
    assert len(read) == 2 and read[0] < read[1]
    assert clip_index.usage(tmp_path / "frames").clips == 3


def test_processes_share_a_store(tmp_path):
    for i in range(40):
        video(tmp_path, f"v{i}")
    workers = [start(tmp_path, 40, 64 * MIB) for _ in range(2)]
    for worker in workers:
        assert worker.communicate(timeout=60)[0].split() == ["ready", "done"]
    assert right(tmp_path, 40, 64 * MIB) == 40


@pytest.mark.kill
def test_killed_writers_leave_a_whole_store(tmp_path):
    """While evicting, compacting and clearing up all the time."""
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


def test_a_disk_too_full_for_the_lock_is_told(store, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("[Errno 28] No space left on device")

    monkeypatch.setattr(locks, "_describe", full)
    with pytest.warns(RuntimeWarning, match="its disk is full"):
        fill(store, tmp_path, ["a"])
