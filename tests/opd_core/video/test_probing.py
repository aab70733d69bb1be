"""What an import finds in files: that which a run then can read, and what a player shows of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.config.sections import VideoSection
from opd_core.video.probing import Probe, Unusable, probe_files
from opd_core.video.reader import VideoReader
from tests import video_files
from tests.known import only

CASES = Path(__file__).parents[2] / "videos"
SECONDS = {
    "phone_vfr.mp4": 11.51,
    "half_vfr.mp4": 20.0,
    "start1.5s.mkv": 10.0,
    "dup_pts.mkv": 5.0,
    "vp8_hidden.webm": 5.0,
    "audio0_video2.mp4": 12.0,
}


def test_a_file_is_as_long_as_a_player_says_and_a_run_reads_it() -> None:
    found = dict(probe_files(CASES, sorted(SECONDS), 2, 30))
    assert dict(
        zip(found, [p.duration for p in only(Probe, found.values())], strict=True)
    ) == pytest.approx(SECONDS, abs=0.01)
    with VideoReader(VideoSection(max_video_tokens=768)) as reader:
        for name, probe in found.items():
            clip = reader.read(CASES / name)
            assert isinstance(probe, Probe)
            assert (clip.duration, clip.fps) == (probe.duration, probe.fps)
            assert clip.timestamps[-1] < clip.duration


def test_what_a_run_cannot_read_an_import_does_not_take(tmp_path: Path) -> None:
    whole = video_files.write_video(tmp_path / "whole.mkv", frames=60, fps=25)
    cut = tmp_path / "cut.mkv"
    video_files.copy_packets(whole, cut, lambda n, packet: packet if n >= 3 else None)
    video_files.write_truncated(tmp_path / "short.mp4", 0.99, frames=60, fps=25)
    found = dict(probe_files(tmp_path, ["whole.mkv", "cut.mkv", "short.mp4"], 2, 30))
    assert isinstance(found["whole.mkv"], Probe)
    reasons = {name: found[name] for name in ("cut.mkv", "short.mp4")}
    assert all(isinstance(r, Unusable) and r.final for r in reasons.values())
    assert "it starts with 8 frame(s) that cannot be decoded" in str(reasons["cut.mkv"])
    assert "truncated" in str(reasons["short.mp4"])
