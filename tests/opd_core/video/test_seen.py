"""The frames of a rollout again: kept or decoded, they are those that the reader gave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opd_core.config.sections import VideoSection
from opd_core.video import seen
from opd_core.video.clip import Codec, VideoClip
from opd_core.video.reader import VideoError, VideoReader
from opd_core.video.seen import decoded_again, kept, picture
from storage.frames import video_hashes
from storage.frames.store import FrameStore
from tests import video_files

TINY = VideoSection(max_frames=24, max_video_tokens=48)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_files.write_video(tmp_path_factory.mktemp("seen") / "v.mp4", frames=40)


def again(video: Path, clip: VideoClip, codec: Codec, pixels: str | None = None) -> seen.SeenFrames:
    size = (clip.frames.shape[1], clip.frames.shape[2])
    return decoded_again(video, clip.frame_indices, size, pixels or clip.pixel_hash, TINY, codec)


@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_kept_and_decoded_frames_are_those_of_the_reader(
    video: Path, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_hashes, "FRESH_SECONDS", 0.0)
    store = FrameStore.open(tmp_path / "frames", 64 << 20)
    with VideoReader(TINY, codec=codec, store=store) as reader:
        clip = reader.read(video)
    looked_at = FrameStore.reading(tmp_path / "frames")
    assert looked_at is not None
    (file,) = looked_at.clips_of(video)
    found = kept([file], clip.pixel_hash)
    assert found is not None and found.source == "kept" and found.same
    assert np.array_equal(found.frames, clip.frames)
    assert kept([file], "0" * 16) is None
    decoded = again(video, clip, codec)
    assert decoded.source == "decoded" and decoded.same
    assert np.array_equal(decoded.frames, clip.frames)
    assert not again(video, clip, codec, "0" * 16).same
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")  # the header is whole
    assert kept([file, tmp_path / "gone"], clip.pixel_hash) is None


def test_a_file_that_has_become_shorter_is_told(video: Path) -> None:
    with VideoReader(TINY) as reader:
        clip = reader.read(video)
    longer = replace(clip, frame_indices=(*clip.frame_indices[:-1], 40))
    with pytest.raises(VideoError, match="v.mp4 has 40 frames now, and frame 40 was seen"):
        again(video, longer, "raw")
    text = video.with_name("text.mp4")
    text.write_text("no video")
    with pytest.raises(VideoError, match="text.mp4"):
        again(text, clip, "raw")


def test_a_small_frame_is_shown_without_loss(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    large = np.full((200, 300, 3), 90, np.uint8)
    for frame, kind in ((small, "image/png"), (large, "image/jpeg")):
        content, said = picture(frame)
        file = tmp_path / "picture"
        file.write_bytes(content)
        with Image.open(file) as image:
            shown = np.asarray(image)
        assert said == kind and shown.shape == frame.shape
        assert np.abs(shown.astype(int) - frame).max() <= (0 if kind == "image/png" else 2)


def test_where_there_is_no_store_none_is_made(tmp_path: Path) -> None:
    assert FrameStore.reading(tmp_path / "frames") is None
    assert not (tmp_path / "frames").exists()
