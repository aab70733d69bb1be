"""The teacher's own answers that another run has: the same example, teacher and question.

They are computed once for a data set (their seeds are of no run) and copied by any run that names
one which has them (`teacher.cache`). A copy is a row of its own that names the run which asked. An
example is known by its video's path, not its content: focus holds the pixels that a copied answer
was given to against those of the round's rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from opd_core.types import TeacherPrediction, VideoOPDError
from storage.runs.run import Run

if TYPE_CHECKING:
    from flows.stage.prepare import Work
    from flows.teachers import Teacher


def copies(teacher: Teacher, example_ids: Sequence[str]) -> list[TeacherPrediction]:
    """All k answers of a teacher to each of its examples that `teacher.cache` has them of.

    Raises `VideoOPDError` when there is no run at `teacher.cache`.
    """
    settings = teacher.config.teacher
    cache = settings.cache
    if cache is None or not example_ids:
        return []
    try:
        other = Run.open(cache)
    except VideoOPDError as error:
        raise VideoOPDError(f"teacher.cache: {error}") from None
    same = (pl.col("teacher_hash") == teacher.weights_hash) & (
        pl.col("question_hash") == teacher.question_hash
    )
    wanted = pl.col("example_id").is_in(list(example_ids))
    answers: dict[str, list[TeacherPrediction]] = {}
    for row in other.read("teacher_predictions", TeacherPrediction, same & wanted):
        answers.setdefault(row.example_id, []).append(row)
    return [
        replace(row, teacher_id=teacher.name, reused_from=row.reused_from or other.run_id)
        for example_id in example_ids
        if len(rows := answers.get(example_id, [])) == settings.predictions
        for row in sorted(rows, key=lambda r: r.prediction_index)
    ]


def check_pixels(work: Work, policy_version: int) -> None:
    """Raise `VideoOPDError` when a copied answer was given to other pixels than the rollouts."""
    copied = (
        work.predictions()
        .filter(pl.col("reused_from").is_not_null())
        .select("example_id", "pixel_hash")
        .unique()
    )
    mine = work.run.rollouts().filter(pl.col("policy_version") == policy_version)
    other = mine.select("example_id", seen="pixel_hash").unique().join(copied, on="example_id")
    wrong = other.filter(pl.col("seen") != pl.col("pixel_hash")).sort("example_id").collect()
    if wrong.height:
        raise VideoOPDError(
            f"the teacher's answers to {wrong.height} examples, {wrong['example_id'][0]} among "
            f"them, were copied from {work.teachers.caches or 'another run'} and are to other "
            "pixels than this run's videos have; start a new run without teacher.cache"
        )
