"""The axes of a chart: which numbers are marked, what stands there, where a value lies.

Everything is finite here: `finite` is where NaN and infinities become absent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LARGEST = 1e300
"""Beyond it differences overflow; such a value is drawn as this one."""
_LETTERS = ((1e12, "T", 1e12), (1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4))
"""Sizes, the letter of each, and from which number on it is used."""


def finite(value: float | None) -> float | None:
    """Gives a number that can be drawn; None, NaN and infinities are absent."""
    if value is None or not math.isfinite(value):
        return None
    return min(max(float(value), -_LARGEST), _LARGEST)


@dataclass(frozen=True)
class Axis:
    """One direction of a chart, from `low` to `high`, on `begin` to `end` of the viewBox."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    log: bool = False

    def at(self, value: float, begin: float, end: float) -> float:
        """Says where a value lies between two coordinates; one outside of the axis at its end."""
        if self.log:
            value, low, high = math.log10(value), math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
            if max(abs(low), abs(high)) > _LARGEST:  # their difference is no number
                value, low, high = value / 4, low / 4, high / 4
        share = (value - low) / (high - low)
        return begin + (end - begin) * min(max(share, 0.0), 1.0)


def linear(values: Iterable[float], *, marks: int = 5, whole: bool = False) -> Axis:
    """Makes an axis that holds the values, with about `marks` numbers of 1, 2 or 5 times 10^n.

    No values give 0 to 1, equal ones an axis around them; `whole` marks whole numbers only.
    """
    known = list(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    room = max(abs(low), abs(high))
    if high - low <= max(room * 1e-9, 1e-290):  # equal, or as good as equal in float64
        half = max(0.5, room * 1e-8) if whole else max(room * 0.1, 1e-290)
        low, high = (low - half, high + half) if room else (0.0, 1.0)
    step, exponent = _step((high - low) / marks, whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(_times(i, step, exponent) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, tuple(_label(tick, exponent, ticks) for tick in ticks))


def tight(values: Iterable[float], *, marks: int = 5, whole: bool = False) -> Axis:
    """Makes an axis from the least to the greatest of the values, with marks as `linear` has them.

    Of equal values, and of none, it is the axis of `linear`.
    """
    known = list(values)
    axis = linear(known, marks=marks, whole=whole)
    low, high = min(known, default=0.0), max(known, default=0.0)
    inside = [
        (tick, label)
        for tick, label in zip(axis.ticks, axis.labels, strict=True)
        if low <= tick <= high
    ]
    if len(inside) < 2:
        return axis
    ticks, labels = zip(*inside, strict=True)
    return Axis(low, high, ticks, labels)


def logarithmic(values: Iterable[float], *, marks: int = 5) -> Axis:
    """Makes an axis of powers of ten that holds the values above zero; no other has a place on it.

    Values within few decades have 2 and 5 times the powers marked too.
    """
    known = [max(value, 1e-300) for value in values if value > 0] or [0.1, 1.0]
    low, high = math.log10(min(known)), math.log10(max(known))
    first, last = math.floor(low + 1e-9), math.ceil(high - 1e-9)
    last = max(last, first + 1)
    every = max(1, math.ceil((last - first) / marks))
    times = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [float(f"{m}e{power}") for power in range(first, last, every) for m in times]
    if (last - first) % every == 0:
        ticks.append(float(f"1e{last}"))
    ends = float(f"1e{first}"), float(f"1e{last}")
    return Axis(*ends, tuple(ticks), tuple(f"{tick:.4g}" for tick in ticks), log=True)


def number(value: float) -> str:
    """Writes a number as a person reads it: whole ones in thousands, others with four digits."""
    if abs(value) < 1e15 and float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def shown_labels(count: int, most: int) -> Sequence[int]:
    """Chooses which of `count` labels are written where `most` have room: each n-th."""
    return range(0, count, max(1, math.ceil(count / max(1, most))))


def _step(rough: float, whole: bool) -> tuple[float, int]:
    """Gives the step of 1, 2 or 5 times 10^n next to `rough`, and n."""
    exponent = math.floor(math.log10(rough))
    if whole and exponent < 0:
        return 1.0, 0
    for factor in (1, 2, 5):
        step = float(f"{factor}e{exponent}")
        if rough <= step * (1 + 1e-9):
            return step, exponent
    return float(f"1e{exponent + 1}"), exponent + 1


def _times(count: int, step: float, exponent: int) -> float:
    """Multiplies without a tail of float digits: 3 times 0.1 is 0.3."""
    value = count * step
    return round(value, -exponent) if -300 < exponent < 0 else value


def _label(tick: float, exponent: int, ticks: Sequence[float]) -> str:
    largest = max(abs(tick) for tick in ticks)
    if tick == 0:
        return "0"
    if largest >= 1e15 or largest < 1e-3:
        digits = max(0, math.floor(math.log10(abs(tick)) + 1e-9) - exponent)
        return (
            f"{tick:.{min(digits, 16)}e}".replace("e-0", "e-")
            .replace("e+0", "e")
            .replace("e+", "e")
        )
    step = float(f"1e{exponent}")
    for size, letter, least in _LETTERS:
        if largest >= least and step >= size / 10:
            return f"{tick / size:.{0 if step >= size else 1}f}{letter}"
    return f"{tick:.{max(0, -exponent)}f}"
