"""Which file an example's video is, and which pixels a rollout's model saw of it.

Only what the run's tables name is opened, and only inside the folder of videos that a config of the
run names.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.config.load import Config, load_config
from opd_core.model.architectures import architecture_in
from opd_core.types import GroundingExample, Rollout, VideoOPDError
from opd_core.video.seen import SeenFrames, decoded_again, kept
from storage.audit.links import base_path
from storage.frames.store import FrameStore
from storage.runs import run_folder

if TYPE_CHECKING:
    from storage.runs.run import Run

CLIPS_IN_MEMORY = 2
"""A clip at 8,192 vision tokens is 50 MB."""


class OutsideError(VideoOPDError):
    """A video that is not in the folder of videos."""


class NoVideoError(VideoOPDError):
    """A video that is not there any more."""


def video_file(run: Run, example: GroundingExample) -> Path:
    """The video of an example, as the run resolves it.

    Raises `OutsideError` for a path that leads out of the folder of videos, `NoVideoError` where
    the file is gone; both say what to do.
    """
    looked = []
    for path in _places(run, example):
        try:
            if stat.S_ISREG(path.stat().st_mode):
                return path
        except (OSError, ValueError):
            pass
        looked.append(path)
    where = looked[0] if looked else example.video_path
    raise NoVideoError(f"the video {where} is gone; put it back, or correct data.videos")


def _places(run: Run, example: GroundingExample) -> Iterator[Path]:
    """Where its video may be: in `data.videos` of each config of the run. Raises `OutsideError`."""
    for config in configs(run):
        folder = config.data.videos
        path = Path(os.path.normpath(folder / example.video_path))
        if not path.is_relative_to(os.path.normpath(folder)):
            raise OutsideError(
                f"{example.video_path} lies outside of data.videos ({folder}), and nothing else is "
                "shown; move the file there and correct the annotation"
            )
        yield path


def configs(run: Run) -> Iterator[Config]:
    """The configs that the run was continued with, the newest first; then the file that made it,
    where its videos or frames are elsewhere by now."""
    files = (run.path / "configs").glob("*.json")
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
        try:
            yield Config.model_validate_json(file.read_text())
        except (OSError, ValueError):
            continue  # of another program, or with the settings of a package that is not here
    known = run_folder.config_source(run.path)
    if known is not None:
        try:
            yield load_config(known.file, known.overrides)
        except VideoOPDError:
            return


class Frames:
    """The frames that models saw, of the clips that were looked at last. For many threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        """Held while a clip is read or decoded: one at a time, a round may be running beside."""
        self._clips: OrderedDict[tuple[Path, str], SeenFrames] = OrderedDict()
        self._stores: dict[Path, FrameStore] = {}

    def of(self, run: Run, rollout: Rollout, example: GroundingExample) -> SeenFrames:
        """The frames of a rollout: kept ones of exactly its pixels, else decoded again.

        Raises `VideoOPDError` or `VideoError` with the reason where there are none.
        """
        key = (run.path / example.video_path, rollout.pixel_hash)
        if (known := self._clips.get(key)) is not None:
            return known
        with self._guard:
            if key not in self._clips:
                self._clips[key] = self._kept(run, rollout, example) or _again(
                    run, rollout, example
                )
                while len(self._clips) > CLIPS_IN_MEMORY:
                    self._clips.popitem(last=False)
            return self._clips[key]

    def _kept(self, run: Run, rollout: Rollout, example: GroundingExample) -> SeenFrames | None:
        """From a frame store of the run; also those of a video that is gone."""
        places = dict.fromkeys(_places(run, example))
        for folder in dict.fromkeys(config.frames_path for config in configs(run)):
            store = self._store(folder)
            if store is None:
                continue
            for path in places:
                if (seen := kept(store.clips_of(path), rollout.pixel_hash)) is not None:
                    return seen
        return None

    def _store(self, folder: Path | None) -> FrameStore | None:
        if folder is None:
            return None
        if folder not in self._stores:
            opened = FrameStore.reading(folder)
            if opened is None:
                return None
            self._stores[folder] = opened
        return self._stores[folder]


def _again(run: Run, rollout: Rollout, example: GroundingExample) -> SeenFrames:
    """Decoded now, as the newest config has it."""
    path, config = video_file(run, example), next(configs(run))
    size, codec = _size(run, rollout), config.frames.codec
    return decoded_again(path, rollout.frame_indices, size, rollout.pixel_hash, config.video, codec)


def _size(run: Run, rollout: Rollout) -> tuple[int, int]:
    """(height, width) of the frames, from the grid of patches that the row names."""
    folder = base_path(run)
    family = architecture_in(folder)
    config = json.loads((folder / "config.json").read_text())
    patch = int(config[family.vision_key]["patch_size"])
    _, height, width = rollout.grid_thw
    return height * patch, width * patch
