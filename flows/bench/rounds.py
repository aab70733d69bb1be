"""Rounds without Prefect and tables: what the computation alone costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.annotations.timelens import read_timelens
from opd_core.config.load import Config, load_config
from opd_core.focus.select import draw_examples
from opd_core.prompts.batches import forget_decoded
from opd_core.rollout.answers import evaluate, predict, sample_rollouts
from opd_core.rollout.by_example import by_example
from opd_core.scoring.trees import score_rollouts
from opd_core.types import Batch, GroundingExample, Policy, Rollout, TeacherScore
from opd_core.update.rows import HeldRows, Trained
from opd_core.update.student import update_student


@dataclass(frozen=True, slots=True)
class FinishedRound:
    """What a round did, as its tables tell it."""

    policy: Policy
    next_policy: Policy
    teacher_hash: str
    predicted: Sequence[GroundingExample]
    drawn: Sequence[GroundingExample]
    rollouts: Sequence[Rollout]
    scores: Sequence[TeacherScore]
    evaluated: Sequence[GroundingExample]


def recompute(config: Config, done: FinishedRound) -> float:
    """Seconds of the same predictions, rollouts, scores, update and evaluation, videos decoded."""
    policy = done.policy
    after = done.next_policy
    teacher = Policy(policy.version, config.teacher.path, done.teacher_hash)
    rollouts = by_example(done.rollouts)
    scores = {s.rollout_id: s for s in done.scores}
    answered = [e for e in done.drawn if e.example_id in rollouts]
    trained = _trained(answered, rollouts, scores)
    work = [(t.example, t.rollouts) for t in trained]
    began = time.perf_counter()
    _drain(predict(config, teacher, "", done.predicted, set()))
    _drain(sample_rollouts(config, policy, answered, set()))
    _drain(score_rollouts(config, teacher, work))
    with tempfile.TemporaryDirectory() as folder:
        update_student(config, policy, HeldRows(trained), Path(folder))
    _drain(evaluate(config, after, done.evaluated, set()))
    return time.perf_counter() - began


def round_seconds(config_file: str, examples: int, rollouts_each: int) -> dict[str, float]:
    """Seconds of rollout (decoding included), score and update of one round, all trained on."""
    config = load_config(
        config_file,
        [f"rollout.rollouts_per_example={rollouts_each}", "update.epochs=1"],
    )
    drawn = drawn_examples(config, examples)
    policy = Policy(0, config.student.path, "student")
    teacher = Policy(0, config.teacher.path, "teacher")
    forget_decoded()
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    rollouts = sampled(config, policy, drawn)
    seconds["rollout"] = time.perf_counter() - began
    began = time.perf_counter()
    work = [(e, rollouts[e.example_id]) for e in drawn]
    scores = {s.rollout_id: s for s in _drain(score_rollouts(config, teacher, work))}
    seconds["score"] = time.perf_counter() - began
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trained = HeldRows(_trained(drawn, rollouts, scores))
        update_student(config, policy, trained, Path(folder))
    seconds["update"] = time.perf_counter() - began
    return seconds


def drawn_examples(config: Config, count: int) -> list[GroundingExample]:
    """Examples of a first round: `count` of the training split, drawn with seed 0."""
    items = read_timelens(config.data.train, "train")
    usable = [item for item in items if isinstance(item, GroundingExample)]
    return draw_examples(usable, count, config.rollout.max_queries_per_video, seed=0)


def sampled(
    config: Config, policy: Policy, examples: Sequence[GroundingExample]
) -> dict[str, list[Rollout]]:
    """Rollouts of the examples, by the id of the example."""
    return by_example(_drain(sample_rollouts(config, policy, examples, set())))


def _drain(batches: Iterable[Batch[Any]]) -> list[Any]:
    return [record for batch in batches for record in batch.records]


def trained_on(
    config: Config, examples: Sequence[GroundingExample], rollouts: dict[str, list[Rollout]]
) -> list[Trained]:
    """What an update is given of these rollouts: all of them, with the teacher's scores."""
    teacher = Policy(0, config.teacher.path, "teacher")
    work = [(e, rollouts[e.example_id]) for e in examples]
    scores = {s.rollout_id: s for s in _drain(score_rollouts(config, teacher, work))}
    return _trained(examples, rollouts, scores)


def _trained(
    examples: Sequence[GroundingExample],
    rollouts: dict[str, list[Rollout]],
    scores: dict[str, TeacherScore],
) -> list[Trained]:
    trained = []
    for example in examples:
        scored = tuple(r for r in rollouts[example.example_id] if r.rollout_id in scores)
        if scored:
            trained.append(Trained(example, scored, tuple(scores[r.rollout_id] for r in scored)))
    return trained
