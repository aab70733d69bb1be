"""Focus: which rollouts are worth an update (TVDF, arXiv 2602.02994), in polars.

TRPV keeps the examples on which the teacher is reliable: the mean IoU of its own k answers reaches
`min_teacher_iou`. DBTP takes, of those, the `top_k` on which teacher and student disagree most:
`disagreement = teacher_iou - student_iou`. Both are IoUs, so neither needs a log-probability;
`candidates` says before scoring what focus can still take.

LazyFrame in, LazyFrame out. NaN is never reliable and never selected (`NaN >= 0.3` is true in
polars). Ties go to the smaller id, so that the same rows always give the same selection.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import groupby

import polars as pl

from opd_core.config import FocusSection
from opd_core.types import GroundingExample

SELECTED = "selected"


def select(
    rollouts: pl.LazyFrame, predictions: pl.LazyFrame, settings: FocusSection
) -> pl.LazyFrame:
    """One row a rollout with the numbers of the decision, in the columns of `types.Selection`.

    `rollouts`: rollout_id, example_id, policy_version, student_iou.
    `predictions`: example_id, iou (the teacher's answers).
    """
    teacher = predictions.group_by("example_id").agg(teacher_iou=pl.col("iou").mean())
    mean_iou = pl.col("student_iou").mean().over("example_id")
    unit = "example_id" if settings.unit == "example" else "rollout_id"
    scored = (
        rollouts.select("rollout_id", "example_id", "policy_version", "student_iou")
        .with_columns(student_iou=mean_iou if settings.unit == "example" else pl.col("student_iou"))
        .join(teacher, on="example_id", how="left", maintain_order="left")
        .with_columns(disagreement=pl.col("teacher_iou") - pl.col("student_iou"))
    )
    known = pl.col("teacher_iou").is_not_null() & pl.col("teacher_iou").is_not_nan()
    comparable = pl.col("disagreement").is_not_null() & pl.col("disagreement").is_not_nan()
    reliable = known & (pl.col("teacher_iou") >= settings.min_teacher_iou)
    if settings.curriculum == "uniform":
        eligible, wanted = pl.lit(True), pl.lit(True)
    else:
        eligible = reliable & comparable
        wanted = pl.col("rank").is_not_null() & (pl.col("rank") < settings.top_k)
    ranks = (
        scored.filter(eligible)
        .select(unit, "disagreement")
        .unique(unit, keep="first", maintain_order=True)
        .sort("disagreement", unit, descending=[True, False], nulls_last=True)
        .with_row_index("rank")
        .select(unit, pl.col("rank").cast(pl.Int32))
        .filter(pl.lit(settings.curriculum != "uniform"))
    )
    reason = (
        pl.when(wanted)
        .then(pl.lit(SELECTED))
        .when(~known)
        .then(pl.lit("teacher unknown"))
        .when(~reliable)
        .then(pl.lit("teacher unreliable"))
        .when(~comparable)
        .then(pl.lit("student unknown"))
        .otherwise(pl.lit("disagreement outside top k"))
    )
    return (
        scored.join(ranks, on=unit, how="left", maintain_order="left")
        .with_columns(
            curriculum=pl.lit(settings.curriculum), reason=reason, selected=wanted.fill_null(False)
        )
        .select(
            "rollout_id",
            "policy_version",
            "example_id",
            "curriculum",
            "selected",
            "reason",
            pl.col("teacher_iou", "student_iou", "disagreement").fill_nan(None),
            "rank",
        )
    )


def candidates(
    rollouts: pl.LazyFrame, predictions: pl.LazyFrame, settings: FocusSection
) -> list[str]:
    """Ids of the rollouts that focus can still select, in order of id: what is worth scoring."""
    chosen = select(rollouts, predictions, settings).filter(pl.col("selected"))
    ids: list[str] = chosen.select(pl.col("rollout_id").sort()).collect()["rollout_id"].to_list()
    return ids


def known_unreliable(predictions: pl.LazyFrame, settings: FocusSection) -> list[str]:
    """Ids of the examples that draw leaves out: their teacher is known to be unreliable."""
    teacher = predictions.group_by("example_id").agg(teacher_iou=pl.col("iou").mean())
    if settings.curriculum == "uniform":
        return []
    iou = pl.col("teacher_iou")
    unreliable = teacher.filter(
        iou.is_null() | iou.is_nan() | (iou < settings.min_teacher_iou)
    ).select(pl.col("example_id").sort())
    ids: list[str] = unreliable.collect()["example_id"].to_list()
    return ids


def by_video(examples: Sequence[GroundingExample]) -> list[GroundingExample]:
    """In order of video and id: sentences of one video are neighbours."""
    return sorted(examples, key=lambda e: (e.video_path, e.example_id))


def draw_examples(
    examples: Sequence[GroundingExample],
    count: int,
    max_queries_per_video: int,
    seed: int,
    drawn_before: Mapping[str, int] | None = None,
) -> list[GroundingExample]:
    """`count` examples (fewer where there are not as many) of videos in an order given by `seed`.

    A video's sentences come together, at most `max_queries_per_video` of them, because they share
    its prefix. Videos that earlier rounds drew less (`drawn_before`: example id -> times) come
    first, so a run sees all of its data before it sees any twice. The order of `examples` does not
    matter.
    """
    times = drawn_before or {}
    generator = random.Random(seed)
    videos = [list(group) for _, group in groupby(by_video(examples), key=lambda e: e.video_path)]
    generator.shuffle(videos)
    videos.sort(key=lambda sentences: max(times.get(e.example_id, 0) for e in sentences))
    chosen: list[GroundingExample] = []
    for sentences in videos:
        generator.shuffle(sentences)
        chosen.extend(sentences[: min(max_queries_per_video, count - len(chosen))])
        if len(chosen) == count:
            break
    return chosen
