"""Numbers over evaluation rows, in polars: mean IoU and recall at an IoU, by each protocol of
`protocols.py`.

Rows from before a protocol's answers were kept have null there: a number over any of them is null.
"""

from __future__ import annotations

import polars as pl

from opd_core.spans.protocols import PROTOCOLS

THRESHOLDS = (0.3, 0.5, 0.7)
RECALLS = tuple(f"r1_{m * 100:.0f}" for m in THRESHOLDS)
"""R1@m: the share of examples whose answer reaches m."""

PER_EXAMPLE: dict[str, pl.Expr] = {}
"""metric -> what one example adds to it; the metric is the mean."""
NO_SPAN: dict[str, str] = {}
"""protocol -> the metric that is the share of answers in which it reads no span."""
for _protocol in PROTOCOLS:
    _iou = pl.col(_protocol.iou_column)
    PER_EXAMPLE[f"{_protocol.name}_miou"] = _iou
    for _m, _name in zip(THRESHOLDS, RECALLS, strict=True):
        PER_EXAMPLE[f"{_protocol.name}_{_name}"] = (
            _iou > _m if _protocol.comparison == ">" else _iou >= _m
        )
    _own = _protocol.reader is None
    NO_SPAN[_protocol.name] = "parse_failures" if _own else f"{_protocol.name}_parse_failures"
    _absent = pl.col(f"{_protocol.column}_start").is_null()
    PER_EXAMPLE[NO_SPAN[_protocol.name]] = pl.when(_iou.is_not_null()).then(_absent)

DURATIONS = (30.0, 60.0, 120.0, 300.0)
"""Seconds at which one bucket of lengths of videos ends and the next begins."""


def grounding_metrics(evaluations: pl.LazyFrame, *by: str) -> pl.LazyFrame:
    """One row a group: examples, the metrics of PER_EXAMPLE; null where a row has no value.

    `evaluations`: each protocol's IoU and start, and the columns of `by`.
    """
    aggregates = [pl.len().alias("examples")]
    for name, value in PER_EXAMPLE.items():
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
