"""Real files through both decoders, and a real child process that hangs, dies, or is orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from opd_core.child_process import ChildCrash, ChildTimeout
from opd_core.types import VideoOPDError
from opd_core.video.child import DecoderProcess
from opd_core.video.decoders import PICKERS, decode, probe
from opd_core.video.frame_times import UnusableVideo
from tests import video_files

ROOT = Path(__file__).parents[3]
DECODERS = sorted(PICKERS)


def pick(path: Path, decoder: str, count: int = 16) -> tuple[list[int], np.ndarray]:
    """Some indices, spread evenly, and the frames that the decoder gives for them."""
    video = probe(str(path))
    indices = [int(i) for i in np.linspace(0, video.total_frames - 1, count).round()]
    return indices, decode(video, indices, video.height, video.width, PICKERS[decoder])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("plain.mp4", "libx264", {}),
        ("sound.mp4", "libx264", {"audio_seconds": 9.0}),
        ("no_b_frames.mp4", "libx264", {"b_frames": 0}),
        ("one_keyframe.mp4", "libx264", {"keyframe_every": 1000}),
        ("jitter.mp4", "libx264", {"times": [i / 8 + i % 2 * 0.03 for i in range(48)]}),
        ("late_start.mp4", "libx264", {"times": [5 + i / 8 for i in range(48)]}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
    ],
)
def test_the_frames_asked_for_are_the_frames_given(
    tmp_path: Path, decoder: str, name: str, codec: str, options: dict[str, Any]
) -> None:
    path = video_files.write_video(tmp_path / name, codec=codec, **options)
    video = probe(str(path))
    assert video.total_frames == 48 and video.fps == pytest.approx(8, rel=0.01)
    assert (video.height, video.width) == (64, 128)
    indices, frames = pick(path, decoder)
    assert [video_files.number_of(frame) for frame in frames] == indices


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "libx264"), ("a.ts", "libx264"), ("a.mp4", "libx265")]
)
def test_what_decord_would_get_wrong_it_refuses_and_pyav_gets_right(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = video_files.write_video(tmp_path / name, codec=codec)
    indices, frames = pick(path, "pyav")
    assert [video_files.number_of(frame) for frame in frames] == indices
    with pytest.raises(match=r"decord may give wrong frames; set video\.decoder"):
        pick(path, "decord")


@pytest.mark.parametrize(("height", "width"), [(64, 128), (90, 162), (240, 426)])
def test_both_decoders_give_the_same_pixels(tmp_path: Path, height: int, width: int) -> None:
    path = video_files.write_video(tmp_path / "a.mp4", height=height, width=width)
    np.testing.assert_array_equal(pick(path, "pyav")[1], pick(path, "decord")[1])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotated_video_comes_upright(tmp_path: Path, decoder: str, rotation: int) -> None:
    turned = video_files.write_video(tmp_path / "turned.mp4", rotation=rotation)
    plain = video_files.write_video(tmp_path / "plain.mp4")
    expected = np.rot90(pick(plain, "pyav")[1], rotation // 90, axes=(1, 2))
    np.testing.assert_array_equal(pick(turned, decoder)[1], expected)


def test_frames_before_an_edit_list_begins_are_not_counted(tmp_path: Path) -> None:
    times = [-1 + i / 8 for i in range(48)]  # a player shows it from the ninth frame on
    path = video_files.write_video(tmp_path / "a.mp4", times=times)
    indices, frames = pick(path, "pyav")
    assert probe(str(path)).total_frames == 40
    assert [video_files.number_of(frame) for frame in frames] == [8 + i for i in indices]


@pytest.mark.parametrize("decoder", DECODERS)
def test_headers_that_claim_more_seconds_than_there_are_frames(
    tmp_path: Path, decoder: str
) -> None:
    path = video_files.write_wrong_duration(tmp_path / "a.mp4", 4.0)
    video = probe(str(path))
    assert (video.total_frames, video.fps) == (48, 8.0)
    indices, frames = pick(path, decoder)
    assert [video_files.number_of(frame) for frame in frames] == indices


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_a_truncated_video_is_refused(tmp_path: Path, decoder: str, keep: float) -> None:
    path = video_files.write_truncated(tmp_path / "a.mp4", keep)
    with pytest.raises(match=r"truncated|cannot be decoded by decord"):
        pick(path, decoder)


def test_a_video_damaged_in_its_middle_gives_all_frames_or_a_reason(tmp_path: Path) -> None:
    """Sixteen random damages: all frames asked for or a reason, nothing else."""
    good = video_files.write_video(tmp_path / "good.mp4").read_bytes()
    start, end = good.index(b"mdat") + 4, good.index(b"moov")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(16):
        data = bytearray(good)
        at = int(rng.integers(start, end - 40))
        data[at : at + 40] = rng.bytes(40)
        path = tmp_path / "bad.mp4"
        path.write_bytes(data)
        try:
            indices, frames = pick(path, "pyav")
            assert len(indices) == len(frames)
        except UnusableVideo:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (video_files.write_audio_only, "has no video stream"),
        (video_files.write_zero_frames, "has no frame that can be decoded"),
        (video_files.write_without_index, "cannot be opened: Invalid data"),
        (lambda p: p.write_bytes(b""), "cannot be opened"),
        (lambda p: p.write_bytes(b"\0" * 9999), "cannot be opened"),
        (lambda p: video_files.write_video(p, frames=1), "has 1 frame"),
        (lambda p: video_files.write_video(p, rotation=45), "turned by 45 degrees"),
    ],
)
def test_an_unusable_file_says_why(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(match=reason):
        probe(str(tmp_path / "a.mp4"))


def test_a_stream_without_time_stamps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(match="no time stamps"):
        probe(str(video_files.write_video(tmp_path / "a.h264")))


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def child() -> Iterator[DecoderProcess]:
    process = DecoderProcess("pyav")
    yield process
    process.end()
    process.end()
    assert not psutil.pid_exists(process.pid)


def test_a_child_answers_again_and_again(tmp_path: Path, child: DecoderProcess) -> None:
    path = str(video_files.write_video(tmp_path / "a.mp4"))
    for _ in range(3):
        reply = child.ask({"do": "probe", "path": path}, soon())
        assert reply.pop("seconds").tolist() == [i / 8 for i in range(48)]
        assert reply == {
            "total_frames": 48,
            "fps": 8.0,
            "constant": True,
            "duration": 6.0,
            "height": 64,
            "width": 128,
        }
        request = {"do": "decode", "indices": [0, 9, 47], "height": 32, "width": 32}
        frames = child.ask(request, soon())["frames"]
        assert frames.shape == (3, 32, 32, 3) and frames.dtype == np.uint8
        with pytest.raises(UnusableVideo, match="cannot be opened"):
            child.ask({"do": "probe", "path": path + "x"}, soon())
        with pytest.raises(UnusableVideo, match="KeyError"):
            child.ask({"do": "decode"}, soon())


def test_a_child_starts_quickly_and_without_torch(child: DecoderProcess) -> None:
    loaded = {Path(m.path).name for m in psutil.Process(child.pid).memory_maps()}
    assert not [name for name in loaded if "torch" in name or "decord" in name]
    began = time.monotonic()
    DecoderProcess("pyav").end()
    assert time.monotonic() - began < 5.0  # 0.2 s on an idle machine


@pytest.mark.kill
def test_a_decoder_that_hangs_is_killed(tmp_path: Path, child: DecoderProcess) -> None:
    fifo = tmp_path / "a.mp4"
    os.mkfifo(fifo)  # opening it waits for a writer who never comes
    began = time.monotonic()
    with pytest.raises(ChildTimeout):
        child.ask({"do": "probe", "path": str(fifo)}, soon(0.5))
    assert time.monotonic() - began < 5.0
    assert not psutil.pid_exists(child.pid)


@pytest.mark.kill
def test_a_request_larger_than_a_pipe_does_not_hang_on_a_stopped_child(
    child: DecoderProcess,
) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ChildTimeout):
        child.ask({"do": "probe", "path": "x" * 1_000_000}, soon(0.5))


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_dies_says_of_what(child: DecoderProcess, number: signal.Signals) -> None:
    os.kill(child.pid, number)
    with pytest.raises(ChildCrash, match=f"died of {number.name}"):
        child.ask({"do": "probe", "path": "x"}, soon())


def test_a_decoder_that_ends_tells_its_last_line_once(child: DecoderProcess) -> None:
    child._connection.send_bytes(b"no pickle")  # it ends of it
    with pytest.raises(ChildCrash) as crash:
        child.receive()
    assert str(crash.value).startswith("ended with exit code 1 (_pickle.UnpicklingError: ")
    assert crash.value.how == "ended with exit code 1"


def test_memory_that_is_not_there_is_no_fault_of_the_video(
    tmp_path: Path, child: DecoderProcess
) -> None:
    path = str(video_files.write_video(tmp_path / "a.mp4"))
    child.ask({"do": "probe", "path": path}, soon())
    request = {"do": "decode", "indices": [0, 1], "height": 2**20, "width": 2**20}
    with pytest.raises(ChildCrash, match="MemoryError: Unable to allocate"):
        child.ask(request, soon())


@pytest.mark.kill
@pytest.mark.parametrize("hanging", [False, True])
def test_a_child_does_not_outlive_its_killed_parent(tmp_path: Path, hanging: bool) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    ask = f"child.ask({{'do': 'probe', 'path': {str(tmp_path / 'a.mp4')!r}}}, 1e9)"
    code = (
        "import time; from opd_core.video.child import DecoderProcess\n"
        "child = DecoderProcess('pyav'); print(child.pid, flush=True)\n"
        + (ask if hanging else "time.sleep(600)")
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert psutil.pid_exists(pid)
        parent.kill()
    wait_until_gone(pid)


@pytest.mark.kill
def test_a_fork_of_the_parent_that_holds_the_pipe_keeps_no_child_alive() -> None:
    code = (
        "import os, time; from opd_core.video.child import DecoderProcess\n"
        "child = DecoderProcess('pyav'); fork = os.fork()\n"
        "if fork: print(child.pid, fork, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, fork = (int(part) for part in parent.stdout.readline().split())
        parent.kill()
    try:
        wait_until_gone(pid)
    finally:
        os.kill(fork, signal.SIGKILL)


def wait_until_gone(pid: int) -> None:
    deadline = soon(20.0)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.05)


def test_a_decoder_that_cannot_be_imported_is_nobodys_video(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError('no decord here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(VideoOPDError, match=r"does not start: .*no decord here.*video\.decoder"):
        DecoderProcess("decord")


def test_modules_in_the_folder_one_stands_in_do_not_shadow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('shadowed')")
    monkeypatch.chdir(tmp_path)
    DecoderProcess("pyav").end()
