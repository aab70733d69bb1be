"""Bars: parts stacked on each other, and a histogram whose bins may be links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flows.charts.axis import Axis, finite, linear, number, shown_labels
from flows.charts.svg import (
    Svg,
    chart,
    colour,
    element,
    hover,
    legend,
    shortened,
    text,
    text_width,
)


@dataclass(frozen=True)
class Stack:
    """One bar: its label, and how much each part of it is; None or a part left out is absent."""

    label: str
    parts: Mapping[str, float | None]


@dataclass(frozen=True)
class Bin:
    """How many values lie from `low` to below `high`; `link` is where a click on it leads."""

    low: float
    high: float
    count: int
    link: str | None = None
    chosen: bool = False


def stacked_bars(
    stacks: Sequence[Stack],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
    colours: Mapping[str, int] | None = None,
    width: float = 400,
    height: float = 230,
) -> Svg:
    """Draws a bar a stack, its parts on each other in the order in which they first appear.

    `colours`: which `--chart-N` draws a part; without, they follow each other from 1.
    None, NaN and infinities are absent. Raises ValueError for a part below zero: it has no height.
    """
    names = list(dict.fromkeys(name for stack in stacks for name in stack.parts))
    known = [
        {name: value for name in names if (value := finite(stack.parts.get(name))) is not None}
        for stack in stacks
    ]
    if low := [n for parts in known for n, value in parts.items() if value < 0]:
        raise ValueError(f"a part of a stack cannot be below zero: {low[0]}")
    upward = linear([0.0, *(sum(parts.values()) for parts in known if parts)])
    inks = {name: colour(i) for i, name in enumerate(names)} | dict(colours or {})
    head, top = legend([(name, inks[name]) for name in names], width, 20, "bar")
    left, top = 8 + max(text_width(label) for label in upward.labels), top + (20 if y_label else 8)
    right, bottom = width - 4, height - 34
    parts_drawn = [*head, *_grid(upward, left, right, top, bottom, x_label, y_label)]
    slot = (right - left) / max(1, len(stacks))
    for i, (stack, parts) in enumerate(zip(stacks, known, strict=True)):
        so_far = 0.0
        for name, value in parts.items():
            foot, head_y = (upward.at(v, bottom, top) for v in (so_far, so_far + value))
            so_far += value
            said = hover(f"{x_label} {stack.label}, {name}: {number(value)} {y_label}".rstrip())
            parts_drawn.append(
                element(
                    "rect", said, x=left + slot * (i + 0.15), width=slot * 0.7,
                    y=head_y, height=foot - head_y, class_=f"bar c{inks[name]}",
                )
            )  # fmt: skip
    longest = max((text_width(stack.label) for stack in stacks), default=0) + 8
    for i in shown_labels(len(stacks), int((right - left) / min(longest, right - left))):
        x, label = left + slot * (i + 0.5), shortened(stacks[i].label, right - left)
        parts_drawn.append(text(label, x, bottom + 16, text_anchor="middle", class_="tick"))
    if not any(known):
        parts_drawn.append(text("nothing yet", left + 10, (top + bottom) / 2, class_="muted"))
    says = "; ".join(
        f"{x_label} {stack.label}: {number(sum(parts.values()))} {y_label}".rstrip()
        for stack, parts in zip(stacks, known, strict=True)
        if parts
    )
    return chart("stacks", title, says or "nothing yet", width, height, *parts_drawn)


def histogram(
    bins: Sequence[Bin],
    *,
    title: str,
    x_label: str,
    ink: int = 1,
    width: float = 400,
    height: float = 180,
) -> Svg:
    """Draws how many values lie in each bin; one with a link is clicked anywhere in its column.

    Raises ValueError for a bin whose ends are no numbers in order.
    """
    for one in bins:
        if finite(one.low) is None or finite(one.high) is None or not one.low < one.high:
            raise ValueError(f"a bin goes from a number to a larger one: {one.low} to {one.high}")
    upward = linear([0.0, *(float(one.count) for one in bins)], marks=3, whole=True)
    low, high = min((b.low for b in bins), default=0.0), max((b.high for b in bins), default=1.0)
    across = Axis(low, high, (), ())
    left, right = 8 + max(text_width(label) for label in upward.labels), width - 12
    top, bottom = 26.0, height - 34
    parts = list(_grid(upward, left, right, top, bottom, x_label, ""))
    for one in bins:
        x, end = across.at(one.low, left, right), across.at(one.high, left, right)
        y = upward.at(one.count, bottom, top)
        chosen = " chosen" if one.chosen else ""
        words = f"{x_label} {number(one.low)} to {number(one.high)}: {number(one.count)}"
        both = (
            element("rect", x=x, width=end - x, y=top, height=bottom - top, class_="hit"),
            element(
                "rect", x=x + 0.5, width=max(end - x - 1, 0.5), y=y, height=bottom - y,
                class_=f"bar c{ink}{chosen}",
            ),
        )  # fmt: skip
        if one.link is None:
            parts.append(element("g", hover(words), *both))
        else:
            parts.append(element("a", hover(words), *both, href=one.link, aria_label=words))
    edges = [*dict.fromkeys([one.low for one in bins] + [one.high for one in bins][-1:])]
    longest = max((text_width(number(edge)) for edge in edges), default=0) + 12
    for i in shown_labels(len(edges), int((right - left) / longest)):
        x = across.at(edges[i], left, right)
        parts.append(text(number(edges[i]), x, bottom + 16, text_anchor="middle", class_="tick"))
    if not bins:
        parts.append(text("nothing yet", left + 10, (top + bottom) / 2, class_="muted"))
    total = sum(one.count for one in bins)
    says = f"{number(total)} values from {number(low)} to {number(high)}" if bins else "nothing yet"
    links = any(one.link is not None for one in bins)
    return chart("histogram", title, says, width, height, *parts, links=links)


def _grid(
    upward: Axis,
    left: float,
    right: float,
    top: float,
    bottom: float,
    x_label: str,
    y_label: str,
) -> Iterator[Svg]:
    for tick, label in zip(upward.ticks, upward.labels, strict=True):
        y = upward.at(tick, bottom, top)
        yield element("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
        yield text(label, left - 5, y + 4, text_anchor="end", class_="tick")
    yield element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
    yield text(x_label, (left + right) / 2, bottom + 30, text_anchor="middle", class_="muted")
    if y_label:
        yield text(y_label, 0, top - 10, class_="muted")
