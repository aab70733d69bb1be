"""The colours of the stylesheets: text reads on every surface (WCAG 2.2, AA), light and dark."""

from __future__ import annotations

import itertools
import re

import pytest

from flows.charts.svg import style
from flows.view.place import HERE

SHEETS = (style(), (HERE / "static" / "view.css").read_text())
TEXTS = re.compile(r"ink.*|truth|student|teacher|far|chart-ink|chart-muted")
MARKS = re.compile(r"chart-\d|focus")
READS, SEEN = 4.5, 3.0
"""Contrast of text (success criterion 1.4.3), and of what is no text (1.4.11)."""


def variables(dark: bool) -> dict[str, str]:
    """Name -> colour, as a page has them: later sheets and the dark block win."""
    found: dict[str, str] = {}
    for wanted, sheet in itertools.product((False, True)[: 1 + dark], SHEETS):
        for media, block in re.findall(r"(@media[^{]*\{\s*)?:root\s*\{([^}]*)\}", sheet):
            if bool(media) == wanted:
                found |= re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6});", block)
    return found


def luminance(colour: str) -> float:
    """WCAG's relative luminance.

    >>> luminance("#ffffff"), luminance("#000000")
    (1.0, 0.0)
    """
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


MIX = re.compile(r"color-mix\(in srgb, var\(--([\w-]+)\) (\d+)%, var\(--([\w-]+)\)\)")


def mixed(a: str, percent: int, b: str) -> str:
    """CSS's `color-mix(in srgb, a percent%, b)`.

    >>> mixed("#ff0000", 20, "#ffffff")
    '#ffcccc'
    """
    parts = [(int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(
        f"{round((x * percent + y * (100 - percent)) / 100):02x}" for x, y in parts
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_reads_on_shades_between_two_colours(dark: bool) -> None:
    colours = variables(dark)
    shades = [
        (f"{a} {percent} %", mixed(colours[a], int(percent), colours[b]))
        for a, percent, b in MIX.findall("".join(SHEETS))
    ]
    assert len(shades) == "".join(SHEETS).count("color-mix")
    weak = {name: round(contrast(colours["ink"], shade), 2) for name, shade in shades
            if contrast(colours["ink"], shade) < READS}  # fmt: skip
    assert weak == {}


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WebAIM's example


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("kind", "least"), [(TEXTS, READS), (MARKS, SEEN)], ids=["text", "marks"])
def test_what_is_written_and_drawn_stands_out_on_every_surface(
    kind: re.Pattern[str], least: float, dark: bool
) -> None:
    colours = variables(dark)
    surfaces = [name for name in colours if name.startswith("surface")]
    inks = [name for name in colours if kind.fullmatch(name)]
    assert len(surfaces) >= 3 and len(inks) >= 5
    weak = {
        (ink, surface): round(contrast(colours[ink], colours[surface]), 2)
        for ink, surface in itertools.product(inks, surfaces)
        if contrast(colours[ink], colours[surface]) < least
    }
    assert weak == {}


def test_dark_has_a_colour_of_its_own_for_every_light_one() -> None:
    light, dark = variables(False), variables(True)
    assert [name for name in light if light[name] == dark[name]] == []


def test_no_rule_has_a_colour_of_its_own() -> None:
    """A colour stands in a variable, so that the tests above have seen it."""
    rules = re.sub(r":root\s*\{[^}]*\}|/\*.*?\*/", "", SHEETS[1], flags=re.DOTALL)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|\b(?:rgb|hsl|oklch)a?\(", rules) == []
