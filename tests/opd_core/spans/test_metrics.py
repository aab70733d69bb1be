"""The protocols on answers whose numbers can be counted by hand."""

import polars as pl
import pytest

from opd_core.extensions import TEMPLATES
from opd_core.spans.metrics import NO_SPAN, PER_EXAMPLE, RECALLS, duration_bucket, grounding_metrics
from opd_core.spans.protocols import PROTOCOLS, judged
from opd_core.types import Span
from storage.tables.columns import span_columns
from storage.tables.schemas import TABLES

TRUTH = (Span(2.0, 6.0), Span(20.0, 24.0))
ANSWERS = [
    "The event happens in 2.0 - 6.0 seconds",  # 1
    "The event happens in 2.0 - 4.0 seconds",  # 0.5 exactly
    "The event happens in 2.4 - 6.4 seconds",  # 3.6 / 4.4; rounded it is the truth
    "The event happens in 8.0 - 9.0 seconds, or in 2.0 - 6.0 seconds",  # the first span counts
    "The event happens in 20.0 - 24.0 seconds",  # the second window
    "The event happens in 2 seconds to 6 minutes",  # 2 - 360; TimeLens' reader: 2 - 6
    "2秒到6秒",  # TimeLens' reader: none
    "I do not know",
]


def rows() -> pl.LazyFrame:
    found = []
    for text in ANSWERS:
        row = judged(text, TEMPLATES["timelens"].parse_span(text), TRUTH)
        for name in ("predicted_span", "timelens_span"):
            span = row.pop(name) or (None, None)
            row |= dict(zip(span_columns(name), span, strict=True))
        found.append(row)
    return pl.LazyFrame(found)


def test_each_protocol_on_the_same_answers() -> None:
    (found,) = grounding_metrics(rows()).collect().to_dicts()
    assert found["examples"] == 8
    best = (1 + 0.5 + 3.6 / 4.4 + 0 + 1 + 4 / 358 + 1 + 0) / 8
    assert found["strict_miou"] == found["qvhighlights_miou"] == pytest.approx(best)
    assert found["timelens_miou"] == pytest.approx((1 + 0.5 + 1 + 0 + 0 + 1 + 0 + 0) / 8)
    assert found["strict_r1_50"] == 4 / 8, "an IoU of exactly 0.5 does not count"
    assert found["qvhighlights_r1_50"] == 5 / 8, "here it does"
    assert found["timelens_r1_50"] == 4 / 8
    assert found["timelens_r1_70"] == 3 / 8
    assert found["strict_r1_70"] == found["qvhighlights_r1_70"] == 4 / 8
    assert found["parse_failures"] == 1 / 8 and found["timelens_parse_failures"] == 2 / 8


def test_a_number_over_rows_that_lack_it_is_null_and_no_mean_of_the_others() -> None:
    older = pl.when(pl.int_range(pl.len()) < 3)
    lacking = rows().with_columns(
        older.then(None).otherwise(pl.col(name)).alias(name)
        for name in ("timelens_start", "timelens_end", "timelens_iou")
    )
    (found,) = grounding_metrics(lacking).collect().to_dicts()
    (whole,) = grounding_metrics(rows()).collect().to_dicts()
    of_timelens = {name for name in whole if name.startswith("timelens")}
    assert len(of_timelens) == 5
    assert {name for name, value in found.items() if value is None} == of_timelens
    assert all(found[name] == whole[name] for name in set(whole) - of_timelens)


def test_a_protocol_is_a_record_and_all_else_follows() -> None:
    names = [p.name for p in PROTOCOLS]
    assert names == ["strict", "timelens", "qvhighlights"]
    wanted = {f"{name}_{metric}" for name in names for metric in ("miou", *RECALLS)}
    assert set(PER_EXAMPLE) == wanted | set(NO_SPAN.values())
    columns = {column.name for column in TABLES["evaluations"].columns}
    for protocol in PROTOCOLS:
        assert {protocol.iou_column, *span_columns(f"{protocol.column}_span")} <= columns


def test_protocols_that_share_columns_share_what_is_in_them() -> None:
    kinds = {p.column: (p.reader, p.rounded, p.windows) for p in PROTOCOLS}
    assert all(kinds[p.column] == (p.reader, p.rounded, p.windows) for p in PROTOCOLS)


def test_a_length_at_a_limit_begins_the_next_bucket() -> None:
    seconds = pl.DataFrame({"s": [0.5, 29.9, 30.0, 59.9, 60.0, 119.0, 120.0, 299.0, 300.0, 4000.0]})
    assert seconds.select(duration_bucket(pl.col("s"))).to_series().to_list() == [
        "0-30 s", "0-30 s", "30-60 s", "30-60 s", "60-120 s", "60-120 s", "120-300 s", "120-300 s",
        "300 s and more", "300 s and more",
    ]  # fmt: skip
