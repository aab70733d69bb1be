"""Numbers over evaluation rows, in polars: mean IoU and recall at an IoU, by named protocol.

`strict`: no rounding, IoU > m. `timelens`: the prediction rounded to whole seconds, IoU >= m.
With integer spans almost a tenth of IoUs are exactly 0.5, so the two differ by several points on
the same answers: always name the one a number is of.
"""

from __future__ import annotations

import polars as pl

THRESHOLDS = (0.3, 0.5, 0.7)


def grounding_metrics(evaluations: pl.LazyFrame, *by: str) -> pl.LazyFrame:
    """One row a group: examples, miou, r1_30/50/70 of each protocol, parse_failures (a share).

    `evaluations`: iou, iou_rounded, predicted_start and the columns of `by`.
    """
    aggregates = [
        pl.len().alias("examples"),
        pl.col("iou").mean().alias("strict_miou"),
        pl.col("iou_rounded").mean().alias("timelens_miou"),
        pl.col("predicted_start").is_null().mean().alias("parse_failures"),
    ]
    for m in THRESHOLDS:
        aggregates.append((pl.col("iou") > m).mean().alias(f"strict_r1_{m * 100:.0f}"))
        aggregates.append((pl.col("iou_rounded") >= m).mean().alias(f"timelens_r1_{m * 100:.0f}"))
    return evaluations.group_by(*by).agg(aggregates) if by else evaluations.select(aggregates)
