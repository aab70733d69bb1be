"""The two protocols on answers whose numbers can be counted by hand."""

import polars as pl
import pytest

from opd_core.grounding import answer_iou, round_span
from opd_core.metrics import duration_bucket, grounding_metrics
from opd_core.templates import TEMPLATES
from opd_core.types import Span

TRUTH = Span(2.0, 6.0)
ANSWERS = [
    "The event happens in 2.0 - 6.0 seconds",  # 1
    "The event happens in 2.0 - 4.0 seconds",  # 0.5 exactly
    "The event happens in 2.4 - 6.4 seconds",  # 3.6 / 4.4; rounded it is the truth
    "The event happens in 8.0 - 9.0 seconds, or in 2.0 - 6.0 seconds",  # the first span counts
    "I do not know",
]


def rows() -> pl.LazyFrame:
    spans = [TEMPLATES["timelens"].parse_span(text) for text in ANSWERS]
    return pl.LazyFrame(
        {
            "predicted_start": [s and s.start for s in spans],
            "iou": [answer_iou(s, TRUTH) for s in spans],
            "iou_rounded": [answer_iou(s and round_span(s), TRUTH) for s in spans],
        }
    )


def test_both_protocols_on_the_same_answers():
    (found,) = grounding_metrics(rows()).collect().to_dicts()
    assert found["examples"] == 5 and found["parse_failures"] == 0.2
    assert found["strict_miou"] == pytest.approx((1 + 0.5 + 3.6 / 4.4) / 5)
    assert found["timelens_miou"] == pytest.approx((1 + 0.5 + 1) / 5)
    assert found["strict_r1_50"] == 0.4, "an IoU of exactly 0.5 does not count"
    assert found["timelens_r1_50"] == 0.6, "here it does"
    assert found["strict_r1_30"] == found["timelens_r1_30"] == 0.6
    assert found["strict_r1_70"] == found["timelens_r1_70"] == 0.4


def test_a_length_at_a_limit_begins_the_next_bucket():
    seconds = pl.DataFrame({"s": [0.5, 29.9, 30.0, 59.9, 60.0, 119.0, 120.0, 299.0, 300.0, 4000.0]})
    assert seconds.select(duration_bucket(pl.col("s"))).to_series().to_list() == [
        "0-30 s", "0-30 s", "30-60 s", "30-60 s", "60-120 s", "60-120 s", "120-300 s", "120-300 s",
        "300 s and more", "300 s and more",
    ]  # fmt: skip
