"""Focus: which rollouts are worth an update, by the curriculum of the config, in polars.

TRPV (arXiv 2602.02994) comes before any ranking by disagreement: the mean IoU of the teacher's own
k answers has to reach `min_teacher_iou`. What is taken of the rest is one module a curriculum:

    tvdf       top_k by disagreement, or its other three selections     (tvdf.py)
    scc        a frontier by disagreement, and anchors                  (scc.py)
    timelens   a Gaussian draw over the student's IoU, no teacher       (timelens.py)
    uniform    all, no teacher                                          (uniform.py)

With disagreement = "iou" none needs a log-probability: `candidates` says before scoring what focus
can still take. With "reverse_kl" those are all rollouts that the ranking is to hold.

LazyFrame in, LazyFrame out. NaN is never reliable and never selected (`NaN >= 0.3` is true in
polars). Ties go to the smaller id and draws hash the id, so that the same rows in any order always
give the same selection.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

import polars as pl

from opd_core.config.sections import FocusSection
from opd_core.extensions import CURRICULA
from opd_core.focus.picked import PICKED, SELECTED
from opd_core.types import GroundingExample

ROOM_FOR_ALL = 2**31 - 1
NO_SCORE = "no teacher score"
GONE = "no longer annotated"
"""Its annotation was removed after the round had drawn it; it has no part in any ranking."""


def needs_predictions(settings: FocusSection) -> bool:
    """Whether the teacher has to answer the examples itself."""
    return CURRICULA[settings.curriculum].ranked is not None


def needs_scores(settings: FocusSection) -> bool:
    """Whether the ranking is by the teacher's log-probs."""
    return needs_predictions(settings) and settings.disagreement == "reverse_kl"


def sampling_k1s(rollouts: pl.LazyFrame, scores: pl.LazyFrame) -> pl.LazyFrame:
    """rollout_id, reverse_kl: the k1 estimate of KL(pi_v || q) on an answer, nats a token, which is
    the mean of sampling - teacher log-probs over its tokens.

    `rollouts`: rollout_id, sampling_logprobs. `scores`: rollout_id, teacher_logprobs, of one
    teacher. What has no score has no row.
    """
    sampling, teacher = (
        pl.col(name).cast(pl.List(pl.Float64)).list.mean()
        for name in ("sampling_logprobs", "teacher_logprobs")
    )
    return rollouts.join(scores, on="rollout_id").select(
        "rollout_id", reverse_kl=sampling - teacher
    )


def select(
    rollouts: pl.LazyFrame,
    predictions: pl.LazyFrame,
    settings: FocusSection,
    seed: int = 0,
    sampling_k1s: pl.LazyFrame | None = None,
) -> pl.LazyFrame:
    """One row a rollout with the numbers of the decision, in columns of `types.Selection`.

    `rollouts`: rollout_id, example_id, policy_version, student_iou.
    `predictions`: example_id, iou (the teacher's answers); may be empty for curricula without.
    `sampling_k1s`: rollout_id, reverse_kl; needed exactly when `needs_scores`.
    A unit's numbers are the means over its rollouts, of reverse_kl over those that are scored.
    """
    if needs_scores(settings) and sampling_k1s is None:
        raise ValueError("to rank by reverse_kl takes the k1 estimates of the rollouts")
    chosen = CURRICULA[settings.curriculum]
    by_kl = needs_scores(settings)
    scored = _with_numbers(rollouts, predictions, settings, sampling_k1s if by_kl else None)
    faults: list[tuple[pl.Expr, str]] = []
    if chosen.ranked is not None:
        faults.append((~_is_number("teacher_iou"), "teacher unknown"))
        faults.append((pl.col("teacher_iou") < settings.min_teacher_iou, "teacher unreliable"))
    if chosen.needs_student:
        faults.append((~_is_number("student_iou"), "student unknown"))
    if chosen.ranked is not None and by_kl:
        unscored = chosen.ranked(settings) & ~_is_number("reverse_kl")
        faults.append((unscored, NO_SCORE))
    first = (pl.when(at_fault).then(pl.lit(name)) for at_fault, name in faults)
    scored = scored.with_columns(fault=pl.coalesce(*first, pl.lit(None, pl.String)))
    units = (
        scored.filter(pl.col("fault").is_null())
        .select(
            "unit", "teacher_iou", "student_iou",
            measure=pl.col("reverse_kl" if by_kl else "disagreement"),
        )
        .unique("unit", keep="first", maintain_order=True)
    )  # fmt: skip
    picks = units.map_batches(
        lambda frame: chosen.pick(frame, settings, seed),
        schema=PICKED,
        predicate_pushdown=False,
        projection_pushdown=False,
        slice_pushdown=False,
    )
    numbers = ("teacher_iou", "student_iou", "disagreement", "reverse_kl")
    return (
        scored.join(picks, on="unit", how="left", maintain_order="left")
        .with_columns(
            pl.col(numbers).fill_nan(None),
            curriculum=pl.lit(settings.curriculum),
            reason=pl.coalesce("fault", "picked"),
        )
        .select(
            "rollout_id",
            "policy_version",
            "example_id",
            "curriculum",
            (pl.col("reason") == SELECTED).alias("selected"),
            "reason",
            *numbers,
            "rank",
            "pool",
            "weight",
        )
    )


def _with_numbers(
    rollouts: pl.LazyFrame,
    predictions: pl.LazyFrame,
    settings: FocusSection,
    sampling_k1s: pl.LazyFrame | None,
) -> pl.LazyFrame:
    """The rollouts with the name and the numbers of their unit, in the order they came in."""
    teacher = predictions.group_by("example_id").agg(teacher_iou=pl.col("iou").mean())
    unit = "example_id" if settings.unit == "example" else "rollout_id"
    frame = rollouts.select("rollout_id", "example_id", "policy_version", "student_iou")
    if sampling_k1s is None:
        frame = frame.with_columns(reverse_kl=pl.lit(None, pl.Float64))
    else:
        frame = frame.join(sampling_k1s, on="rollout_id", how="left", maintain_order="left")
    if settings.unit == "example":
        frame = frame.with_columns(
            pl.col("student_iou").mean().over("example_id"),
            pl.col("reverse_kl").fill_nan(None).mean().over("example_id"),
        )
    return (
        frame.join(teacher, on="example_id", how="left", maintain_order="left")
        .with_columns(
            disagreement=pl.col("teacher_iou") - pl.col("student_iou"), unit=pl.col(unit)
        )
    )  # fmt: skip


def _is_number(name: str) -> pl.Expr:
    return pl.col(name).is_not_null() & pl.col(name).is_not_nan()


def candidates(
    rollouts: pl.LazyFrame, predictions: pl.LazyFrame, settings: FocusSection, seed: int = 0
) -> list[str]:
    """Ids of the rollouts that focus can still select, in order of id: what is worth scoring.

    Where the ranking needs scores, those are what would be taken if there were room for all of it;
    scc's anchors are drawn without scores, so of what the student knows only they are scored.
    """
    if needs_scores(settings):
        roomy = {"disagreement": "iou", "selection": "top_k"}
        settings = settings.model_copy(
            update=roomy | dict.fromkeys(("top_k", "frontier"), ROOM_FOR_ALL)
        )
    chosen = select(rollouts, predictions, settings, seed).filter(pl.col("selected"))
    ids: list[str] = chosen.select(pl.col("rollout_id").sort()).collect()["rollout_id"].to_list()
    return ids


def known_unreliable(predictions: pl.LazyFrame, settings: FocusSection) -> list[str]:
    """Ids of the examples that draw leaves out: their teacher is known to be unreliable."""
    if not needs_predictions(settings):
        return []
    teacher = predictions.group_by("example_id").agg(teacher_iou=pl.col("iou").mean())
    iou = pl.col("teacher_iou")
    unreliable = teacher.filter(
        iou.is_null() | iou.is_nan() | (iou < settings.min_teacher_iou)
    ).select(pl.col("example_id").sort())
    ids: list[str] = unreliable.collect()["example_id"].to_list()
    return ids


def by_video(examples: Sequence[GroundingExample]) -> list[GroundingExample]:
    """The examples in order of video and id: sentences of one video are neighbours."""
    return sorted(examples, key=lambda e: (e.video_path, e.example_id))


def draw_examples(
    examples: Sequence[GroundingExample],
    count: int,
    max_queries_per_video: int,
    seed: int,
    drawn_before: Mapping[str, int] | None = None,
    left_out: Collection[str] = (),
) -> list[GroundingExample]:
    """`count` examples (fewer where there are not as many) of videos in an order given by `seed`.

    A video's sentences come together, at most `max_queries_per_video` of them, because they share
    its prefix. Videos that earlier rounds drew less (`drawn_before`: example id -> times) come
    first, so a run sees all of its data before it sees any twice. The order of `examples` does not
    matter. `left_out` are ids that are not taken; they have no part in the order, so that two runs
    which leave out others still draw the same new videos.
    """
    times = drawn_before or {}
    generator = random.Random(seed)
    videos = [list(group) for _, group in groupby(by_video(examples), key=lambda e: e.video_path)]
    generator.shuffle(videos)
    videos.sort(key=lambda sentences: max(times.get(e.example_id, 0) for e in sentences))
    chosen: list[GroundingExample] = []
    for sentences in videos:
        generator.shuffle(sentences)
        sentences = [e for e in sentences if e.example_id not in left_out]
        chosen.extend(sentences[: min(max_queries_per_video, count - len(chosen))])
        if len(chosen) == count:
            break
    return chosen
