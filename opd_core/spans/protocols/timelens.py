"""TimeLens' protocol: as its released evaluation (of April 2026) reads an answer, for numbers that
can stand beside published ones.

By rank, wherever in the text: two clocks (`mm:ss` or `hh:mm:ss`, with a fraction); else the first
`a - b` with an ASCII hyphen; else the first `a to b`; else the first two numbers that stand alone.
Units are not known (`3 minutes 5 seconds` is 3 to 5), a unit that touches a number cuts off its
fraction (`3.0s` is 3), thoughts count as answer. A span that ends before it begins counts 0 there,
so it is none here. What it does in quadratic time on long runs of digits is linear here, with the
same result (held against it on random texts when this was written).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from opd_core.spans.grounding import round_span
from opd_core.spans.protocols.protocol import Protocol
from opd_core.types import Span

_FRACTION = r"(?:\.\d+)?"
_CLOCK = re.compile(rf"\b(?:(\d\d?):(\d\d):(\d\d{_FRACTION})|(\d\d?):(\d\d{_FRACTION}))\b")
_LOOSE = r"(\d++\.?+\d*+)"
_JOINED = tuple(
    re.compile(rf"(?<!\d){_LOOSE}{join}{_LOOSE}") for join in (r"\s*+-\s*+", r"\s++to\s++")
)
_ALONE = re.compile(r"\b(\d++\.\d++|\d++)\b")


def parse_timelens(text: str) -> Span | None:
    """The span that TimeLens' evaluation reads, in seconds, before it rounds."""
    text = text.lower()
    pair = _first_two(_seconds(m) for m in _CLOCK.finditer(text))
    for pattern in _JOINED:
        if pair is None and (joined := pattern.search(text)):
            pair = float(joined[1]), float(joined[2])
    if pair is None:
        pair = _first_two(float(m[1]) for m in _ALONE.finditer(text))
    if pair is None or not pair[0] < pair[1] < math.inf:
        return None
    return Span(*pair)


def _first_two(values: Iterator[float]) -> tuple[float, float] | None:
    first, second = next(values, None), next(values, None)
    return None if first is None or second is None else (first, second)


def _seconds(clock: re.Match[str]) -> float:
    hours, minutes, seconds, of_two, rest = clock.groups()
    if hours is None:
        return 60.0 * int(of_two) + float(rest)
    return 3600.0 * int(hours) + 60.0 * int(minutes) + float(seconds)


PROTOCOL = Protocol(
    "read by a rule of its own, whole seconds, first window, IoU >= m",
    reader=parse_timelens,
    rounding=round_span,
    windows="first",
)
