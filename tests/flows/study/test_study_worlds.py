"""The worlds of a study: annotated as its condition says where it trains, the truth elsewhere."""

from __future__ import annotations

from pathlib import Path

from flows.study.worker import WorldRequest, answer
from storage.frames.store import usage
from tests.flows.conftest import WriteConfig
from tests.known import known


def made(folder: Path, config: Path, frames: Path, annotations: str) -> Path:
    world = folder / annotations
    request = WorldRequest(
        folder=str(world), seed=5, train_videos=6, tune_videos=3, eval_videos=2,
        annotations=annotations, scene="short", config=str(config),
        overrides=[f'data.videos="{world / "videos"}"', f'frames.path="{frames}"'],
    )  # fmt: skip
    assert answer(request) is None
    return world


def test_what_is_trained_on_is_annotated_and_what_is_judged_is_the_truth(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    config, frames = write_config(tmp_path / "base"), tmp_path / "frames"
    clean = made(tmp_path, config, frames, "clean")
    clips = known(usage(frames)).clips
    loose = made(tmp_path, config, frames, "loose")
    assert clips == 11 == known(usage(frames)).clips, "the videos are the same, and decoded once"
    for split in ("tune.jsonl", "eval.jsonl"):
        assert (clean / split).read_bytes() == (loose / split).read_bytes()
    training = "train-without-tune.jsonl"
    assert (clean / training).read_text().count("\n") == 6
    assert (clean / training).read_bytes() != (loose / training).read_bytes()
    truth = (loose / "train_truth.jsonl").read_text()
    assert truth == (clean / "train.jsonl").read_text()
    assert truth.startswith((clean / training).read_text())
    assert truth.endswith((loose / "tune.jsonl").read_text())
