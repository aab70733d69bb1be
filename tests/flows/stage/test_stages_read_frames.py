"""A stage in a process of its own finds its frames decoded, and nothing depends on the store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.stage.prepare import decoding_once
from opd_core.config.load import load_config
from opd_core.prompts.batches import forget_decoded
from opd_core.types import VideoOPDError
from opd_core.video.reader import VideoReader
from storage.frames import video_hashes
from storage.frames.store import usage
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.known import known

ROOT = Path(__file__).resolve().parents[3]
STORE = "videoopd-frames"

OTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.flows.kill_points import run_without_server
from opd_core.video.reader import VideoReader
def refuse(self, path):
    raise AssertionError(f"{path} is decoded again")
VideoReader._decode = refuse
run_without_server(sys.argv[1], 1, ["run.path='again'", "update.max_steps=1"])
"""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded in this process."""
    names: list[str] = []
    original = VideoReader._decode

    def counted(self: VideoReader, path: Path) -> Any:
        names.append(str(path))
        return original(self, path)

    monkeypatch.setattr(VideoReader, "_decode", counted)
    monkeypatch.setattr(video_hashes, "FRESH_SECONDS", 0.0)
    return names


def seen(run: Path) -> pl.DataFrame:
    columns = ("rollout_id", "pixel_hash", "completion_token_ids", "sampling_logprobs")
    return Run.open(run).rollouts().select(columns).sort("rollout_id").collect()


def fresh(config: Path, *overrides: str) -> None:
    """A round as a process that was just started would run it."""
    forget_decoded()
    run_without_server(str(config), 1, overrides)
    forget_decoded()


@pytest.mark.in_turn
def test_every_stage_of_another_process_reads_what_was_decoded(
    write_config: Any, tmp_path: Path, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    fresh(config)
    videos = len(set(decoded))
    assert len(decoded) == videos > 3, "once a video, over all stages"
    assert known(usage(tmp_path / STORE))[:2] == (videos, videos)

    from flows.commands.status import print_status

    print_status(Run.open(tmp_path / "run"))
    assert f"{videos} videos" in capsys.readouterr().out

    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(config), str(ROOT / "tests" / "flows")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert seen(tmp_path / "again").equals(seen(tmp_path / "run"))


@pytest.mark.in_turn
def test_the_store_changes_no_number(write_config: Any, tmp_path: Path, decoded: list[str]) -> None:
    config = write_config(tmp_path)
    fresh(config)
    decoded.clear()
    fresh(config, "run.path='off'", "frames.enabled=false")
    videos = set(decoded)
    assert len(decoded) == len(videos) > 0
    decoded.clear()
    small = 3 * 74_000 / 2**30  # three of them, so that some are evicted
    fresh(config, "run.path='small'", "frames.path='small-frames'", f"frames.max_gib={small}")
    assert known(usage(tmp_path / "small-frames")).videos < len(videos)
    for other in ("off", "small"):
        first = seen(tmp_path / other).filter(pl.col("rollout_id").str.starts_with("v0-"))
        assert first.equals(seen(tmp_path / "run"))
    configs = [
        p.name for name in ("run", "off", "small") for p in (tmp_path / name / "configs").iterdir()
    ]
    assert len(set(configs)) == 1, "where frames are kept is no part of what a run is"


def test_a_folder_that_cannot_be_a_store_is_named(write_config: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.png").write_text("precious")
    config = write_config(tmp_path, {"frames.path": mine})
    with pytest.raises(VideoOPDError, match=r"no frame store; set frames.path to a new"):
        run_without_server(str(config), 1)


def test_where_nobody_asked_for_a_store_its_absence_is_only_told(
    write_config: Any, tmp_path: Path
) -> None:
    (tmp_path / STORE).write_text("a file")
    config = load_config(write_config(tmp_path))
    with pytest.warns(RuntimeWarning, match="no frames are kept"), decoding_once(config):
        pass
