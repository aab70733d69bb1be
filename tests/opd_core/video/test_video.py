"""The reader: which frames, what size, and that no file and no decoder takes it down."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from opd_core import torchvision_guard
from opd_core.config.sections import VideoSection
from opd_core.types import VideoOPDError
from opd_core.video import reader as video
from opd_core.video.reader import DecoderLostError, VideoError, VideoReader
from tests import video_files
from tests.known import known

TINY = VideoSection(max_frames=24, max_video_tokens=12)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = _decoders()
    yield
    assert _decoders() <= before, "only the reader that all stages of a process share may stay"


def _decoders() -> set[int]:
    children = psutil.Process().children()
    return {p.pid for p in children if "opd_core.video.decoding" in " ".join(p.cmdline())}


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in the tiny world: 12 seconds of 64 x 64 at 8 frames a second."""
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    return video_files.write_video(path, frames=96, width=64)


@functools.cache
def qwen_processor(max_frames: int = 768, fps: float = 2.0) -> Any:
    torchvision_guard.install()
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    return Qwen3VLVideoProcessor(max_frames=max_frames, fps=fps)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_clip_tells_all_about_itself(clip_path: Path, decoder: str) -> None:
    with VideoReader(TINY.model_copy(update={"decoder": decoder})) as reader:
        clip = reader.read(clip_path)
    assert clip.frames.shape == (24, 32, 32, 3) and clip.frames.dtype == np.uint8
    assert clip.frames.flags.c_contiguous
    assert clip.frame_indices == tuple(np.linspace(0, 95, 24).round().astype(int))
    assert (clip.fps, clip.total_frames, clip.duration) == (8.0, 96, 12.0)
    assert clip.timestamps == tuple(index / 8 for index in clip.frame_indices)
    content = b"(24, 32, 32, 3)\n" + clip.frames.tobytes()
    assert clip.pixel_hash == hashlib.sha256(content).hexdigest()[:16]
    assert clip.metadata == {
        "fps": 8.0,
        "total_num_frames": 96,
        "frames_indices": list(clip.frame_indices),
        "duration": 12.0,
        "video_backend": decoder,
        "do_sample_frames": False,
    }


def test_both_decoders_give_the_same_clip(clip_path: Path) -> None:
    hashes = set()
    for decoder in ("pyav", "decord"):
        with VideoReader(TINY.model_copy(update={"decoder": decoder})) as reader:
            hashes.add(reader.read(clip_path).pixel_hash)
    assert len(hashes) == 1


def test_qwens_processor_takes_the_clip_as_it_is(clip_path: Path) -> None:
    processor = qwen_processor()
    from transformers.video_utils import VideoMetadata

    with VideoReader(TINY) as reader:
        clip = reader.read(clip_path)
    known = {k: v for k, v in clip.metadata.items() if k != "do_sample_frames"}
    processed = processor(
        videos=[clip.frames.transpose(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(**known)],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )
    assert processed["video_grid_thw"].tolist() == [[12, 2, 2]]


def test_a_second_reading_decodes_nothing_and_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = video_files.write_video(tmp_path / "a.mp4")
    with VideoReader(VideoSection()) as reader:
        first = reader.read(path)
        assert reader.read(path) is first
        video_files.write_video(path, frames=32)
        assert reader.read(path).total_frames == 32


def test_the_cache_forgets_the_oldest(tmp_path: Path) -> None:
    paths = [video_files.write_video(tmp_path / f"{i}.mp4", frames=8) for i in range(3)]
    with VideoReader(VideoSection(cached_videos=2)) as reader:
        clips = [reader.read(path) for path in paths]
        assert reader.read(paths[2]) is clips[2] and reader.read(paths[1]) is clips[1]
        assert reader.read(paths[0]) is not clips[0]
    with VideoReader(VideoSection(), max_cache_bytes=clips[0].frames.nbytes) as reader:
        first = reader.read(paths[0])
        assert reader.read(paths[0]) is first
        reader.read(paths[1])
        assert reader.read(paths[0]) is not first


def test_bad_files_are_refused_with_their_name_and_good_ones_read_on(
    tmp_path: Path, clip_path: Path
) -> None:
    empty, folder, fifo = tmp_path / "empty.mp4", tmp_path / "folder", tmp_path / "fifo.mp4"
    empty.touch()
    folder.mkdir()
    os.mkfifo(fifo)
    bad = {
        tmp_path / "missing.mp4": "there is no file .*missing.mp4",
        empty: "empty.mp4 is empty",
        folder: "folder is no regular file",
        fifo: "fifo.mp4 is no regular file",
        video_files.write_audio_only(tmp_path / "audio.mp4"): "audio.mp4 has no video stream",
        video_files.write_zero_frames(tmp_path / "zero.mp4"): "zero.mp4 has no frame",
        video_files.write_truncated(tmp_path / "cut.mp4"): "cut.mp4 is truncated",
        video_files.write_video(
            tmp_path / "line.mp4", height=2, width=640, frames=4, codec="libvpx-vp9"
        ): "line.mp4 is 640x2",
    }
    with VideoReader(TINY) as reader:
        for path, reason in bad.items():
            for _ in range(2):  # the second time from memory
                with pytest.raises(VideoError, match=reason) as caught:
                    reader.read(path)
                assert "\n" not in str(caught.value)
            assert reader.read(clip_path).total_frames == 96


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = video_files.write_video(tmp_path / "a.mp4").rename(tmp_path / os.fsdecode(b"\xff.mp4"))
    with VideoReader(TINY) as reader:
        assert reader.read(path).total_frames == 48
    with VideoReader(TINY) as reader, pytest.raises(VideoError):
        reader.read(Path("nul\0.mp4"))


@pytest.mark.kill
def test_a_decoder_that_hangs_costs_its_timeout_and_no_more(
    clip_path: Path, tmp_path: Path
) -> None:
    other = video_files.write_video(tmp_path / "b.mp4")
    with VideoReader(TINY.model_copy(update={"decode_timeout_seconds": 0.5})) as reader:
        reader.read(other)
        os.kill(known(reader._child).pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DecoderLostError, match=r"a\.mp4: decoding took longer than 0\.5 s"):
            reader.read(clip_path)
        assert time.monotonic() - began < 5.0
    with VideoReader(TINY) as reader:
        assert reader.read(clip_path).total_frames == 96


@pytest.mark.kill
def test_a_decoder_killed_in_mid_read_is_replaced(clip_path: Path) -> None:
    with VideoReader(TINY) as reader:
        reader.read(clip_path)
        child = known(reader._child).pid
        reader._cache.clear()
        os.kill(child, signal.SIGSTOP)  # so that it is in the middle of it
        threading.Timer(0.3, os.kill, (child, signal.SIGKILL)).start()
        with pytest.raises(DecoderLostError, match=r"a\.mp4: the decoding process died of SIGKILL"):
            reader.read(clip_path)
        assert reader.read(clip_path).total_frames == 96
        assert known(reader._child).pid != child


@pytest.mark.kill
def test_after_ctrl_c_the_next_video_does_not_get_the_answer_of_the_last(
    clip_path: Path, tmp_path: Path
) -> None:
    other = video_files.write_video(tmp_path / "b.mp4", frames=16)
    with VideoReader(TINY) as reader:
        reader.read(clip_path)
        reader._cache.clear()
        os.kill(known(reader._child).pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            reader.read(clip_path)
        assert reader.read(other).total_frames == 16


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_prefetch_works_ahead_a_little_and_decodes_nothing_twice(
    tmp_path: Path, decoded: list[str]
) -> None:
    paths = [video_files.write_video(tmp_path / f"{i}.mp4", frames=8) for i in range(9)]
    with VideoReader(VideoSection()) as reader:
        reader.prefetch(paths)
        until(lambda: len(decoded) == video.MAX_AHEAD)
        time.sleep(0.2)
        assert len(decoded) == video.MAX_AHEAD
        for path in paths:
            assert reader.read(path).total_frames == 8
    assert decoded == [path.name for path in paths]


def test_prefetch_keeps_errors_for_the_reader(tmp_path: Path) -> None:
    good = video_files.write_video(tmp_path / "good.mp4")
    bad = video_files.write_audio_only(tmp_path / "bad.mp4")
    with VideoReader(TINY) as reader:
        reader.prefetch([tmp_path / "missing.mp4", bad, good])
        with pytest.raises(VideoError, match="no file"):
            reader.read(tmp_path / "missing.mp4")
        with pytest.raises(VideoError, match="no video stream"):
            reader.read(bad)
        assert reader.read(good).total_frames == 48


@pytest.mark.kill
def test_prefetch_tells_of_a_lost_decoder_once(clip_path: Path) -> None:
    with VideoReader(TINY.model_copy(update={"decode_timeout_seconds": 1.0})) as reader:
        reader.read(clip_path)
        reader._cache.clear()
        os.kill(known(reader._child).pid, signal.SIGSTOP)
        reader.prefetch([clip_path])
        until(lambda: reader._cache)
        with pytest.raises(DecoderLostError):
            reader.read(clip_path)
        assert reader.read(clip_path).total_frames == 96


def test_many_threads_read_and_prefetch_at_once(tmp_path: Path) -> None:
    paths = [video_files.write_video(tmp_path / f"{i}.mp4", frames=8 + i) for i in range(6)]
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            order = [int(i) for i in rng.permutation(6)]
            if rng.random() < 0.3:
                reader.prefetch([paths[i] for i in order])
            for i in order[:3]:
                if reader.read(paths[i]).total_frames != 8 + i:
                    wrong.append(i)

    with VideoReader(VideoSection(cached_videos=3)) as reader:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.kill
def test_closing_does_not_wait_for_a_hanging_decoder(clip_path: Path) -> None:
    reader = VideoReader(TINY)
    reader.read(clip_path)
    reader._cache.clear()
    os.kill(known(reader._child).pid, signal.SIGSTOP)
    reader.prefetch([clip_path])
    time.sleep(0.2)
    began = time.monotonic()
    reader.close()
    reader.close()
    assert time.monotonic() - began < 5.0
    with pytest.raises(RuntimeError, match="closed"):
        reader.read(clip_path)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"max_frames": 24, "max_video_tokens": 11}, r"video\.max_video_tokens >= 12"),
        ({"max_frames": 1}, r"video\.max_frames"),
    ],
)
def test_settings_that_no_video_could_meet_are_refused(changes: dict[str, Any], fix: str) -> None:
    with pytest.raises(VideoOPDError, match=fix):
        VideoReader(VideoSection(**changes))
