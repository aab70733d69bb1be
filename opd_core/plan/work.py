"""What a round computes: tokens, FLOPs, and the bytes that decoding reads, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from opd_core.extensions import OBJECTIVES
from opd_core.focus.select import needs_predictions, needs_scores
from opd_core.plan.cards import Card
from opd_core.plan.memory import (
    BYTES,
    Setting,
    answers_of_teacher,
    cache_bytes,
    training_of,
    weights_bytes,
)
from opd_core.plan.packs import Pack, Tree
from opd_core.plan.parameters import parameters_of
from opd_core.plan.shapes import ModelShape

READ_SHARE = 0.5
"""Of a card's bandwidth that decoding is taken to reach."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """Of one round, all processes together."""

    videos: float
    examples: float
    tokens: float
    """Through the language model; a video once, however many sentences and rollouts it has."""
    separately: float
    """The same without sharing: each answer with its whole prompt."""
    flops: float
    read_bytes: float
    """That decoding reads of weights, keys and values."""

    def hours(self, card: Card, mfu: float, devices: int = 1) -> float | None:
        """On `devices` cards at the share `mfu` of their peak; None where that is not known."""
        if card.flops is None or card.bandwidth is None:
            return None
        seconds = self.flops / (card.flops * mfu) + self.read_bytes / (card.bandwidth * READ_SHARE)
        return seconds / 3600 / devices


def stage_work(setting: Setting, stage: str) -> StageWork | None:
    """None where the stage has nothing to do, or nobody knows how much."""
    config = setting.config
    rollout = config.rollout
    drawn = setting.lengths.drawn
    match stage:
        case "validate":
            if not needs_predictions(config.focus):
                return None
            return _sampling(setting, stage, drawn, config.teacher.predictions,
                             rollout.prompts_per_batch)  # fmt: skip
        case "rollout":
            if rollout.source == "truth":
                return None
            return _sampling(setting, stage, drawn, rollout.rollouts_per_example,
                             rollout.prompts_per_batch)  # fmt: skip
        case "score":
            return _scoring(setting, drawn) if scores(setting) else None
        case "update":
            return _update(setting, drawn)
        case _:
            if setting.evaluated is None:
                return None
            return _sampling(setting, stage, setting.evaluated, 1,
                             config.evaluate.prompts_per_batch)  # fmt: skip


def together(each: Sequence[StageWork | None], shares: Sequence[float] | None) -> StageWork | None:
    """The work of a stage to which each teacher would come to `each`, were all examples its own:
    by their shares of them, or, where those are not known, the largest."""
    known = [work for work in each if work is not None]
    if len(known) < len(each) or not known:
        return None
    if shares is None:
        return max(known, key=lambda work: work.flops + work.read_bytes)
    parts = list(zip(known, shares, strict=True))
    return StageWork(
        **{f.name: sum(getattr(w, f.name) * share for w, share in parts) for f in fields(StageWork)}
    )


def scores(setting: Setting) -> bool:
    """Whether rounds have teacher scores."""
    return setting.config.needs_teacher_scores or needs_scores(setting.config.focus)


def pass_flops(shape: ModelShape, pack: Pack) -> tuple[float, float]:
    """FLOPs of a forward pass: of the language model with its head on the answers, of the vision
    tower."""
    numbers, text, tower = parameters_of(shape), shape.text, shape.tower
    language = 2.0 * numbers.active_layers * pack.tokens
    language += 4.0 * text.layers * text.queries * pack.trees * pack.tree.scores
    language += 2.0 * numbers.embedding * pack.answers
    patches = pack.vision * tower.patches
    vision = 2.0 * ((numbers.vision - numbers.mergers) * patches + numbers.mergers * pack.vision)
    return language, vision


def _seen_together(setting: Setting, shape: ModelShape, videos: float) -> float:
    """FLOPs of attention in the tower, within a frame pair."""
    mean, tower = setting.lengths.mean, shape.tower
    pairs = max(1, mean.frames / tower.temporal)
    patches = mean.vision * tower.patches / pairs
    return videos * pairs * 4.0 * tower.layers * tower.hidden * patches**2


def _sampling(
    setting: Setting, stage: str, examples: float, answers: int, together: int
) -> StageWork:
    lengths, config = setting.lengths, setting.config
    teachers = answers_of_teacher(config, stage)
    shape = setting.teacher if teachers else setting.student
    sentences = min(lengths.sentences, together)  # a batch that is smaller parts them
    tree = lengths.tree(lengths.mean, sentences, 0)
    videos = examples / sentences
    read = Pack(tree, videos)
    language, vision = pass_flops(shape, read)
    written = examples * answers * lengths.answer
    numbers, text = parameters_of(shape), shape.text
    length = tree.shared + tree.own + lengths.answer / 2
    each = 2.0 * (numbers.active_layers + numbers.embedding)
    each += 4.0 * text.layers * text.queries * length
    size = BYTES[(config.teacher if teachers else config.student).dtype]
    steps = math.ceil(examples / together) * lengths.answer
    rest = numbers.layers - numbers.active_layers
    cached = cache_bytes(shape, size) * length * min(together, examples)
    weights = weights_bytes(config, shape, teachers) - rest * size - numbers.vision * size
    separate = Tree(tree.vision, tree.shared, tree.own, tree.sentences, answers, lengths.answer)
    return StageWork(
        videos=videos,
        examples=examples,
        tokens=read.tokens + written,
        separately=videos * separate.separately,
        flops=language + vision + _seen_together(setting, shape, videos) + written * each,
        read_bytes=steps * (weights + cached),
    )


def _scoring(setting: Setting, examples: float) -> StageWork:
    lengths, rollout = setting.lengths, setting.config.rollout
    tree = lengths.tree(lengths.mean, lengths.sentences, rollout.rollouts_per_example)
    videos = examples / lengths.sentences
    pack = Pack(tree, videos)
    language, vision = pass_flops(setting.teacher, pack)
    seen = _seen_together(setting, setting.teacher, videos)
    return StageWork(videos, examples, pack.tokens, videos * tree.separately,
                     language + vision + seen, 0.0)  # fmt: skip


def _update(setting: Setting, drawn: float) -> StageWork:
    lengths, config = setting.lengths, setting.config
    update, focus, shape = config.update, config.focus, setting.student
    most = drawn * (config.rollout.rollouts_per_example if focus.unit == "rollout" else 1)
    takes = {"scc": focus.frontier + focus.anchors, "uniform": drawn}.get(
        focus.curriculum, focus.top_k
    )
    examples = min(most, takes) * update.epochs
    if update.max_steps is not None:
        examples = min(examples, update.max_steps * update.examples_per_step)
    rollouts = config.rollout.rollouts_per_example if focus.unit == "example" else 1
    tree = lengths.tree(lengths.mean, lengths.sentences, rollouts)
    videos = examples / lengths.sentences
    pack = Pack(tree, videos)
    language, vision = pass_flops(shape, pack)
    vision += _seen_together(setting, shape, videos)
    back = 1 if update.lora is not None else 2
    again = float(update.gradient_checkpointing)
    tower = 1 if update.freeze_vision else 3 + (again > 0)
    flops = language * (1 + back + again) + vision * tower
    if any(r(update) for n in config.objective_weights if (r := OBJECTIVES[n].reference)):
        flops += language + vision
    return StageWork(videos, examples, pack.tokens, videos * tree.separately, flops, 0.0)


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes on disk; tables before Lance compresses them."""

    policy: float
    """A round: the next policy's folder."""
    trainer: float
    """Once: what training of the newest policy goes on from."""
    tables: float
    """A round."""
    frames: float
    """Once: the frame store, as far as it may grow."""


def disk(setting: Setting) -> Disk:
    config, lengths, shape = setting.config, setting.lengths, setting.student
    training = training_of(config, shape)
    numbers = parameters_of(shape).all if config.update.lora is None else training.parameters
    rounded = training.float32_weights and training.served_bytes < 4
    state = training.state + (4.0 * training.parameters if rounded else 0.0)
    rollout, score = config.rollout, config.score
    prompt = sum(lengths.question) + lengths.mean.tokens
    rows = lengths.drawn * rollout.rollouts_per_example
    of_token = 16.0 + 8 * score.teacher_topk + 4 * score.teacher_entropy
    of_token += 4 * setting.teacher.text.hidden * score.hidden_states
    tables = float(rows * (4 * prompt + 8 * lengths.answer))
    if scores(setting):
        tables += rows * lengths.answer * of_token
    known = lengths.annotations
    seen = float(len(known.seconds)) if known else lengths.drawn / lengths.sentences
    store = 0.0
    if config.frames.enabled:
        store = min(config.frames.max_gib * 2**30, seen * stored_video(setting))
    return Disk(float(numbers * training.served_bytes), state, tables, store)


def stored_video(setting: Setting) -> float:
    """Bytes of a mean video in the frame store."""
    size = float(setting.lengths.mean.vision * setting.student.tower.frame_bytes)
    return size / 10 if setting.config.frames.codec == "jpeg" else size
