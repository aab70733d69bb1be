"""A line chart: several series of points with their intervals; what is absent is a gap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from flows.charts.axis import Axis, finite, linear, logarithmic, number, shown_labels, tight
from flows.charts.svg import Svg, chart, colour, element, hover, legend, text, text_width

_MARKED = 60
"""Series with more points than this show no marks; the points can be hovered all the same."""
_COLUMNS = 400
"""Of a series of more points than four times this many, only those are drawn that change the
picture, and about as many can be hovered."""

_Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """A value at a place, and its interval where there is one; None is absent."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that belong together, under a name."""

    name: str
    points: Sequence[Point]
    colour: int | None = None
    """Which `--chart-N` draws it; None: its place among the series, from 1."""


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    log: bool = False,
    include: Sequence[float] = (),
    width: float = 400,
    height: float = 230,
) -> Svg:
    """Draws the series over one axis, their intervals as bands behind them.

    A value that is None, NaN or infinite, or on a `log` axis not above zero, is a gap. `include`
    are values that the upward axis holds in any case, as 0 for what counts from there. A series of
    very many points is thinned to those that change the picture: first, last, least and greatest
    of each column.
    """
    drawn = [(one, one.colour or colour(i), _known(one, log)) for i, one in enumerate(series)]
    points = [point for _, _, known in drawn for point in known if point.y is not None]
    xs = [point.x for _, _, known in drawn for point in known]
    reach = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    across = tight(xs, whole=all(x.is_integer() for x in xs))
    upward = logarithmic(reach) if log else linear([*reach, *include])
    names = [(one.name, ink) for one, ink, _ in drawn]
    head, top = legend(names if len(names) > 1 else [], width, 20, "line")
    left = 8 + max(text_width(label) for label in upward.labels)
    right, bottom = width - 12, height - 34
    top += 20 if y_label else 8
    parts = [*head, *_frame(across, upward, (left, right, top, bottom), x_label, y_label)]

    def place(x: float, y: float) -> tuple[float, float]:
        return across.at(x, left, right), upward.at(y, bottom, top)

    for one, ink, known in drawn:
        thin = _thinned(known, across)
        stretches = list(_stretches(thin))
        parts += [band for run in stretches for band in _band(run, place, ink)]
        for run in stretches:
            if len(run) > 1:
                places = (place(p.x, p.y) for p in run if p.y is not None)
                parts.append(element("polyline", points=_pairs(places), class_=f"line c{ink}"))
        mark = "mark" if len(thin) <= _MARKED else "hit"
        every = -(-len(thin) // _COLUMNS)
        for at, p in enumerate(itertools.chain.from_iterable(stretches)):
            if p.y is not None and at % every == 0:
                x, y = place(p.x, p.y)
                alone = "mark" if any(run == [p] for run in stretches) else mark
                said = hover(f"{one.name}: {_said(p)} at {x_label} {number(p.x)}")
                parts.append(element("circle", said, cx=x, cy=y, r=2.5, class_=f"{alone} c{ink}"))
    if not points:
        parts.append(text("nothing yet", left + 10, (top + bottom) / 2, class_="muted"))
    return chart("lines", title, _words(drawn, x_label), width, height, *parts)


def _frame(
    across: Axis, upward: Axis, box: tuple[float, float, float, float], x_label: str, y_label: str
) -> Iterator[Svg]:
    """Draws grid, numbers and names of both axes around the box (left, right, top, bottom)."""
    left, right, top, bottom = box
    for tick, label in zip(upward.ticks, upward.labels, strict=True):
        y = upward.at(tick, bottom, top)
        yield element("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
        yield text(label, left - 5, y + 4, text_anchor="end", class_="tick")
    room = int((right - left) / (max(text_width(label) for label in across.labels) + 12))
    for i in shown_labels(len(across.labels), room):
        x = across.at(across.ticks[i], left, right)
        yield element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis")
        yield text(across.labels[i], x, bottom + 16, text_anchor="middle", class_="tick")
    yield element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
    yield text(x_label, (left + right) / 2, bottom + 30, text_anchor="middle", class_="muted")
    if y_label:
        yield text(y_label, 0, top - 10, class_="muted")


def _known(series: Series, log: bool) -> list[Point]:
    """Gives the points with what cannot be drawn as None; those without a place are left out."""

    def value(v: float | None) -> float | None:
        known = finite(v)
        return None if known is None or (log and known <= 0) else known

    points = []
    for point in series.points:
        x, y = finite(point.x), value(point.y)
        if x is not None:
            both = value(point.low), value(point.high)
            low, high = both if y is not None and None not in both else (None, None)
            points.append(Point(x, y, low, high))
    return sorted(points, key=lambda point: point.x)


def _thinned(points: list[Point], across: Axis) -> list[Point]:
    if len(points) <= 4 * _COLUMNS:
        return points
    kept: list[Point] = []
    for _, some in itertools.groupby(points, lambda p: math.floor(across.at(p.x, 0, _COLUMNS))):
        column = list(some)
        known = [i for i, p in enumerate(column) if p.y is not None]
        wanted = {0, len(column) - 1}
        if known:
            wanted |= {
                min(known, key=lambda i: column[i].y or 0.0),
                max(known, key=lambda i: column[i].y or 0.0),
            }
        kept += [column[i] for i in sorted(wanted)]
    return kept


def _stretches(points: list[Point]) -> Iterator[list[Point]]:
    for there, run in itertools.groupby(points, lambda point: point.y is not None):
        if there:
            yield list(run)


def _band(run: list[Point], place: _Place, colour: int) -> Iterator[Svg]:
    for there, some in itertools.groupby(run, lambda point: point.low is not None):
        if not there:
            continue
        points = [(p.x, p.low, p.high) for p in some]
        lows = [place(x, low) for x, low, _ in points if low is not None]
        highs = [place(x, high) for x, _, high in points if high is not None]
        if len(points) == 1:
            ((x, low),), ((_, high),) = lows, highs
            yield element("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker c{colour}")
        else:
            yield element("polygon", points=_pairs([*lows, *highs[::-1]]), class_=f"band c{colour}")


def _pairs(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def _said(point: Point) -> str:
    if point.y is None:
        return "absent"
    if point.low is None or point.high is None:
        return number(point.y)
    return f"{number(point.y)} ({number(point.low)} to {number(point.high)})"


def _words(drawn: Sequence[tuple[Series, int, list[Point]]], x_label: str) -> str:
    """Says what the chart shows: where each series begins and where it ends."""
    said = []
    for one, _, known in drawn:
        there = [point for point in known if point.y is not None]
        if not there:
            said.append(f"{one.name}: nothing yet")
            continue
        first, last = there[0], there[-1]
        begins = f"{one.name}: {_said(first)} at {x_label} {number(first.x)}"
        ends = f", {_said(last)} at {x_label} {number(last.x)}" if len(there) > 1 else ""
        said.append(begins + ends)
    return "; ".join(said) or "nothing yet"
