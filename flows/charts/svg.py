"""SVG as text: elements with everything escaped, and the frame that all charts share."""

from __future__ import annotations

import html
import re
from importlib.resources import files

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LETTER = 6.4
"""How wide a letter of the charts' text is at most times, in units of their viewBox."""


class Svg(str):
    """SVG as text; a Jinja2 template with autoescape leaves it as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        """Says to a template that this text is markup."""
        return self


def style() -> str:
    """Reads the look of all charts (`chart.css`), for a page to include."""
    return (files("flows.charts") / "chart.css").read_text("utf-8")


def escaped(text: str) -> str:
    """Writes text so that it is nothing but text inside an element or a quoted attribute."""
    return html.escape(_NOT_IN_XML.sub("\ufffd", text), quote=True)


def text_width(text: str) -> float:
    """Says about how wide a text is, in units of a chart's viewBox."""
    return len(text) * _LETTER


def shortened(text: str, width: float) -> str:
    """Cuts a text to what fits into a width, with an ellipsis where something is missing."""
    letters = max(1, int(width / _LETTER))
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def element(tag: str, *children: Svg, **attributes: str | float | None) -> Svg:
    """Writes an element; `class_` is `class`, `text_anchor` is `text-anchor`, None is left out."""
    said = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return Svg(f"<{tag}{said}>{inside}</{tag}>" if inside else f"<{tag}{said}/>")


def text(words: str, x: float, y: float, **attributes: str | float | None) -> Svg:
    """Writes words at a place."""
    return element("text", Svg(escaped(words)), x=x, y=y, **attributes)


def hover(words: str) -> Svg:
    """Writes what is said of the element around it when the cursor is on it."""
    return element("title", Svg(escaped(words)))


def colour(place: int) -> int:
    """Gives the number of the colour (`--chart-N`) of the part at this place; after 8 again 1."""
    return place % 8 + 1


def chart(
    kind: str, title: str, says: str, width: float, height: float, *parts: Svg, links: bool = False
) -> Svg:
    """Joins the parts of a chart to one image with its name and what it says in words.

    With `links` it is a group whose parts can be reached, and otherwise one image.
    """
    return element(
        "svg",
        hover(title),
        element("desc", Svg(escaped(says))),
        text(shortened(title, width * 0.85), 0, 12, class_="chart-title"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        class_=f"chart chart-{kind}",
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        role="group" if links else "img",
        aria_label=f"{title}. {says}",
    )


def legend(
    names: list[tuple[str, int]], width: float, top: float, kind: str
) -> tuple[list[Svg], float]:
    """Names the colours in rows from `top` on: the parts, and where the last row ends.

    `names` are pairs of a name and the number of its colour.
    """
    parts: list[Svg] = []
    x, y = 0.0, top
    for name, colour in names:
        said = shortened(name, width - 22)
        wide = 18 + text_width(said) + 14
        if x and x + wide > width:
            x, y = 0.0, y + 16
        mark = (
            element("line", x1=x, x2=x + 14, y1=y + 6, y2=y + 6, class_=f"line c{colour}")
            if kind == "line"
            else element("rect", x=x, y=y + 1, width=12, height=10, class_=f"bar c{colour}")
        )
        parts += [mark, text(said, x + 18, y + 10)]
        x += wide
    return parts, y + 16 if names else top


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return escaped(value)
    said = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if said == "-0" else said
