"""Numbers over evaluation rows, in polars: mean IoU and recall at an IoU, by named protocol.

`strict`: no rounding, IoU > m. `timelens`: the prediction rounded to whole seconds, IoU >= m.
With integer spans almost a tenth of IoUs are exactly 0.5, so the two differ by several points on
the same answers: always name the one a number is of. Both read the first span of an answer, count
an answer without one as IoU 0, and hold it against the span of truth that it fits best.
"""

from __future__ import annotations

import polars as pl

THRESHOLDS = (0.3, 0.5, 0.7)
PROTOCOLS = ("strict", "timelens")
RECALLS = tuple(f"r1_{m * 100:.0f}" for m in THRESHOLDS)
"""R1@m: the share of examples whose answer reaches m."""

PER_EXAMPLE: dict[str, pl.Expr] = {
    "strict_miou": pl.col("iou"),
    "timelens_miou": pl.col("iou_rounded"),
    "parse_failures": pl.col("predicted_start").is_null(),
}
"""metric -> what one example adds to it; the metric is the mean."""
for _m, _name in zip(THRESHOLDS, RECALLS, strict=True):
    PER_EXAMPLE[f"strict_{_name}"] = pl.col("iou") > _m
    PER_EXAMPLE[f"timelens_{_name}"] = pl.col("iou_rounded") >= _m

DURATIONS = (30.0, 60.0, 120.0, 300.0)
"""Seconds at which one bucket of lengths of videos ends and the next begins."""


def grounding_metrics(evaluations: pl.LazyFrame, *by: str) -> pl.LazyFrame:
    """One row a group: examples, miou, r1_30/50/70 of each protocol, parse_failures (a share).

    `evaluations`: iou, iou_rounded, predicted_start and the columns of `by`.
    """
    aggregates = [pl.len().alias("examples")]
    aggregates += [value.mean().alias(name) for name, value in PER_EXAMPLE.items()]
    return evaluations.group_by(*by).agg(aggregates) if by else evaluations.select(aggregates)


def duration_bucket(duration: pl.Expr) -> pl.Expr:
    """`0-30 s`, `30-60 s`, ..., `300 s and more`: a video of exactly 30 s is in the second."""
    ends = [f"{end:.0f}" for end in DURATIONS]
    names = [f"{start}-{end} s" for start, end in zip(["0", *ends], ends, strict=False)]
    limits = zip(DURATIONS, names, strict=True)
    buckets = [pl.when(duration < limit).then(pl.lit(name)) for limit, name in limits]
    return pl.coalesce(*buckets, pl.lit(f"{ends[-1]} s and more"))
