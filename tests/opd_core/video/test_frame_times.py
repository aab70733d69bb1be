"""Real files of every kind of clock: every frame is the one asked for, at the time it is shown."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.bitstream
import numpy as np
import pytest
from av import Packet

from opd_core.video.decoders import PICKERS, ProbedVideo, check_end, decode, probe
from opd_core.video.frame_times import UnusableVideo, times_of_stamps
from opd_core.video.hidden_pictures import shows_picture
from tests import video_files

CASES = Path(__file__).parents[2] / "videos"
ENCODERS = {
    "mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "ts": "libx264",
    "flv": "libx264", "avi": "mpeg4", "mpg": "mpeg2video",
}  # fmt: skip
CONTAINERS = sorted(ENCODERS)
RATES = [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)]
HELD: list[float] = [*(i / 10 for i in range(20)), *(12 + i / 10 for i in range(20)), 20.0, 30.0]
"""A recording of a screen: two pictures stay for ten seconds."""
JUMPY = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.3, 80)).round(3)
CLOCKS = {"held": HELD, "jumpy": (JUMPY - JUMPY[0]).round(3).tolist()}


def numbers(video: ProbedVideo, decoder: str = "pyav") -> list[int]:
    """The number that each frame of the file shows."""
    every = list(range(video.total_frames))
    frames = decode(video, every, video.height, video.width, PICKERS[decoder])
    return [video_files.number_of(frame) for frame in frames]


def wanted_or_refused(video: ProbedVideo, expected: list[int]) -> None:
    """decord gives these frames, or says which setting gives them."""
    try:
        assert numbers(video, "decord") == expected
    except UnusableVideo as error:
        assert "set video.decoder = 'pyav'" in str(error)


@pytest.mark.parametrize("rate", RATES, ids=[f"{float(r):.2f}" for r in RATES])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_constant_rate_gives_index_over_rate(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    if suffix == "mpg" and rate == 60:
        rate = Fraction(50)  # 60 is none of the rates of MPEG-2
    path = video_files.write_video(
        tmp_path / f"a.{suffix}", codec=ENCODERS[suffix], fps=rate, frames=100
    )
    video = probe(str(path))
    check_end(video)
    assert video.times.constant and video.total_frames == 100
    assert video.fps == pytest.approx(float(rate), rel=1e-4)
    np.testing.assert_allclose(video.times.seconds, np.arange(100) / float(rate), atol=2e-3)
    assert video.times.duration == pytest.approx(100 / float(rate), abs=2e-3)
    assert numbers(video) == list(range(100))
    wanted_or_refused(video, list(range(100)))


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("suffix", [s for s in CONTAINERS if s not in ("avi", "mpg")])
def test_a_variable_rate_gives_the_times_of_its_stamps(
    tmp_path: Path, suffix: str, clock: str
) -> None:
    times = CLOCKS[clock]
    path = video_files.write_video(
        tmp_path / f"a.{suffix}", codec=ENCODERS[suffix], frames=len(times), times=times
    )
    video = probe(str(path))
    check_end(video)
    assert not video.times.constant
    np.testing.assert_allclose(video.times.seconds, times, atol=1e-3)
    assert video.times.duration > times[-1]
    assert numbers(video) == list(range(len(times)))
    wanted_or_refused(video, list(range(len(times))))


def real_times(path: Path) -> list[float]:
    """When a file's frames are shown, by decoding all of it."""
    with av.open(str(path)) as container:
        frames = [frame.time for frame in container.decode(video=0)]
    return sorted(time for time in frames if time is not None)


@pytest.mark.parametrize(
    ("name", "count", "start", "duration"),
    [
        ("phone_vfr.mp4", 300, 0.0, 11.51),
        ("half_vfr.mp4", 450, 0.0, 20.0),
        ("start1.5s.mkv", 240, 0.0, 10.0),
        ("dup_pts.mkv", 120, 0.0, 5.0),
        ("vp8_hidden.webm", 120, 0.0, 5.0),
        ("audio0_video2.mp4", 240, 2.0, 12.0),
    ],
)
def test_files_that_were_refused_or_told_wrong(
    name: str, count: int, start: float, duration: float
) -> None:
    path = CASES / name
    video = probe(str(path))
    check_end(video)
    assert video.total_frames == count
    expected = np.array(real_times(path))
    np.testing.assert_allclose(
        video.times.seconds, expected - expected[0] + start, atol=1.1 * video.tick
    )
    assert video.times.duration == pytest.approx(duration, abs=0.01)
    every = list(range(0, count, 7))
    given = decode(video, every, 32, 32, PICKERS["pyav"])
    assert len(given) == len(every)
    try:
        assert np.array_equal(decode(video, every, 32, 32, PICKERS["decord"]), given)
    except UnusableVideo as error:
        assert "set video.decoder = 'pyav'" in str(error)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_picture_that_begins_after_the_sound_is_told_so(tmp_path: Path, suffix: str) -> None:
    times = [2 + i / 8 for i in range(48)]
    path = video_files.write_video(tmp_path / f"a.{suffix}", times=times, audio_seconds=8.0)
    video = probe(str(path))
    np.testing.assert_allclose(video.times.seconds, times, atol=1e-3)
    assert video.times.duration == pytest.approx(8.0)
    assert numbers(video) == list(range(48))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "flv", "ts"])
def test_a_picture_alone_begins_at_zero_whatever_its_first_stamp(
    tmp_path: Path, suffix: str
) -> None:
    times = [1.5 + i / 8 for i in range(48)]
    codec = ENCODERS[suffix]
    video = probe(str(video_files.write_video(tmp_path / f"a.{suffix}", times=times, codec=codec)))
    np.testing.assert_allclose(video.times.seconds, np.arange(48) / 8, atol=1e-3)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_an_edit_list_that_begins_amid_a_group_of_pictures(tmp_path: Path, b_frames: int) -> None:
    times = [-0.7 + i / 25 for i in range(100)]
    path = video_files.write_video(tmp_path / "a.mp4", frames=100, times=times, b_frames=b_frames)
    video = probe(str(path))
    check_end(video)
    shown = [i for i, time in enumerate(times) if time >= 0]
    assert numbers(video) == shown
    np.testing.assert_allclose(video.times.seconds, [times[i] for i in shown], atol=1 / 25)
    wanted_or_refused(video, shown)


def test_places_that_an_avi_leaves_empty_take_their_time(tmp_path: Path) -> None:
    source = video_files.write_video(
        tmp_path / "full.avi", codec="mpeg4", frames=100, fps=25, b_frames=0
    )

    def later(number: int, packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = number + 30 * (number >= 40)
        return packet

    video = probe(str(video_files.copy_packets(source, tmp_path / "gap.avi", later)))
    expected = [(i + 30 * (i >= 40)) / 25 for i in range(100)]
    np.testing.assert_allclose(video.times.seconds, expected, atol=1e-6)
    assert numbers(video) == list(range(100))


def stamped(change: Callable[[int], int]) -> Callable[[int, av.Packet], av.Packet]:
    def changed(number: int, packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = change(number)
        return packet

    return changed


def test_equal_stamps_are_frames_of_their_own(tmp_path: Path) -> None:
    source = video_files.write_video(tmp_path / "a.webm", codec="libvpx", fps=25, frames=60)
    path = tmp_path / "b.mkv"
    video_files.copy_packets(source, path, stamped(lambda n: 40 * (n - (n % 10 == 9))))
    video = probe(str(path))
    assert video.total_frames == 60 and numbers(video) == list(range(60))
    with pytest.raises(match=r"stamps missing or equal.*set video\.decoder"):
        numbers(video, "decord")


def test_stamps_that_are_no_clock_are_refused(tmp_path: Path) -> None:
    source = video_files.write_video(tmp_path / "a.webm", codec="libvpx", fps=25, frames=60)
    same = video_files.copy_packets(source, tmp_path / "same.mkv", stamped(lambda n: 0))
    with pytest.raises(match="one time stamp for all of its frames"):
        probe(str(same))
    once = video_files.write_video(tmp_path / "a.ts", frames=100, fps=25).read_bytes()
    (tmp_path / "joined.ts").write_bytes(once + once)
    with pytest.raises(match="time stamps that go back"):
        probe(str(tmp_path / "joined.ts"))


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((s, c) for s, c in ENCODERS.items()), ("webm", "libvpx"), ("mp4", "libx265"),
        ("mkv", "libx265"), ("mp4", "mpeg4"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("lost", [1, 5])
def test_a_stream_cut_at_a_frame_that_is_no_key_is_found(
    tmp_path: Path, suffix: str, codec: str, lost: int
) -> None:
    source = video_files.write_video(tmp_path / f"a.{suffix}", codec=codec, frames=60, fps=25)
    path = tmp_path / f"cut.{suffix}"
    video_files.copy_packets(source, path, lambda n, packet: packet if n >= lost else None)
    with pytest.raises(match="starts with .* cannot be decoded.*cut it at a key"):
        probe(str(path))


def spoilt(lost: range) -> Callable[[int, av.Packet], av.Packet]:
    def change(number: int, packet: av.Packet) -> av.Packet:
        if number not in lost:
            return packet
        data = bytes(packet)[:6] + b"\xff" * (packet.size - 6)
        new = av.Packet(data)
        new.pts, new.dts, new.duration = packet.pts, packet.dts, packet.duration
        new.time_base, new.is_keyframe = packet.time_base, packet.is_keyframe
        return new

    return change


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")]
)
def test_a_first_or_last_frame_that_is_damaged_is_found(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    source = video_files.write_video(tmp_path / f"a.{suffix}", codec=codec, frames=60, fps=25)
    path = tmp_path / f"bad.{suffix}"
    video_files.copy_packets(source, path, spoilt(range(1)))
    with pytest.raises(match="starts with .* cannot be decoded"):
        probe(str(path))
    video_files.copy_packets(source, path, spoilt(range(57, 60)))
    with pytest.raises(match="ends with frames that cannot be decoded"):
        check_end(probe(str(path)))


@pytest.mark.parametrize("keep", [0.9, 0.97, 0.99, 0.999])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_what_an_import_takes_of_a_cut_file_a_run_can_read(
    tmp_path: Path, suffix: str, keep: float
) -> None:
    codec = ENCODERS[suffix]
    if suffix in ("mp4", "mov"):
        path = video_files.write_truncated(tmp_path / f"a.{suffix}", keep, frames=100, fps=25)
    else:
        path = video_files.write_video(tmp_path / f"a.{suffix}", codec=codec, frames=100, fps=25)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    try:
        video = probe(str(path))
        check_end(video)
    except UnusableVideo as error:
        assert "truncated" in str(error)
        return
    shown = numbers(video)
    np.testing.assert_allclose(video.times.seconds, np.array(shown) / 25, atol=2e-3)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mkv", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
        ("mp4", "libx264", {"x264-params": "open-gop=1:keyint=25:bframes=3:scenecut=0"}),
        ("mkv", "libx265", {"x265-params": "open-gop=1:keyint=12:bframes=3:log-level=none"}),
        ("mpg", "mpeg2video", {}),
    ],
)
def test_open_groups_of_pictures_give_their_frames_from_any_key_frame_on(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str]
) -> None:
    source = video_files.write_video(
        tmp_path / f"a.{suffix}", codec=codec, frames=100, fps=25, codec_options=options
    )
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [n for n, packet in enumerate(packets) if packet.is_keyframe]
    for cut in keys[:4]:
        path = tmp_path / f"cut.{suffix}"

        def from_the_cut(n: int, packet: Packet[Any], cut: int = cut) -> Packet[Any] | None:
            return packet if n >= cut else None

        video_files.copy_packets(source, path, from_the_cut)
        video = probe(str(path))
        check_end(video)
        shown = numbers(video)
        assert shown == list(range(shown[0], 100)) and shown[0] - cut in (0, 1, 2, 3)
        wanted_or_refused(video, shown)


def test_packets_of_av1_that_show_nothing_are_told_from_those_that_do(tmp_path: Path) -> None:
    path = video_files.write_video(
        tmp_path / "a.mp4", codec="libsvtav1", frames=60, fps=25, keyframe_every=50
    )
    with av.open(str(path)) as container:
        split = av.bitstream.BitStreamFilterContext("av1_frame_split", container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        whole = [shows_picture("av1", memoryview(packet)) for packet in packets]
        parts = [part for packet in packets for part in split.filter(packet)]
    assert sum(whole) == 60
    assert sum(shows_picture("av1", memoryview(part)) for part in parts) == 60 < len(parts)


def test_packets_of_vp9_that_show_nothing_are_told_from_those_that_do() -> None:
    shown, hidden, again = b"\x82\x49", b"\x80\x49", b"\x88"  # 10 0 0, existing, type, show, ...
    profile_3 = b"\xb1\x49", b"\xb0\x49", b"\xb4"
    index = b"\xc1\x02\x02\xc1"
    expected = {
        shown: True, hidden: False, again: True, hidden + shown + index: True,
        hidden + hidden + index: False, b"": True,
    }  # fmt: skip
    expected |= dict(zip(profile_3, (True, False, True), strict=True))
    assert {p: shows_picture("vp9", memoryview(p)) for p in expected} == expected


def test_the_rounding_of_stamps_is_no_variable_rate() -> None:
    for tick, rate in ((1e-3, 30000 / 1001), (1 / 600, 30.0), (1 / 90000, 60.0), (1e-3, 59.94)):
        stamps = np.round(7.3 + np.arange(5000) / rate / tick)
        times = times_of_stamps(stamps, tick, (rate,), 0.0, None)
        assert times.constant and times.fps == rate
        assert times_of_stamps(stamps, tick, (), 0.0, None).constant
    one_lost = np.delete(np.arange(100), 50)
    assert not times_of_stamps(one_lost, 1 / 25, (25.0,), 1 / 25, None).constant


def test_the_last_picture_stays_as_long_as_its_packet_says() -> None:
    stamps = np.arange(100)
    for last, duration in ((0.0, 4.0), (0.04, 4.0), (10.0, 13.96)):
        times = times_of_stamps(stamps, 1 / 25, (25.0,), last, None)
        assert times.constant and times.duration == pytest.approx(duration)
