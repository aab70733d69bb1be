"""A tiny world as training material: every video read, encoded and kept in memory once.

Reading and encoding go through the pipeline's own `VideoReader` and `PromptEncoder`, so the tiny
models learn from exactly the pixels and tokens which they are asked about later.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from opd_core.config.sections import VideoSection
from opd_core.prompts.encoder import EncodedPrompt, PromptEncoder
from opd_core.spans.grounding import format_answer
from opd_core.tinyworld.annotators import LOOSE
from opd_core.tinyworld.scenes import Scene
from opd_core.tinyworld.world import (
    COLOURS,
    FORMS,
    VideoPlan,
    World,
    annotation,
    plan_video,
    video_seed,
)
from opd_core.types import Span
from opd_core.video.reader import VideoReader

if TYPE_CHECKING:
    from torch import Tensor

NAMES = tuple(f"{colour} {form}" for colour in COLOURS for form in FORMS)
"""What can be in view, in the order of the columns of `in_view`."""


@dataclass(frozen=True, slots=True)
class Question:
    """One sentence about a video and its true answer."""

    prompt: EncodedPrompt
    answer_ids: tuple[int, ...]
    """The answer's tokens, the end token included."""
    span: Span


@dataclass(frozen=True, slots=True)
class TinyVideo:
    """One video, its questions (which share `vision`), and what is in view each second."""

    questions: tuple[Question, ...]
    in_view: Tensor
    """[seconds, names] bool."""


def video_section(scene: Scene) -> VideoSection:
    """How the pipeline reads tiny videos: one vision token a second."""
    return VideoSection(fps=2.0, max_frames=2 * scene.seconds, max_video_tokens=scene.seconds)


def load_split(
    world: World,
    split: str,
    seed: int,
    scene: Scene,
    encoder: PromptEncoder,
    progress: Callable[[int, int], None] | None = None,
) -> list[TinyVideo]:
    """All videos of `split` ("train" or "eval") of a world made with `seed`, of `scene`.

    Patches are kept in float16 (150 kB a video), which holds the 256 grey levels apart.
    """
    path = world.train if split == "train" else world.eval
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = encoder.tokenizer
    videos: list[TinyVideo] = []
    with VideoReader(video_section(scene)) as reader:
        paths = [world.videos / row["video_path"] for row in rows]
        reader.prefetch(paths)
        for index, (row, video_path) in enumerate(zip(rows, paths, strict=True)):
            prompts = encoder.encode(reader.read(video_path), [e["query"] for e in row["events"]])
            vision = replace(prompts[0].vision, patches=prompts[0].vision.patches.half())
            questions = []
            for event, prompt in zip(row["events"], prompts, strict=True):
                span = Span(*event["span"][0])
                prompt = replace(prompt, vision=vision)
                questions.append(Question(prompt, _answer_ids(tokenizer, span), span))
            plan = plan_video(video_seed(seed, split, index), scene)
            videos.append(TinyVideo(tuple(questions), in_view(plan)))
            if progress is not None:
                progress(index + 1, len(rows))
    return videos


def loosely_annotated(
    videos: Sequence[TinyVideo], seed: int, scene: Scene, encoder: PromptEncoder
) -> list[TinyVideo]:
    """The training split of a world made with `seed`, with the answers of its loose annotations."""
    loose = []
    for index, video in enumerate(videos):
        row = annotation(plan_video(video_seed(seed, "train", index), scene), "", LOOSE)
        spans = [Span(*event["span"][0]) for event in row["events"]]
        questions = [
            replace(question, answer_ids=_answer_ids(encoder.tokenizer, span), span=span)
            for question, span in zip(video.questions, spans, strict=True)
        ]
        loose.append(replace(video, questions=tuple(questions)))
    return loose


def _answer_ids(tokenizer: Any, span: Span) -> tuple[int, ...]:
    answer = tokenizer(format_answer(span) + "<|im_end|>", add_special_tokens=False)
    return tuple(answer["input_ids"])


def in_view(plan: VideoPlan) -> Tensor:
    """[seconds, names] bool: which shapes are in view, distractors included."""
    table = np.zeros((plan.scene.seconds, len(NAMES)), dtype=bool)
    for shape in plan.shapes:
        table[shape.start : shape.end, NAMES.index(shape.name)] = True
    return torch.from_numpy(table)
