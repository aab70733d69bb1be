"""Spans: IoU against sets of instants, and a table of answers as models write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.grounding import (
    answer_iou,
    format_answer,
    parse_span,
    round_span,
    temporal_iou,
)
from opd_core.types import Span

ANSWERS = [
    ("The event happens in 3.0 - 7.5 seconds", (3.0, 7.5)),
    ("The event happens in 3.0 - 7.5 seconds.", (3.0, 7.5)),
    ("The event happens in 3 - 7 seconds", (3.0, 7.0)),
    ("The event happens in 12.25-13.5 seconds", (12.25, 13.5)),
    ("3.0s to 7.5s", (3.0, 7.5)),
    ("from 3 seconds to 7 seconds", (3.0, 7.0)),
    ("between 3 and 7 seconds", (3.0, 7.0)),
    ("from 3 until 7", (3.0, 7.0)),
    ("[3, 7.5]", (3.0, 7.5)),
    ("(3.0, 7.5)", (3.0, 7.5)),
    ("3.0 – 7.5 seconds", (3.0, 7.5)),
    ("00:03 - 01:07.5", (3.0, 67.5)),
    ("1:00:00 to 1:00:10", (3600.0, 3610.0)),
    ('{"start": 3, "end": 7}', (3.0, 7.0)),
    ('{"start_time": 3.5, "end_time": 7}', (3.5, 7.0)),
    ("First 1 - 2 seconds, then 4 - 9 seconds", (1.0, 2.0)),
    ("", None),
    ("I cannot see it.", None),
    ("The event happens in 3.0 seconds", None),
    ("The event happens in 7.5 - 3.0 seconds", None),
    ("The event happens in 3.0 - 3.0 seconds", None),
    ("The event happens in <start time> - <end time> seconds", None),
    ("The event happens in nan - inf seconds", None),
    ("The event happens in 3..0 - 7 seconds", None),
]


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_parse_span(text, expected):
    assert parse_span(text) == (None if expected is None else Span(*expected))


tenths = st.integers(0, 9999).map(lambda n: n / 10)
spans = st.tuples(tenths, tenths).filter(lambda s: s[0] < s[1]).map(lambda s: Span(*s))


@given(spans)
def test_an_answer_as_asked_for_is_read_back(span):
    assert parse_span(format_answer(span)) == span


@given(st.text())
def test_no_text_breaks_the_parser(text):
    span = parse_span(text)
    assert span is None or span.start < span.end


whole = st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda s: s[0] < s[1])


@given(whole, whole)
def test_iou_is_that_of_sets_of_seconds(a, b):
    one, other = set(range(*a)), set(range(*b))
    assert temporal_iou(Span(*a), Span(*b)) == len(one & other) / len(one | other)


def test_iou_of_touching_spans_is_0_and_of_no_answer_too():
    assert temporal_iou(Span(0, 3), Span(3, 5)) == 0.0
    assert answer_iou(None, Span(0, 3)) == 0.0


def test_of_several_spans_of_truth_the_best_counts():
    assert answer_iou(Span(2, 4), Span(8, 9), Span(2, 6), Span(3, 20)) == 0.5
    assert answer_iou(None, Span(8, 9), Span(2, 6)) == 0.0


def test_rounding_is_half_up_not_half_even():
    assert round_span(Span(0.5, 2.5)) == Span(1, 3)
    assert round_span(Span(1.4, 1.6)) == Span(1, 2)
