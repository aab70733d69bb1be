"""Spans: IoU against sets of instants, rounding, and the default prompt's answer."""

from hypothesis import given
from hypothesis import strategies as st

from opd_core.spans.answer_reader import parse_span
from opd_core.spans.grounding import answer_iou, format_answer, round_span, temporal_iou
from opd_core.types import Span

tenths = st.integers(0, 9999).map(lambda n: n / 10)
spans = st.tuples(tenths, tenths).filter(lambda s: s[0] < s[1]).map(lambda s: Span(*s))


@given(spans)
def test_an_answer_as_asked_for_is_read_back(span: Span) -> None:
    assert parse_span(format_answer(span)) == span


whole = st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda s: s[0] < s[1])


@given(whole, whole)
def test_iou_is_that_of_sets_of_seconds(a: tuple[int, int], b: tuple[int, int]) -> None:
    one, other = set(range(*a)), set(range(*b))
    assert temporal_iou(Span(*a), Span(*b)) == len(one & other) / len(one | other)


def test_iou_of_touching_spans_is_0_and_of_no_answer_too() -> None:
    assert temporal_iou(Span(0, 3), Span(3, 5)) == 0.0
    assert answer_iou(None, Span(0, 3)) == 0.0


def test_of_several_spans_of_truth_the_best_counts() -> None:
    assert answer_iou(Span(2, 4), Span(8, 9), Span(2, 6), Span(3, 20)) == 0.5
    assert answer_iou(None, Span(8, 9), Span(2, 6)) == 0.0


def test_rounding_is_half_to_even() -> None:
    assert round_span(Span(0.5, 2.5)) == Span(0, 2)
    assert round_span(Span(77.0, 92.5)) == Span(77, 92)
    assert round_span(Span(1.5, 3.5)) == Span(2, 4)
    assert round_span(Span(1.4, 1.6)) == Span(1, 2)
