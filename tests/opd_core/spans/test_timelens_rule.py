"""TimeLens' reading of an answer: values that its released evaluation gives, one a kind."""

import pytest

from opd_core.spans.protocols.timelens import PROTOCOL as TIMELENS
from opd_core.spans.protocols.timelens import parse_timelens
from opd_core.types import Span


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The event happens in 3.0 - 7.5 seconds", (3.0, 7.5)),
        ("The event happens in <3.0 seconds> - <7.5 seconds>", (3.0, 7.5)),
        ("The event happens in 3.0s - 7.5s", (3.0, 7.0)),  # the unit cuts the fraction off
        ("The event happens in 3.0 − 7.5 seconds", (3.0, 7.5)),
        ("The event happens in 3 --> 7 seconds", (3.0, 7.0)),
        ("start_time: 3.0s\nend_time: 7.5s", (3.0, 7.0)),
        ("**3.0** - **7.5** seconds", (3.0, 7.5)),
        ("The event happens in 3 minutes 5 seconds to 3 minutes 10 seconds", (3.0, 5.0)),
        ("The event happens in 2:30 - 2:45 minutes", (150.0, 165.0)),
        ("The event happens in 3. - 7. seconds", (3.0, 7.0)),
        ("The event happens between frame 12 and frame 36", (12.0, 36.0)),
        ("Between the 3rd and 7th second", None),
        ("A group of 5 to 7 people. It happens in 12.0 - 17.5 seconds", (12.0, 17.5)),
        ("<think>1 to 2 seconds</think> It happens in 12.0 - 17.5 seconds", (12.0, 17.5)),
        ("<think>1 - 2 seconds</think> It happens in 12.0 - 17.5 seconds", (1.0, 2.0)),
        ("At 9 - 10, or at 00:03 and 00:07", (3.0, 7.0)),  # clocks go first
        ("at 1:30 for 5 - 10", (5.0, 10.0)),  # one clock is no span
        ("1:02:03.5 to 1:02:10", (3723.5, 3730.0)),
        ("00:03.5s and 00:07.5s", (3.0, 7.0)),
        ("FROM 3 TO 7", (3.0, 7.0)),
        ("3to7", None),
        ("3.0秒到7.5秒", None),
        ("-3.0 - 7.5", (3.0, 7.5)),
        ("3.0 - 7.5.0", (3.0, 7.5)),
        ("7.5 - 3.0, then 4 - 9", None),  # the first pair, reversed
        ("3.0 - 1e3", None),
        ("3.0", None),
        ("", None),
    ],
)
def test_what_its_evaluation_reads(text: str, said: tuple[float, float] | None) -> None:
    assert parse_timelens(text) == (said and Span(*said))


def test_its_rounding_is_half_to_even() -> None:
    span = parse_timelens("The event happens in 77.0 - 92.5 seconds")
    assert TIMELENS.iou(span, [Span(77.0, 108.0)]) == pytest.approx(15 / 31)
    assert TIMELENS.iou(Span(0.5, 1.5), [Span(0.0, 2.0)]) == 1.0
    assert TIMELENS.iou(Span(1.6, 2.4), [Span(1.0, 3.0)]) == 0.0, "rounded, it is empty"


def test_only_the_first_window_counts() -> None:
    assert TIMELENS.iou(Span(2.0, 6.0), [Span(8.0, 9.0), Span(2.0, 6.0)]) == 0.0
