"""What a model reads of a video's times, in its prompt or its positions: those of a player."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from opd_core.config.sections import VideoSection
from opd_core.prompts.encoder import PromptEncoder, check_even
from opd_core.video.clip import VideoClip
from opd_core.video.reader import VideoError, VideoReader
from tests import video_files

ROOT = Path(__file__).parents[3]
CASES = ROOT / "tests" / "videos"
SECTION = VideoSection(max_video_tokens=768)
HALF_A_DIGIT = 0.05
"""Seconds: Qwen3-VL is told tenths."""


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(ROOT / "configs" / "tiny" / "student")


def read(path: Path, section: VideoSection = SECTION) -> VideoClip:
    with VideoReader(section) as reader:
        return reader.read(path)


def told(encoder: PromptEncoder, clip: VideoClip) -> list[float]:
    """Seconds in the prompt, one a temporal patch of two frames."""
    (prompt,) = encoder.encode(clip, ["a dog"])
    text = encoder.tokenizer.decode(list(prompt.token_ids))
    return [float(seconds) for seconds in re.findall(r"<([\d.]+) seconds>", text)]


def middles(times: list[float]) -> list[float]:
    """Of the patches that frames of these times are in."""
    times = [*times, *times[-1:]] if len(times) % 2 else times
    return [(a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)]


def real_times(path: Path, zero: float = 0.0) -> list[float]:
    """Seconds at which a file's frames are shown, by decoding all of it."""
    with av.open(str(path)) as container:
        times = sorted(frame.time for frame in container.decode(video=0) if frame.time is not None)
    return [time - times[0] + zero for time in times]


@pytest.mark.parametrize(
    ("name", "zero"),
    [
        ("phone_vfr.mp4", 0.0),
        ("half_vfr.mp4", 0.0),
        ("start1.5s.mkv", 0.0),
        ("dup_pts.mkv", 0.0),
        ("vp8_hidden.webm", 0.0),
        ("audio0_video2.mp4", 2.0),
    ],
)
def test_a_prompt_tells_when_its_frames_are_shown(
    encoder: PromptEncoder, name: str, zero: float
) -> None:
    clip = read(CASES / name)
    real = real_times(CASES / name, zero)
    shown = [real[index] for index in clip.frame_indices]
    np.testing.assert_allclose(clip.timestamps, shown, atol=1e-3)
    np.testing.assert_allclose(told(encoder, clip), middles(shown), atol=HALF_A_DIGIT + 1e-3)
    grid = np.linspace(real[0], real[-1], len(clip.timestamps))
    assert np.abs(grid - shown).max() <= 1.1 * np.diff(real).max(), "evenly, at two a second"


CLOCKS = {
    "mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "ts": "libx264",
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("suffix", CLOCKS)
def test_a_clock_that_runs_anyhow_is_told_to_the_digit(
    encoder: PromptEncoder, tmp_path: Path, suffix: str, seed: int
) -> None:
    lengths = np.random.default_rng(seed).choice([0.02, 0.04, 0.1, 0.4, 3.0], 90)
    times = np.concatenate([[0.0], np.cumsum(lengths)]).round(3).tolist()
    path = video_files.write_video(
        tmp_path / f"a.{suffix}", codec=CLOCKS[suffix], frames=len(times), times=times
    )
    clip = read(path, VideoSection(max_video_tokens=90_000, max_frames=200))
    numbers = [video_files.number_of(frame) for frame in clip.frames]
    assert numbers == list(clip.frame_indices)
    shown = [times[number] for number in numbers]
    np.testing.assert_allclose(clip.timestamps, shown, atol=1e-3)
    np.testing.assert_allclose(told(encoder, clip), middles(shown), atol=HALF_A_DIGIT + 1e-3)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, Fraction(30000, 1001), 60])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_of_a_constant_rate_the_prompt_is_that_of_index_over_rate(
    encoder: PromptEncoder, tmp_path: Path, suffix: str, rate: Fraction | int
) -> None:
    """Token by token: no digit differs from what the processor makes of indices and rate."""
    path = video_files.write_video(tmp_path / f"a.{suffix}", frames=400, fps=rate)
    clip = read(path)
    expected = [index / float(rate) for index in clip.frame_indices]
    assert told(encoder, clip) == [float(f"{middle:.1f}") for middle in middles(expected)]


def test_a_clip_of_a_variable_rate_is_told_in_milliseconds() -> None:
    clip = read(CASES / "phone_vfr.mp4")
    assert clip.metadata == {
        "fps": 1000.0,
        "total_num_frames": round(1000 * clip.duration),
        "frames_indices": [round(1000 * time) for time in clip.timestamps],
        "duration": clip.duration,
        "video_backend": "pyav",
        "do_sample_frames": False,
    }


def test_vllm_counts_the_same_seconds(tmp_path: Path) -> None:
    """By its own function, which its processor calls with the metadata of the clip."""
    pytest.importorskip("vllm")
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from vllm.model_executor.models.qwen3_vl import Qwen3VLProcessingInfo

    for name in ("phone_vfr.mp4", "audio0_video2.mp4"):
        metadata = read(CASES / name).metadata
        asked = list(metadata["frames_indices"]), metadata["fps"], 2
        ours = Qwen3VLProcessor._calculate_timestamps(None, *asked)
        theirs = Qwen3VLProcessingInfo._calculate_timestamps(None, *asked)
        assert theirs == ours


def test_the_sampled_rate_is_frames_over_seconds() -> None:
    """Which is what Qwen2.5-VL's processor makes seconds a step of."""
    from transformers.video_utils import VideoMetadata

    clip = read(CASES / "half_vfr.mp4")
    known = {k: v for k, v in clip.metadata.items() if k != "do_sample_frames"}
    assert VideoMetadata(**known).sampled_fps == pytest.approx(len(clip.timestamps) / clip.duration)
    assert VideoMetadata(**known).sampled_fps == pytest.approx(2.0, rel=0.06)


def test_a_model_that_is_told_no_times_sees_only_what_is_evenly_spread(tmp_path: Path) -> None:
    even = read(CASES / "half_vfr.mp4")
    check_even(even, 2 * even.duration / len(even.timestamps))
    held = [*(i / 10 for i in range(20)), *(12 + i / 10 for i in range(20))]
    path = video_files.write_video(tmp_path / "held.mp4", frames=len(held), times=held)
    for clip in (read(path), read(CASES / "audio0_video2.mp4")):
        with pytest.raises(VideoError, match="s away from where this model expects it"):
            check_even(clip, 2 * clip.duration / len(clip.timestamps))
