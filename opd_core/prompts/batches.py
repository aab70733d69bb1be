"""From examples to encoded prompts, video by video, with what could not be used set aside.

All stages get their prompts here, so all of them see the same pixels and the same tokens. One bad
example never ends a stage, whatever is raised on it; what is wrong with all of them (a folder that
is not mounted, a broken processor) ends it before anything is recorded.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from opd_core import faults
from opd_core.config.load import Config
from opd_core.config.sections import VideoSection
from opd_core.model.vision_input import VisionInput
from opd_core.prompts.encoder import EncodedPrompt, PromptEncoder, processor_hash
from opd_core.prompts.faults import CheckedPrompts, Room, UnusableExample, first_line
from opd_core.prompts.in_background import InBackground
from opd_core.prompts.upcoming import Listed, Upcoming
from opd_core.prompts.videos_there import VideosThere
from opd_core.templates.own_prompt import template_of
from opd_core.types import GroundingExample, QuarantinedItem, VideoOPDError
from opd_core.video.clip import ClipStore, Codec, VideoClip
from opd_core.video.durations import duration_fault
from opd_core.video.frame_size import SizeRule
from opd_core.video.reader import DecoderLostError, NoFileError, VideoError, VideoReader


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


_readers: dict[tuple[VideoSection, Codec, SizeRule, int], VideoReader] = {}
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


def store_in_use() -> ClipStore | None:
    """What `reading_through` was given."""
    return _store


def _use(store: ClipStore | None) -> None:
    global _store
    _store = store
    for reader in _readers.values():
        reader.store = store


def _reader(config: Config, size_rule: SizeRule, min_frames: int) -> VideoReader:
    """One reader a process, so that the stages of a round decode each video once."""
    key = (config.video, config.frames.codec, size_rule, min_frames)
    if key not in _readers:
        _readers[key] = VideoReader(
            config.video,
            size_rule=size_rule,
            min_frames=min_frames,
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
        self._config, self._videos = config, config.data.videos
        self.prompts = PromptEncoder(folder, template_of(config.prompt).text)
        family = self.prompts.architecture
        rule = SizeRule.of(self.prompts.processor.video_processor, family.size_rule)
        self._reader = _reader(config, rule, family.min_frames)
        self.processor_hash = processor_hash(self.prompts.processor)
        self._checked = CheckedPrompts(self.prompts)

    def encode_batches(
        self,
        batches: Sequence[Sequence[GroundingExample]] | Upcoming,
        stage: str,
        policy_version: int | None,
        *,
        asks: bool = False,
        room: Room | None = None,
        ahead: bool = True,
    ) -> Iterator[EncodedBatch]:
        """Encode one batch after the other, decoding the next one meanwhile, and encoding it, in a
        thread, while the caller works with the last (`ahead`; it keeps two batches in memory).

        `asks`: the prompts are to be answered, so sentences and annotated lengths are checked; what
        was answered before is encoded as it was. `room`: what does not fit is set aside. Of a
        list, which is all of a stage, raises `VideoOPDError` where most videos are missing, at the
        start or later; of what is dealt out bit by bit whoever deals looks (`VideosThere`).
        """
        there: VideosThere | None = None
        if isinstance(batches, Sequence):
            upcoming: Upcoming = Listed(batches)
            there = VideosThere(self._config, stage, [e for batch in batches for e in batch])
            there.check()
        else:
            upcoming = batches

        def encode(stop: threading.Event | None = None) -> EncodedBatch | None:
            batch = next(upcoming, None)
            if batch is None:
                return None
            known = (*batch, *upcoming.following())
            self._reader.prefetch(dict.fromkeys(self._videos / e.video_path for e in known))
            return self._encode(batch, stage, policy_version, asks, room, stop)

        following: InBackground[EncodedBatch | None] | None = None
        try:
            while True:
                encoded = encode() if following is None else following.result()
                following = None
                if encoded is None:
                    return
                if there is not None:
                    there.check(encoded.quarantined)
                if ahead:
                    following = InBackground(encode)
                yield encoded
        finally:
            if following is not None:
                following.give_up()

    def _encode(
        self,
        examples: Sequence[GroundingExample],
        stage: str,
        policy_version: int | None,
        asks: bool,
        room: Room | None,
        stop: threading.Event | None,
    ) -> EncodedBatch:
        """`stop`, once it is set: nobody wants the rest."""
        videos: list[tuple[EncodedExample, ...]] = []
        quarantined: list[QuarantinedItem] = []
        for video_path, group in groupby(examples, key=lambda e: e.video_path):
            usable: list[EncodedExample] = []
            clip: VideoClip | UnusableExample | None = None
            vision: VisionInput | None = None
            for example in group:
                if stop is not None and stop.is_set():
                    break
                try:
                    if asks:
                        self._checked.check_sentence(example.query)
                    clip = clip or self._clip(video_path)
                    if isinstance(clip, UnusableExample):
                        raise clip
                    if asks and (fault := duration_fault(example.duration, clip.duration)):
                        raise UnusableExample(faults.DURATION, fault)
                    prompt = self._checked.encode(clip, example.query, vision)
                    if room is not None:
                        room.check(len(prompt.token_ids))
                except UnusableExample as error:
                    quarantined.append(
                        QuarantinedItem(
                            example.example_id,
                            stage,
                            video_path,
                            str(error),
                            policy_version,
                            error.kind,
                        )
                    )
                    continue
                vision = prompt.vision
                usable.append(EncodedExample(example, clip, prompt))
            if usable:
                videos.append(tuple(usable))
        return EncodedBatch(tuple(videos), tuple(quarantined))

    def _clip(self, video_path: str) -> VideoClip | UnusableExample:
        """The frames, or why there are none."""
        try:
            return self._reader.read(self._videos / video_path)
        except NoFileError as error:
            return UnusableExample(faults.NO_FILE, str(error))
        except DecoderLostError as error:
            return UnusableExample(faults.DECODER_LOST, str(error))
        except VideoError as error:
            return UnusableExample(faults.VIDEO, str(error))
        except (MemoryError, VideoOPDError):
            raise
        except Exception as error:  # a fault of ours on an odd file, which costs that file alone
            reason = f"{video_path}: reading it raised {type(error).__name__}: {first_line(error)}"
            return UnusableExample(faults.DECODER_LOST, reason)


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
