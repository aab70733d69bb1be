"""The answers to an example: of every policy, of evaluations, of the teachers.

The rollouts of an example lie in one stretch of ids a policy, `v3-<example>-0`, `v3-<example>-1`,
..., which the tables' index finds (`storage/tables/upkeep.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import polars as pl

from opd_core.types import Span
from storage.tables.views import own_scores, teachers_of_round

if TYPE_CHECKING:
    from storage.runs.run import Run

Texts = Callable[[Sequence[int]], Sequence[str]]
"""The text of each token id."""
Values = Mapping[str, Any]
"""A row of a table, by column."""
TONES = (0.05, 0.25, 1.0, 2.5, 5.0)
"""Nats between teacher and student from which on a token is coloured one shade darker."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to the example: a rollout's, or one of an evaluation."""

    by: str
    """`student`, `base`, `teacher` or `truth`, as in the row; `evaluation` of a greedy one."""
    policy_version: int
    rollout_id: str | None
    """None: of an evaluation."""
    sample_index: int
    text: str
    finish_reason: str
    span: Span | None
    iou: float
    tokens: tuple[tuple[str, str], ...]
    """Text and tone of each."""
    reverse_kl: float | None
    """k1 estimate, nats a token: mean of sampling - teacher; None where it was not scored."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One of a teacher's own answers to the example."""

    teacher: str
    index: int
    text: str
    span: Span | None
    iou: float
    question: str
    """Hash of how it was asked."""


def answers(
    run: Run, example_id: str, texts: Texts | None, versions: Iterable[int] = ()
) -> tuple[Answer, ...]:
    """Every rollout and evaluation of an example, by policy. `versions`: policies that may have no
    committed update."""
    committed = run.updates().select("policy_version", "parent_version", "teacher_hash").collect()
    teachers = {row[1]: row[2] for row in committed.iter_rows()}
    known = {0, *versions, *committed["policy_version"].to_list()}
    of_example = reduce(or_, (_ids(version, example_id) for version in sorted(known)))
    rows = run.rollouts().filter(of_example).select(
        "rollout_id", "policy_version", "answered_by", "sample_index", "text", "finish_reason",
        "predicted_start", "predicted_end", "student_iou", "completion_token_ids",
        "sampling_logprobs",
    ).collect().to_dicts()  # fmt: skip
    scored = (
        run.teacher_scores()
        .filter(of_example)
        .select("rollout_id", "teacher_hash", "teacher_logprobs")
        .collect()
    )
    made = []
    for row in rows:
        mine = scored.filter(pl.col("rollout_id") == row["rollout_id"])
        version = row["policy_version"]
        if version not in teachers:  # of a round that is not committed
            teachers[version] = teachers_of_round(run.scan, run.teacher_hash, version)
        own = own_scores(mine, teachers[version])
        logprobs = own.get_column("teacher_logprobs").to_list()
        made.append(_rollout_answer(row, logprobs[-1] if logprobs else None, texts))
    evaluated = run.evaluations().filter(pl.col("example_id") == example_id).select(
        "policy_version", "text", "finish_reason", "predicted_start", "predicted_end", "iou",
        "completion_token_ids",
    ).collect().to_dicts()  # fmt: skip
    made += [_evaluation_answer(row, texts) for row in evaluated]
    return tuple(sorted(made, key=lambda a: (a.policy_version, a.by, a.sample_index)))


def predictions(run: Run, example_id: str) -> tuple[Prediction, ...]:
    """The own answers of every teacher to an example."""
    rows = (
        run.teacher_predictions()
        .filter(pl.col("example_id") == example_id)
        .select(
            "teacher_id", "prediction_index", "text", "predicted_start", "predicted_end", "iou",
            "question_hash",
        )
        .collect()
        .sort("teacher_id", "question_hash", "prediction_index")
    )  # fmt: skip
    return tuple(
        Prediction(name, index, text, _span(start, end), iou, question)
        for name, index, text, start, end, iou, question in rows.iter_rows()
    )


def tone(advantage: float | None) -> str:
    """The class of a token's colour: `far-1` ... `far-5` where the teacher finds it less likely,
    `near-1` ... where likelier, `alike`, and `unscored`.

    >>> [tone(a) for a in (None, 0.01, -0.3, -7.0, 1.0)]
    ['unscored', 'alike', 'far-2', 'far-5', 'near-3']
    """
    if advantage is None:
        return "unscored"
    shade = sum(abs(advantage) >= bound for bound in TONES)
    return f"{'far' if advantage < 0 else 'near'}-{shade}" if shade else "alike"


def _ids(version: int, example_id: str) -> pl.Expr:
    prefix = f"v{version}-{example_id}-"
    return (pl.col("rollout_id") >= prefix) & (pl.col("rollout_id") < after_all(prefix))


def after_all(prefix: str) -> str:
    """The first text after all that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def words_of(ids: Iterable[int], texts: Texts | None) -> Mapping[int, str]:
    """The text of each id; `<id>` where the run has no tokenizer."""
    known = sorted(set(ids))
    words = [f"<{i}>" for i in known] if texts is None else texts(known)
    return dict(zip(known, words, strict=True))


def _rollout_answer(row: Values, teacher: Sequence[float] | None, texts: Texts | None) -> Answer:
    ids, sampling = row["completion_token_ids"], row["sampling_logprobs"]
    advantages: list[float | None] = [None] * len(ids)
    if teacher is not None and sampling is not None:
        advantages = [q - p for q, p in zip(teacher, sampling, strict=True)]
    scored = [a for a in advantages if a is not None]
    words = words_of(ids, texts)
    return Answer(
        by=row["answered_by"],
        policy_version=row["policy_version"],
        rollout_id=row["rollout_id"],
        sample_index=row["sample_index"],
        text=row["text"],
        finish_reason=row["finish_reason"],
        span=_span(row["predicted_start"], row["predicted_end"]),
        iou=row["student_iou"],
        tokens=tuple((words[i], tone(a)) for i, a in zip(ids, advantages, strict=True)),
        reverse_kl=-sum(scored) / len(scored) if scored else None,
    )


def _evaluation_answer(row: Values, texts: Texts | None) -> Answer:
    words = words_of(row["completion_token_ids"], texts)
    return Answer(
        by="evaluation",
        policy_version=row["policy_version"],
        rollout_id=None,
        sample_index=0,
        text=row["text"],
        finish_reason=row["finish_reason"],
        span=_span(row["predicted_start"], row["predicted_end"]),
        iou=row["iou"],
        tokens=tuple((words[i], "unscored") for i in row["completion_token_ids"]),
        reverse_kl=None,
    )


def _span(start: float | None, end: float | None) -> Span | None:
    return None if start is None or end is None else Span(start, end)
