"""A run with rollouts about videos of every kind: one that browsers play, one that they do not, one
that is gone, one outside of its folder, one of which other pixels were seen."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from flows.stage.prepare import opened
from opd_core.tinyworld.world import World
from opd_core.types import GroundingExample, Rollout, Span, TeacherPrediction
from opd_core.video.clip import VideoClip, hash_pixels, to_bytes
from storage.frames.store import FrameStore
from storage.frames.video_hashes import FRESH_SECONDS
from storage.runs.run import Run
from tests.flows.view.conftest import copied
from tests.tiny_config import as_toml

SCRIPT = "<script>document.title = 'taken'</script>"
FPS, FRAMES, SIDE = 8, 32, 64
SEEN = (0, 8, 16, 24)
"""Frames of each video that the model saw: one a second."""


@dataclass(frozen=True)
class OddRun:
    run: Run
    ids: dict[str, str]
    """What is odd -> the rollout about it."""
    videos: Path


def odd_run(finished: Path, world: World, folder: Path) -> OddRun:
    """A copy of `finished` in `folder/odd` with such rollouts of policy 1, and their examples."""
    videos = folder / "videos"
    shutil.copytree(world.videos, videos)
    write_video(videos / "plays.webm", "libvpx-vp9")
    write_video(videos / "does-not.avi", "mpeg4")
    write_video(videos / "codec.mp4", "libx265")
    write_video(videos / "container.ts", "libx264")
    write_video(videos / "gone.webm", "libvpx-vp9")
    write_video(folder / "outside.webm", "libvpx-vp9")
    shutil.copy(videos / "gone.webm", videos / "gone, kept.webm")
    files = {
        "plays": "plays.webm",
        "does not play": "does-not.avi",
        "HEVC": "codec.mp4",
        "MPEG-TS": "container.ts",
        "gone": "gone.webm",
        "gone, kept": "gone, kept.webm",
        "outside": "../outside.webm",
        "other pixels": "plays.webm",
    }
    annotations = world.train.read_text() + "".join(
        json.dumps({"video_path": file, "duration": FRAMES / FPS, "source": "odd",
                    "events": [{"query": f"{what} {SCRIPT}", "span": [[1.0, 2.0]]}]}) + "\n"
        for what, file in files.items()
    )  # fmt: skip
    (folder / "train.jsonl").write_text(annotations)
    config = copied(finished, folder, "odd")
    own = {"data.train": str(folder / "train.jsonl"), "data.videos": str(videos)}
    kept = [x for x in config.read_text().splitlines() if not x.startswith((*own,))]
    config.write_text("\n".join([*as_toml(own).splitlines(), *kept]))
    with opened(str(config)) as work:
        examples = {e.query: e for e in work.run.present_examples()}
        usual = work.run.read("rollouts", Rollout)[-1]
        inside = examples[f"plays {SCRIPT}"]
        out = replace(inside, example_id="0" * 16, video_path=files["outside"])
        work.run.append("examples", [out])  # an import leaves it out today
        examples |= {f"outside {SCRIPT}": out}
        mine = {what: examples[f"{what} {SCRIPT}"] for what in files}
        rollouts = {
            what: _rollout(usual, example, videos / example.video_path, what)
            for what, example in mine.items()
        }
        work.run.append("rollouts", [*rollouts.values()], policy_version=1)
        earlier = replace(
            rollouts["plays"], rollout_id=f"v0-{mine['plays'].example_id}-0", policy_version=0,
            text="0.5 - 3.0", predicted_span=Span(0.5, 3.0), student_iou=0.4,
        )  # fmt: skip
        work.run.append("rollouts", [earlier], policy_version=0)
        rollouts |= {"earlier": earlier}
        asked = work.run.read("teacher_predictions", TeacherPrediction)[0]
        about = mine["plays"].example_id
        work.run.append("teacher_predictions", [replace(asked, example_id=about, text=SCRIPT)])
    keep_frames(folder / "videoopd-frames", videos / "gone, kept.webm")
    (videos / "gone.webm").unlink()
    (videos / "gone, kept.webm").unlink()
    ids = {what: rollout.rollout_id for what, rollout in rollouts.items()}
    return OddRun(Run.open(folder / "odd"), ids, videos)


def _rollout(usual: Rollout, example: GroundingExample, video: Path, what: str) -> Rollout:
    pixels = hash_pixels(frames_of(video))
    return replace(
        usual,
        rollout_id=f"v1-{example.example_id}-0",
        policy_version=1,
        example_id=example.example_id,
        sample_index=0,
        text=f"1.0 - 2.0 {SCRIPT}",
        predicted_span=Span(1.0, 2.0),
        student_iou=1.0,
        frame_indices=SEEN,
        frame_timestamps=tuple(n / FPS for n in SEEN),
        grid_thw=(2, 2, 2),
        pixel_hash="0" * 16 if what == "other pixels" else pixels,
    )


def keep_frames(store: Path, video: Path) -> None:
    """What a stage leaves in the frame store of a run in the same folder."""
    stamps = tuple(n / FPS for n in SEEN)
    clip = VideoClip.of(frames_of(video), SEEN, FPS, FRAMES, "pyav", timestamps=stamps)
    frames = FrameStore.open(store, 1 << 30)
    time.sleep(FRESH_SECONDS + 0.1)  # the hash of a file that has just been changed is not kept
    assert frames.get(video, "as it was") is None
    frames.put(video, "as it was", to_bytes(clip, "raw"))


def write_video(path: Path, codec: str) -> None:
    """4 s that grow lighter, 8 frames a second."""
    with av.open(str(path), "w") as container:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=FPS, options=quiet)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for n in range(FRAMES):
            pixels = np.full((SIDE, SIDE, 3), 7 * n + 10, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def frames_of(path: Path) -> np.ndarray:
    """The frames `SEEN` at 32 x 32, decoded here: [4, 32, 32, 3] uint8."""
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    size = (SIDE // 2, SIDE // 2)
    made = [Image.fromarray(frames[n]).resize(size, Image.Resampling.BICUBIC) for n in SEEN]
    return np.stack([np.asarray(image) for image in made])
