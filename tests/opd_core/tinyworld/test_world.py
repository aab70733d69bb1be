"""The tiny world: the same everywhere, and what its sentences say is what its pixels show."""

import json
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from opd_core.tinyworld.scenes import SCENES, SHORT
from opd_core.tinyworld.world import (
    COLOURS,
    FPS,
    SIZE,
    World,
    make_world,
    plan_video,
    video_seed,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), 7, train_videos=12, eval_videos=4)


def _files(world: World) -> dict[str, bytes]:
    return {
        str(path.relative_to(world.root)): path.read_bytes()
        for path in sorted(world.root.rglob("*"))
        if path.is_file()
    }


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_same_seed_gives_same_bytes(world: World, tmp_path: Path) -> None:
    again = make_world(tmp_path / "again", 7, train_videos=12, eval_videos=4)
    assert _files(again) == _files(world)


def test_another_seed_gives_another_world(world: World, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", 8, train_videos=12, eval_videos=4)
    assert other.train.read_bytes() != world.train.read_bytes()


def test_no_video_stands_twice(world: World) -> None:
    videos = [content for name, content in _files(world).items() if name.endswith(".mp4")]
    assert len(videos) == 16
    assert len(set(videos)) == 16


def test_a_video_does_not_depend_on_how_many_there_are(world: World, tmp_path: Path) -> None:
    fewer = make_world(tmp_path / "fewer", 7, train_videos=3, eval_videos=1)
    whole = _files(world)
    assert all(whole[k] == v for k, v in _files(fewer).items() if k.endswith(".mp4"))


def test_annotations_are_timelens_lines(world: World) -> None:
    for split, path in (("train", world.train), ("eval", world.eval)):
        for index, line in enumerate(path.read_text().splitlines()):
            row = json.loads(line)
            assert set(row) == {"source", "video_path", "duration", "events"}
            assert row["source"] == "tinyworld"
            assert row["video_path"] == f"{split}/{index:05d}.mp4"
            assert (world.videos / row["video_path"]).is_file()
            assert row["duration"] == float(SHORT.seconds)
            assert 2 <= len(row["events"]) <= 4
            for event in row["events"]:
                ((start, end),) = event["span"]
                assert 0.0 <= start < end <= row["duration"]
                assert 2.0 <= end - start <= 8.0
                assert start.is_integer() and end.is_integer()


def test_each_sentence_means_one_interval() -> None:
    for index in range(300):
        shapes = plan_video(video_seed(3, "train", index)).shapes
        assert len({shape.name for shape in shapes}) == len(shapes)
        for shape in shapes:
            assert shape.sentence is None or shape.name in shape.sentence


def test_shapes_of_one_lane_never_meet() -> None:
    for index in range(300):
        shapes = plan_video(video_seed(4, "train", index)).shapes
        for lane in (0, 1):
            here = sorted((s.start, s.end) for s in shapes if s.lane == lane)
            assert all(a[1] < b[0] for a, b in pairwise(here))


def test_colour_is_in_view_inside_the_span_and_not_outside(world: World) -> None:
    checked = 0
    for index in range(12):
        plan = plan_video(video_seed(7, "train", index))
        frames = _decode(world.videos / f"train/{index:05d}.mp4").astype(int)
        assert frames.shape == (SHORT.seconds * FPS, SIZE, SIZE, 3)
        for shape in plan.shapes:
            if sum(other.colour == shape.colour for other in plan.shapes) > 1:
                continue
            near = np.abs(frames - COLOURS[shape.colour]).max(axis=3) < 45
            seen = near.sum(axis=(1, 2)) > 60
            span = np.zeros(len(frames), dtype=bool)
            span[shape.start * FPS : shape.end * FPS] = True
            assert (seen == span).all(), (index, shape)
            checked += 1
    assert checked > 10


def test_finished_world_is_left_alone_and_half_made_one_is_completed(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path, 1, 4, 2, interrupt)
    assert not (tmp_path / "world.json").exists()
    kept = (tmp_path / "videos/train/00000.mp4").stat().st_mtime_ns
    world = make_world(tmp_path, 1, 4, 2)
    assert (tmp_path / "videos/train/00000.mp4").stat().st_mtime_ns == kept
    assert len(world.train.read_text().splitlines()) == 4
    assert not list(tmp_path.rglob("*.part"))

    calls: list[tuple[int, int]] = []
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    make_world(tmp_path, 1, 4, 2, lambda done, total: calls.append((done, total)))
    assert calls == [(6, 6)]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == times


def test_folder_of_another_world_is_refused(tmp_path: Path) -> None:
    make_world(tmp_path, 1, 1, 1)
    with pytest.raises(ValueError, match="remove the folder or choose another"):
        make_world(tmp_path, 2, 1, 1)


@pytest.mark.parametrize(("scene", "low", "high"), [("short", 0.3, 0.4), ("long", 0.05, 0.1)])
def test_what_the_best_constant_answer_is_worth(scene: str, low: float, high: float) -> None:
    """A guess that has not seen the video: easy in the short scene, of little worth in the long."""
    kind = SCENES[scene]
    plans = [plan_video(video_seed(0, "train", index), kind) for index in range(300)]
    events = [s for plan in plans for s in plan.shapes if s.sentence is not None]
    starts = np.array([s.start for s in events], dtype=float)
    ends = np.array([s.end for s in events], dtype=float)
    best = 0.0
    for start in range(kind.seconds):
        for end in range(start + 1, kind.seconds + 1):
            shared = np.clip(np.minimum(ends, end) - np.maximum(starts, start), 0.0, None)
            best = max(best, float((shared / (ends - starts + end - start - shared)).mean()))
    assert low < best < high
    assert {s.end - s.start for s in events} == set(kind.lengths)
    asked = [sum(s.sentence is not None for s in plan.shapes) for plan in plans]
    assert kind.asked[0] == min(asked) and max(asked) == kind.asked[1]
