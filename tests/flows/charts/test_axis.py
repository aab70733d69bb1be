import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flows.charts.axis import finite, linear, logarithmic, number, shown_labels, tight

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(NUMBERS, max_size=8), st.booleans(), st.integers(1, 9))
@example([0.0, 5e-324], False, 5)
@example([-1.7e308, 1.7e308], False, 5)
@example([1e9, 1e9 + 1], True, 3)
def test_an_axis_holds_its_values_and_marks_them_in_even_steps(
    values: list[float], whole: bool, marks: int
) -> None:
    known = [v for v in map(finite, values) if v is not None]

    axis = linear(known, marks=marks, whole=whole)

    room = 1e-8 * max([abs(v) for v in known] + [axis.high - axis.low])
    assert all(axis.low - room <= v <= axis.high + room for v in known)
    assert axis.low < axis.high and math.isfinite(axis.high - axis.low)
    assert 2 <= len(axis.ticks) <= marks + 3
    steps = [b - a for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert max(steps) - min(steps) <= 1e-6 * max(steps)
    assert len(set(axis.labels)) == len(axis.labels) == len(axis.ticks)
    assert all(0 <= axis.at(v, 0, 100) <= 100 for v in known)
    if whole and axis.high < 1e15:
        assert all(tick.is_integer() or len(known) < 1 for tick in axis.ticks)


@given(st.lists(st.floats(min_value=5e-324, max_value=1e300), max_size=8))
@example([5e-324, 1e300])
@example([1.0])
def test_a_logarithmic_axis_holds_its_values(values: list[float]) -> None:
    axis = logarithmic(values)

    assert all(axis.low * (1 - 1e-6) <= max(v, 1e-300) <= axis.high * (1 + 1e-6) for v in values)
    assert len(set(axis.labels)) == len(axis.ticks) >= 2
    assert sorted(axis.ticks) == list(axis.ticks)
    assert all(0 <= axis.at(v, 0, 100) <= 100 for v in values)


def test_marks_are_what_a_person_would_choose() -> None:
    assert linear([0.13, 0.58]).labels == ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6")
    assert linear([0, 4], whole=True).labels == ("0", "1", "2", "3", "4")
    assert linear([0, 43_000]).labels == ("0", "10k", "20k", "30k", "40k", "50k")
    assert linear([0, 2e6]).labels == ("0", "0.5M", "1.0M", "1.5M", "2.0M")
    assert linear([0, 3e-5]).labels == ("0", "1e-5", "2e-5", "3e-5")
    assert linear([7.0]).low < 7 < linear([7.0]).high
    assert logarithmic([2e-6, 3e-2]).labels == ("1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1")
    assert logarithmic([2.0, 7.0]).labels == ("1", "2", "5", "10")


@given(st.lists(NUMBERS, max_size=8), st.booleans())
def test_a_tight_axis_ends_where_the_values_do(values: list[float], whole: bool) -> None:
    known = [v for v in map(finite, values) if v is not None]

    axis = tight(known, whole=whole)

    assert axis.low < axis.high and len(axis.ticks) == len(axis.labels) >= 2
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    if axis != linear(known, whole=whole):
        assert (axis.low, axis.high) == (min(known), max(known))
    assert tight([0, 63], whole=True).high == 63 and tight([0, 63]).labels == (
        "0",
        "20",
        "40",
        "60",
    )


def test_a_logarithmic_place_is_the_share_of_the_decades() -> None:
    axis = logarithmic([1e-4, 1.0])
    assert axis.at(1e-2, 0, 100) == pytest.approx(50)
    assert axis.at(3e-3, 0, 100) == pytest.approx(25 * (4 + math.log10(3e-3)))


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0.0, 12.0, 1234567.0, 0.123456, 1234.56, 1e-7, 1e20)] == [
        "0", "12", "1,234,567", "0.1235", "1,234.6", "1e-07", "1e+20",
    ]  # fmt: skip


def test_labels_that_have_no_room_are_left_out_evenly() -> None:
    assert list(shown_labels(10, 4)) == [0, 3, 6, 9]
    assert list(shown_labels(3, 9)) == [0, 1, 2]
    assert list(shown_labels(3, 0)) == [0]
