"""Batches that are encoded while the last is worked with: the same ones, and no thread left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch

from opd_core.config.load import Config
from opd_core.prompts.batches import EncodedBatch, ExampleEncoder
from opd_core.prompts.faults import UnusableExample
from opd_core.tinyworld.world import World
from opd_core.types import GroundingExample, VideoOPDError
from opd_core.video.clip import VideoClip
from tests.opd_core.engines.vllm_fixtures import make_config, read_examples


@pytest.fixture(scope="module")
def config(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tmp_path_factory.mktemp("ahead"), tiny_world)


@pytest.fixture
def encoder(config: Config) -> ExampleEncoder:
    return ExampleEncoder(config, config.student.path)


@pytest.fixture(scope="module")
def batches(config: Config) -> list[list[GroundingExample]]:
    examples = read_examples(config, 24)
    return [examples[start : start + 4] for start in range(0, 24, 4)]


def told(batch: EncodedBatch) -> list[tuple[str, tuple[int, ...], str]]:
    items = [item for video in batch.videos for item in video]
    return [(i.example.example_id, i.prompt.token_ids, i.clip.pixel_hash) for i in items]


def workers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "in the background"]


def test_the_same_batches_in_the_same_order(
    encoder: ExampleEncoder, batches: list[list[GroundingExample]]
) -> None:
    """While the caller uses the tokenizer, as those do that write answers down."""
    alone = list(encoder.encode_batches(batches, "test", 0, ahead=False))
    assert not workers()
    found = []
    for batch in encoder.encode_batches(batches, "test", 0):
        for _ in range(200):
            encoder.prompts.decode(encoder.prompts.tokenizer("a red ball 3.5 - 4.0")["input_ids"])
        found.append(batch)
    assert [told(b) for b in found] == [told(b) for b in alone]
    for one, other in zip(found, alone, strict=True):
        for video, same in zip(one.videos, other.videos, strict=True):
            assert torch.equal(video[0].prompt.vision.patches, same[0].prompt.vision.patches)
    assert not workers()


class Watched:
    """How many batches were begun, by an encoder that takes its time over some."""

    def __init__(self, encoder: ExampleEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.slow = False
        original = encoder._clip

        def clip(video_path: str) -> VideoClip | UnusableExample:
            if self.slow:
                time.sleep(0.2)
            return original(video_path)

        encode = cast(Callable[..., EncodedBatch], encoder._encode)

        def counted(*arguments: object) -> EncodedBatch:
            self.begun += 1
            return encode(*arguments)

        monkeypatch.setattr(encoder, "_clip", clip)
        monkeypatch.setattr(encoder, "_encode", counted)


def test_the_next_batch_is_begun_and_no_other(
    encoder: ExampleEncoder, batches: list[list[GroundingExample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(encoder, monkeypatch)
    stream = encoder.encode_batches(batches, "test", 0)
    next(stream)
    deadline = time.monotonic() + 20
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert watched.begun == 2 and not workers(), "a thread ends with its batch"
    assert len(list(stream)) == len(batches) - 1 and watched.begun == len(batches)


@pytest.mark.parametrize("how", ["closed", "raised", "forgotten"])
def test_who_stops_leaves_no_thread(
    how: str,
    encoder: ExampleEncoder,
    batches: list[list[GroundingExample]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(encoder, monkeypatch)
    stream: Iterator[EncodedBatch] | None = encoder.encode_batches(
        [batches[0], [e for batch in batches[1:] for e in batch]], "test", 0
    )
    assert stream is not None
    next(stream)
    watched.slow = True
    assert workers()
    if how == "raised":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    elif how == "closed":
        stream.close()  # type: ignore[attr-defined]
    else:
        stream = None
    assert not workers(), "it has stopped in the middle of its batch"


def test_what_a_batch_raises_comes_in_its_place(
    encoder: ExampleEncoder, batches: list[list[GroundingExample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen = cast(Callable[..., EncodedBatch], encoder._encode), 0

    def failing(*arguments: object) -> EncodedBatch:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise VideoOPDError("the processor fails on every example")
        return encode(*arguments)

    monkeypatch.setattr(encoder, "_encode", failing)
    found = []
    with pytest.raises(VideoOPDError, match="the processor fails"):
        for batch in encoder.encode_batches(batches, "test", 0):
            found.append(batch)
    assert len(found) == 2 and not workers()


def test_a_file_that_went_away_is_told_after_the_batches_before_it(
    config: Config, batches: list[list[GroundingExample]], tmp_path: Path
) -> None:
    import shutil

    videos = tmp_path / "videos"
    shutil.copytree(config.data.videos, videos)
    moved = config.model_copy(update={"data": config.data.model_copy(update={"videos": videos})})
    stream = ExampleEncoder(moved, config.student.path).encode_batches(batches, "test", 0)
    first = next(stream)
    assert first.videos and not first.quarantined
    deadline = time.monotonic() + 20
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(videos)
    with pytest.raises(VideoOPDError, match="videos"):
        list(stream)
