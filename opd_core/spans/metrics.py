"""Numbers over evaluation rows, in polars: mean IoU and recall at an IoU, by each known protocol.

Rows from before a protocol's answers were kept have null there: a number over any of them is null.
"""

from __future__ import annotations

import polars as pl

from opd_core.spans.protocols.known import FIELDS, PROTOCOLS
from opd_core.spans.protocols.protocol import recall

DURATIONS = (30.0, 60.0, 120.0, 300.0)
"""Seconds at which one bucket of lengths of videos ends and the next begins."""


def per_example() -> dict[str, pl.Expr]:
    """metric -> what one example adds to it; the metric is the mean."""
    values: dict[str, pl.Expr] = {}
    for name in PROTOCOLS:
        protocol = PROTOCOLS[name]
        start, iou = _start_and_iou(name)
        values[f"{name}_miou"] = iou
        for m in protocol.thresholds:
            values[f"{name}_{recall(m)}"] = iou > m if protocol.comparison == ">" else iou >= m
        values.setdefault(no_span(name), pl.when(iou.is_not_null()).then(start.is_null()))
    return values


def no_span(name: str) -> str:
    """The metric that is the share of answers in which a protocol reads no span."""
    return "parse_failures" if PROTOCOLS[name].reader is None else f"{name}_parse_failures"


def titles() -> dict[str, str]:
    """The end of a metric's name -> what people call it, of all that any protocol gives."""
    return {end: title for name in PROTOCOLS for end, title in PROTOCOLS[name].metrics.items()}


def _start_and_iou(name: str) -> tuple[pl.Expr, pl.Expr]:
    """The columns of a protocol, null where it has not judged the answer."""
    if name in FIELDS:
        span, iou = FIELDS[name]
        return pl.col(f"{span.removesuffix('_span')}_start"), pl.col(iou)
    one = pl.element()
    of_it = pl.col("judgements").list.eval(one.filter(one.struct.field("protocol") == name))
    made = of_it.list.first().struct
    return made.field("start"), made.field("iou")


def grounding_metrics(evaluations: pl.LazyFrame, *by: str) -> pl.LazyFrame:
    """One row a group: examples, the metrics of `per_example`; null where a row has no value.

    `evaluations`: each protocol's IoU and start, and the columns of `by`.
    """
    aggregates = [pl.len().alias("examples")]
    for name, value in per_example().items():
        whole = pl.when(value.null_count() == 0).then(value.mean())
        aggregates.append(whole.alias(name))
    return evaluations.group_by(*by).agg(aggregates) if by else evaluations.select(aggregates)


def duration_bucket(duration: pl.Expr) -> pl.Expr:
    """`0-30 s`, `30-60 s`, ..., `300 s and more`: a video of exactly 30 s is in the second."""
    ends = [f"{end:.0f}" for end in DURATIONS]
    names = [f"{start}-{end} s" for start, end in zip(["0", *ends], ends, strict=False)]
    limits = zip(DURATIONS, names, strict=True)
    buckets = [pl.when(duration < limit).then(pl.lit(name)) for limit, name in limits]
    return pl.coalesce(*buckets, pl.lit(f"{ends[-1]} s and more"))
