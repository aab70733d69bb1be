"""From examples to encoded prompts, video by video, with what could not be read set aside.

All stages get their prompts here, so all of them see the same pixels and the same tokens.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from opd_core.architectures import Architecture
from opd_core.clip import ClipStore, Codec, VideoClip
from opd_core.config import Config
from opd_core.config_sections import VideoSection
from opd_core.prompts import EncodedPrompt, PromptEncoder, processor_hash
from opd_core.templates import TEMPLATES
from opd_core.types import GroundingExample, QuarantinedItem
from opd_core.video import VideoError, VideoReader


@dataclass(frozen=True, slots=True)
class EncodedExample:
    example: GroundingExample
    clip: VideoClip
    prompt: EncodedPrompt


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    videos: tuple[tuple[EncodedExample, ...], ...]
    """Sentences of one video together."""
    quarantined: tuple[QuarantinedItem, ...]


_readers: dict[tuple[VideoSection, Codec, int, int, int, int, str], VideoReader] = {}
_store: ClipStore | None = None


@contextmanager
def reading_through(store: ClipStore | None) -> Iterator[None]:
    """Meanwhile the readers of this process look into `store` before they decode, and fill it.

    A store knows videos by their content, so it does not matter which run asks.
    """
    before = _store
    _use(store)
    try:
        yield
    finally:
        _use(before)


def _use(store: ClipStore | None) -> None:
    global _store
    _store = store
    for reader in _readers.values():
        reader.store = store


def _reader(
    config: Config, family: Architecture, patch: int, merge: int, temporal: int
) -> VideoReader:
    """One reader a process, so that the stages of a round decode each video once."""
    rule = (family.min_frames, family.resize)
    key = (config.video, config.frames.codec, patch, merge, temporal, *rule)
    if key not in _readers:
        _readers[key] = VideoReader(
            config.video,
            patch_size=patch,
            merge_size=merge,
            temporal_patch_size=temporal,
            min_frames=family.min_frames,
            resize=family.resize,
            codec=config.frames.codec,
            store=_store,
        )
    return _readers[key]


@atexit.register
def forget_decoded() -> None:
    """Close this process's readers and drop the videos they keep; the next use decodes again."""
    while _readers:
        _readers.popitem()[1].close()


class ExampleEncoder:
    """Encodes with the processor of one checkpoint folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._videos = config.data.videos
        self.prompts = PromptEncoder(folder, TEMPLATES[config.prompt.template].text)
        video = self.prompts.processor.video_processor
        self._reader = _reader(
            config,
            self.prompts.architecture,
            video.patch_size,
            video.merge_size,
            video.temporal_patch_size,
        )
        self.processor_hash = processor_hash(self.prompts.processor)

    def encode_batches(
        self,
        batches: Sequence[Sequence[GroundingExample]],
        stage: str,
        policy_version: int | None,
    ) -> Iterator[EncodedBatch]:
        """Encode one batch after the other, decoding the next one meanwhile."""
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            paths = dict.fromkeys(self._videos / e.video_path for e in (*batch, *following))
            self._reader.prefetch(paths)
            yield self._encode(batch, stage, policy_version)

    def _encode(
        self, examples: Sequence[GroundingExample], stage: str, policy_version: int | None
    ) -> EncodedBatch:
        videos: list[tuple[EncodedExample, ...]] = []
        quarantined: list[QuarantinedItem] = []
        for video_path, group in groupby(examples, key=lambda e: e.video_path):
            sentences = list(group)
            try:
                clip = self._reader.read(self._videos / video_path)
            except VideoError as error:
                quarantined.extend(
                    QuarantinedItem(e.example_id, stage, video_path, str(error), policy_version)
                    for e in sentences
                )
                continue
            prompts = self.prompts.encode(clip, [e.query for e in sentences])
            videos.append(
                tuple(EncodedExample(e, clip, p) for e, p in zip(sentences, prompts, strict=True))
            )
        return EncodedBatch(tuple(videos), tuple(quarantined))


def cut_at_videos(
    examples: Sequence[GroundingExample], per_batch: int
) -> Iterator[list[GroundingExample]]:
    """Runs of at most `per_batch` examples, cut between videos where a video fits into a batch.

    The cut depends on the examples only, so a resumed stage cuts them alike.
    """
    batch: list[GroundingExample] = []
    for _, group in groupby(examples, key=lambda e: e.video_path):
        sentences = list(group)
        for start in range(0, len(sentences), per_batch):
            part = sentences[start : start + per_batch]
            if batch and len(batch) + len(part) > per_batch:
                yield batch
                batch = []
            batch.extend(part)
    if batch:
        yield batch
