"""Clips as bytes, and a reader that asks a store before it decodes: always the same pixels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from opd_core.config.sections import VideoSection
from opd_core.video.clip import Codec, VideoClip, frame_spec, from_bytes, to_bytes
from opd_core.video.frame_size import SizeRule
from opd_core.video.reader import VideoError, VideoReader
from storage.frames import video_hashes
from storage.frames.store import FrameStore, usage
from tests import video_files
from tests.known import known

TINY = VideoSection(max_frames=24, max_video_tokens=48)
MIB = 1 << 20


@pytest.fixture
def clip() -> VideoClip:
    pictures = np.stack([video_files.picture(i) for i in range(4)])
    times = (0.5, 0.71, 1.0, 11.0)
    return VideoClip.of(pictures, (0, 3, 6, 9), 8.0, 10, "pyav", timestamps=times, duration=12.0)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FrameStore:
    monkeypatch.setattr(video_hashes, "FRESH_SECONDS", 0.0)
    return FrameStore.open(tmp_path / "frames", 64 * MIB)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [video_files.write_video(folder / f"{i}.mp4", frames=48 + i) for i in range(6)]


def read(paths: list[Path], store: FrameStore | None, codec: Codec = "raw") -> list[VideoClip]:
    """By a new reader, as in a process of its own."""
    with VideoReader(TINY, codec=codec, store=store) as reader:
        clips = [reader.read(path) for path in paths]
    return clips


def same(a: VideoClip, b: VideoClip) -> bool:
    fields = [name for name in VideoClip.__slots__ if name != "frames"]
    return np.array_equal(a.frames, b.frames) and all(
        getattr(a, name) == getattr(b, name) for name in fields
    )


def test_bytes_give_the_clip_back(clip: VideoClip) -> None:
    again = from_bytes(to_bytes(clip, "raw"))
    assert same(again, clip)
    assert again.frames.flags.writeable and again.frames.flags.c_contiguous, "for torch"


def test_jpeg_is_smaller_close_and_has_a_hash_of_its_own(clip: VideoClip) -> None:
    payload = to_bytes(clip, "jpeg")
    again = from_bytes(payload)
    assert len(payload) < len(to_bytes(clip, "raw")) / 2
    assert again.pixel_hash != clip.pixel_hash
    assert again.pixel_hash == from_bytes(payload).pixel_hash
    assert np.abs(again.frames.astype(int) - clip.frames.astype(int)).mean() < 3
    assert (again.frame_indices, again.timestamps) == (clip.frame_indices, clip.timestamps)


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_spoilt_bytes_are_noticed(clip: VideoClip, codec: Codec) -> None:
    payload = to_bytes(clip, codec)
    for position in [*range(0, 60, 7), len(payload) // 2, len(payload) // 3]:
        spoilt = bytearray(payload)
        spoilt[position] ^= 0x40
        with pytest.raises(ValueError):
            from_bytes(bytes(spoilt))
    for wrong in (b"", payload[:10], payload[:100], payload[: len(payload) // 2]):
        with pytest.raises(ValueError):
            from_bytes(wrong)


def test_the_spec_names_all_that_frames_depend_on() -> None:
    rule = SizeRule()
    rules = [
        SizeRule("qwen2_vl"),
        *(replace(rule, **cast(dict[str, Any], {f: 8})) for f in SizeRule.__slots__[1:]),
    ]
    specs = {frame_spec(TINY, "raw", rule, 4), frame_spec(TINY, "jpeg", rule, 4)}
    specs |= {frame_spec(TINY, "raw", rule, 8), *(frame_spec(TINY, "raw", r, 4) for r in rules)}
    changes = {
        "fps": 1.0,
        "max_frames": 8,
        "max_video_tokens": 99,
        "max_frame_tokens": 9,
        "decoder": "decord",
    }
    specs |= {
        frame_spec(TINY.model_copy(update={k: v}), "raw", rule, 4) for k, v in changes.items()
    }
    assert len(specs) == 3 + len(rules) + len(changes)
    other = TINY.model_copy(update={"cached_videos": 3, "decode_timeout_seconds": 1.0})
    assert frame_spec(other, "raw", rule, 4) in specs


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_the_second_reader_decodes_nothing_and_sees_the_same(
    paths: list[Path], store: FrameStore, decoded: list[str], codec: Codec
) -> None:
    without = read(paths, None, codec)
    assert len(decoded) == 6
    first = read(paths, store, codec)
    assert len(decoded) == 12
    second = read(paths, FrameStore.open(store.folder, 64 * MIB), codec)
    assert len(decoded) == 12
    for clips in (first, second):
        assert all(same(a, b) for a, b in zip(clips, without, strict=True))
    assert known(usage(store.folder)).clips == 6


def test_raw_and_jpeg_are_kept_apart(paths: list[Path], store: FrameStore) -> None:
    raw, jpeg = read(paths, store)[0], read(paths, store, "jpeg")[0]
    assert raw.pixel_hash != jpeg.pixel_hash
    assert known(usage(store.folder)).clips == 12


def test_evicted_videos_are_decoded_again_to_the_same_pixels(
    paths: list[Path], tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_hashes, "FRESH_SECONDS", 0.0)
    without = read(paths, None)
    bound = 3 * without[0].frames.nbytes * 10 // 9
    store = FrameStore.open(tmp_path / "frames", bound)
    for _ in range(3):
        clips = read(paths, store)
        assert all(same(a, b) for a, b in zip(clips, without, strict=True))
        assert 0 < known(usage(store.folder)).clips < 6
    assert len(decoded) > 6 + 6


def test_a_spoilt_clip_is_decoded_again_and_replaced(
    paths: list[Path], store: FrameStore, decoded: list[str]
) -> None:
    without = read(paths, store)
    marks = [clip.frames.tobytes()[-64:] for clip in without]
    hit = 0
    for file in (store.folder / "clips").rglob("*-*"):
        data = bytearray(file.read_bytes())
        for mark in marks[:2]:
            if (at := data.find(mark)) >= 0:
                data[at + 5] ^= 0xFF
                hit += 1
        file.write_bytes(data)
    assert hit == len(set(marks[:2])) == 2
    decoded.clear()
    for expected in (["0.mp4", "1.mp4"], []):
        decoded.clear()
        clips = read(paths, FrameStore.open(store.folder, 64 * MIB))
        assert all(same(a, b) for a, b in zip(clips, without, strict=True))
        assert decoded == expected


def test_errors_are_not_kept(tmp_path: Path, store: FrameStore, decoded: list[str]) -> None:
    bad = video_files.write_audio_only(tmp_path / "bad.mp4")
    for _ in range(2):
        with pytest.raises(VideoError, match="no video stream"):
            read([bad], store)
    with pytest.raises(VideoError, match="no file"):
        read([tmp_path / "missing.mp4"], store)
    assert known(usage(store.folder)).clips == 0
    assert decoded == ["bad.mp4", "bad.mp4"]


def test_a_store_that_goes_away_stops_nobody(paths: list[Path], store: FrameStore) -> None:
    shutil.rmtree(store.folder)
    with pytest.warns(RuntimeWarning):
        clips = read(paths, store)
    assert len(clips) == 6
