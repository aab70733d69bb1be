"""How many tokens prompts and answers have, from the budgets of [video] and what is annotated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from opd_core.config.load import Config
from opd_core.plan.packs import Tree
from opd_core.plan.shapes import ModelShape
from opd_core.templates.named import ask
from opd_core.templates.own_prompt import template_of
from opd_core.types import GroundingExample, Span

CHAT_TOKENS = 8
"""Of the chat around a question, in Qwen's template."""
MARKS = 2
"""Around the vision tokens of a frame pair, and around a video."""
SENTENCE = "the person opens the door and walks into the room"
"""Stands for a sentence where no annotations are at hand."""
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]")


def words_of(text: str) -> int:
    """Tokens of a text by rule of thumb: a word, a digit and a mark are one each, as in Qwen's
    vocabulary for common words."""
    return len(_PIECE.findall(text))


@dataclass(frozen=True, slots=True)
class Video:
    """A prompt's part that is the video."""

    frames: int
    vision: int
    stamps: int
    """Tokens of text between the frames, with the marks."""

    @property
    def tokens(self) -> int:
        return self.vision + self.stamps


@dataclass(frozen=True, slots=True)
class Annotations:
    """What of the annotated examples a plan depends on."""

    seconds: tuple[float, ...]
    """Length of each video."""
    sentences: tuple[int, ...]
    """Sentences of each."""
    words: float
    """Tokens of a sentence, on average."""

    @classmethod
    def of(
        cls, examples: Iterable[GroundingExample], count: Callable[[str], int]
    ) -> Annotations | None:
        """None where there is none."""
        each: Counter[str] = Counter()
        seconds: dict[str, float] = {}
        words = []
        for example in examples:
            each[example.video_path] += 1
            seconds[example.video_path] = example.duration
            words.append(count(example.query))
        if not words:
            return None
        mean = sum(words) / len(words)
        return cls(tuple(seconds.values()), tuple(each[video] for video in seconds), mean)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the trees of a run. Everything that costs time is of a mean video, what must fit
    into memory of the longest."""

    config: Config
    shape: ModelShape
    annotations: Annotations | None
    count: Callable[[str], int] = words_of
    """Tokens of a text."""

    @cached_property
    def longest(self) -> Video:
        if self.annotations is None:
            return self._video(self.config.video.max_frames)
        return self._of_seconds(max(self.annotations.seconds))

    @cached_property
    def mean(self) -> Video:
        if self.annotations is None:
            return self.longest
        videos = [self._of_seconds(seconds) for seconds in self.annotations.seconds]
        return Video(
            _mean([video.frames for video in videos]),
            _mean([video.vision for video in videos]),
            _mean([video.stamps for video in videos]),
        )

    @cached_property
    def sentences(self) -> float:
        """Of a video that a round draws; 1 where no annotations are at hand."""
        if self.annotations is None:
            return 1.0
        most = self.config.rollout.max_queries_per_video
        each = [min(s, most) for s in self.annotations.sentences]
        return sum(each) / len(each)

    @cached_property
    def drawn(self) -> int:
        """Examples of a round: as many as the config says, and no more than there are."""
        wanted = self.config.rollout.examples_per_round
        if self.annotations is None:
            return wanted
        most = self.config.rollout.max_queries_per_video
        return min(wanted, sum(min(s, most) for s in self.annotations.sentences))

    @cached_property
    def question(self) -> tuple[float, float]:
        """Tokens of the question before the sentence, which all sentences of a video share, and
        from there on."""
        before, after = ask(template_of(self.config.prompt).text, "\0").split("\0", 1)
        words = self.count(SENTENCE) if self.annotations is None else self.annotations.words
        return self.count(before) + CHAT_TOKENS / 2, words + self.count(after) + CHAT_TOKENS / 2

    @cached_property
    def answer(self) -> float:
        """Tokens of an answer that is only the span, as the template writes one."""
        text = template_of(self.config.prompt).format_answer(Span(12.5, 17.8))
        return min(self.count(text) + 1, self.config.rollout.max_new_tokens)

    def tree(
        self, video: Video, sentences: float, rollouts: float, answer: float | None = None
    ) -> Tree:
        """The tree of a video; with one sentence the whole prompt is its root."""
        shared, own = self.question
        if sentences <= 1:
            shared, own = shared + own, 0.0
        answer = self.answer if answer is None else answer
        return Tree(video.vision, video.tokens + shared, own, max(sentences, 1), rollouts,
                    answer if rollouts else 0.0)  # fmt: skip

    def _of_seconds(self, seconds: float) -> Video:
        settings = self.config.video
        frames = int(seconds * settings.fps)
        return self._video(min(max(frames, self.shape.family.min_frames), settings.max_frames))

    def _video(self, frames: int) -> Video:
        """A video whose pictures are large enough for the budget."""
        settings, tower = self.config.video, self.shape.tower
        pairs = -(-frames // tower.temporal)
        vision = settings.max_video_tokens
        if settings.max_frame_tokens is not None:
            vision = min(vision, pairs * settings.max_frame_tokens)
        if self.shape.family.grids == "one a video":
            return Video(frames, vision, MARKS)
        middle = frames / settings.fps / 2
        each = self.count(f"<{middle:.1f} seconds>") + MARKS
        return Video(frames, vision, pairs * each + MARKS)


def _mean(values: Sequence[int]) -> int:
    return round(sum(values) / len(values))
