"""The charts, read again as XML: where things are, what they say, and that nothing breaks them."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.charts.bars import Bin, Stack, histogram, stacked_bars
from flows.charts.lines import Point, Series, line_chart
from flows.charts.spans import SpanRow, span_bars
from flows.charts.svg import style

HOSTILE = "</text><script>alert('a\x00 & \ud800')</script>\""
NUMBERS = st.none() | st.floats(allow_nan=True, allow_infinity=True)
SVG = "{http://www.w3.org/2000/svg}"


def _parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for one in root.iter():
        for name, value in one.attrib.items():
            if name in ("x", "y", "cx", "cy", "x1", "x2", "y1", "y2", "width", "height"):
                assert -0.01 <= float(value) <= max(width, height) + 0.01, (one.tag, name, value)
            if name == "points":
                assert "nan" not in value and "inf" not in value
    assert root.find(f"{SVG}title") is not None and root.find(f"{SVG}desc") is not None
    return root


def _of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [one for one in root.iter() if name in one.attrib.get("class", "").split()]


def _pairs(one: ElementTree.Element) -> list[tuple[float, float]]:
    return [
        (float(x), float(y)) for x, y in (pair.split(",") for pair in one.attrib["points"].split())
    ]


def _words(root: ElementTree.Element) -> str:
    return " ".join(one.text or "" for one in root.iter())


def test_points_lie_where_the_axes_say() -> None:
    values = [0.2, 0.35, 0.5]
    root = _parsed(
        line_chart(
            [Series("mIoU", [Point(i, v, v - 0.1, v + 0.1) for i, v in enumerate(values)])],
            title="a", x_label="round",
        )
    )  # fmt: skip
    grid = [float(one.attrib["y1"]) for one in _of_class(root, "grid")]
    labels = [float(one.text or "") for one in _of_class(root, "tick")][: len(grid)]
    (line,) = _of_class(root, "line")
    (band,) = _of_class(root, "band")

    def by_grid(value: float) -> float:  # from the written numbers alone
        share = (value - labels[0]) / (labels[-1] - labels[0])
        return grid[0] + share * (grid[-1] - grid[0])

    points = _pairs(line)
    assert [y for _, y in points] == pytest.approx([by_grid(v) for v in values], abs=0.02)
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.02)
    edge = [by_grid(v - 0.1) for v in values] + [by_grid(v + 0.1) for v in reversed(values)]
    assert [y for _, y in _pairs(band)] == pytest.approx(edge, abs=0.02)
    assert "mIoU: 0.35 (0.25 to 0.45) at round 1" in _words(root)


def test_what_is_absent_is_a_gap_and_a_point_alone_stays_visible() -> None:
    ys = [1.0, 2.0, None, 3.0, float("nan"), 4.0, 5.0]
    root = _parsed(
        line_chart(
            [Series("loss", [Point(i, y) for i, y in enumerate(ys)])], title="a", x_label="step"
        )
    )
    assert [len(_pairs(line)) for line in _of_class(root, "line")] == [2, 2]
    assert len(_of_class(root, "mark")) == 5


def test_a_long_series_keeps_its_spikes_and_stays_small() -> None:
    points = [Point(i, 100.0 if i == 54_321 else (i % 7) / 7) for i in range(100_000)]
    svg = line_chart([Series("loss", points)], title="a", x_label="step")
    root = _parsed(svg)
    (line,) = _of_class(root, "line")
    top = min(float(one.attrib["y1"]) for one in _of_class(root, "grid"))
    assert min(y for _, y in _pairs(line)) == pytest.approx(top, abs=0.02)  # 100
    assert len(svg) < 100_000 and len(_of_class(root, "hit")) < 800
    assert "loss: 0 at step 0<" in svg


def test_on_a_logarithmic_axis_zero_has_no_place() -> None:
    points = [Point(0, 1e-5), Point(1, 0.0), Point(2, 1e-3), Point(3, 1e-2)]
    root = _parsed(
        line_chart([Series("rate", points)], title="a", x_label="step", log=True, y_label="rate")
    )
    assert len(_of_class(root, "mark")) == 3


@given(st.lists(st.lists(st.tuples(st.floats(), *[NUMBERS] * 3)), max_size=3), st.booleans())
def test_no_numbers_break_a_line_chart(
    rows: list[list[tuple[float, float, float, float]]], log: bool
) -> None:
    series = [Series(HOSTILE, [Point(*row) for row in points]) for points in rows]
    _parsed(line_chart(series, title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE, log=log))


def test_stacks_are_as_high_as_their_parts() -> None:
    root = _parsed(
        stacked_bars(
            [Stack("0", {"sample": 2, "update": 6}), Stack("1", {"sample": 4, "score": None})],
            title="Seconds",
            x_label="round",
            y_label="s",
        )
    )
    bars = [b for b in _of_class(root, "bar") if float(b.attrib["width"]) > 12]
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.05)
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.05)
    assert float(bars[1].attrib["y"]) + heights[1] == pytest.approx(
        float(bars[0].attrib["y"]), abs=0.05
    )
    assert "round 0, update: 6 s" in _words(root)
    green = stacked_bars(
        [Stack("0", {"a": 1, "b": 1})], title="a", x_label="b", colours={"a": 3, "b": 6}
    )
    assert [len(_of_class(_parsed(green), f"c{n}")) for n in (1, 2, 3, 6)] == [0, 0, 2, 2]


@given(st.lists(st.tuples(st.text(max_size=5), st.dictionaries(st.text(max_size=4), NUMBERS))))
def test_only_a_part_below_zero_is_refused(rows: list[tuple[str, dict[str, float | None]]]) -> None:
    stacks = [Stack(label, parts) for label, parts in rows]
    finite = [v for _, p in rows for v in p.values() if v is not None and abs(v) < float("inf")]
    if any(v < 0 for v in finite):
        with pytest.raises(ValueError, match="below zero"):
            stacked_bars(stacks, title="a", x_label="round")
    else:
        _parsed(stacked_bars(stacks, title="a", x_label="round"))


def test_bins_are_links_over_their_whole_column() -> None:
    bins = [Bin(0, 0.5, 3, link="?iou=0&<b>"), Bin(0.5, 1, 1, link="?iou=1", chosen=True)]
    root = _parsed(histogram(bins, title="IoU", x_label="IoU"))
    first, second = root.findall(f"{SVG}a")
    assert first.attrib["href"] == "?iou=0&<b>"
    assert first.attrib["aria-label"] == "IoU 0 to 0.5: 3"
    assert root.attrib["role"] == "group"
    high, low = (float(a.findall(f"{SVG}rect")[1].attrib["height"]) for a in (first, second))
    assert high == pytest.approx(3 * low, abs=0.05)
    assert len(_of_class(root, "chosen")) == 1
    assert _parsed(histogram(bins[:0], title="IoU", x_label="IoU")).attrib["role"] == "img"


@given(st.lists(st.tuples(*[st.floats()] * 2, st.integers(0, 10**18)), max_size=4))
def test_a_bin_is_drawn_or_refused(rows: list[tuple[float, float, int]]) -> None:
    bins = [Bin(*row) for row in rows]
    if all(abs(a) < float("inf") and abs(b) < float("inf") and a < b for a, b, _ in rows):
        _parsed(histogram(bins, title="a", x_label="b"))
    else:
        with pytest.raises(ValueError, match="a bin goes from"):
            histogram(bins, title="a", x_label="b")


def test_spans_lie_on_the_seconds_of_the_video() -> None:
    rows = [
        SpanRow("truth", "truth", 2.0, 6.0),
        SpanRow("v0", "student", 4.0, 30.0),
        SpanRow("v1", "student", None, None),
    ]
    root = _parsed(span_bars(rows, duration=10.0, title="spans"))
    (video,) = _of_class(root, "video")
    left, wide = float(video.attrib["x"]), float(video.attrib["width"])
    truth, cut = _of_class(root, "span")
    assert float(truth.attrib["x"]) == pytest.approx(left + 0.2 * wide, abs=0.02)
    assert float(truth.attrib["width"]) == pytest.approx(0.4 * wide, abs=0.02)
    end = float(cut.attrib["x"]) + float(cut.attrib["width"])
    assert end == pytest.approx(left + wide, abs=0.02)
    assert "v0: 4 to 30 s" in _words(root) and "v1: no span" in _words(root)


@given(st.lists(st.tuples(st.text(max_size=40), NUMBERS, NUMBERS), max_size=4), NUMBERS)
def test_no_spans_break_their_picture(
    rows: list[tuple[str, float | None, float | None]], duration: float | None
) -> None:
    spans = [SpanRow(label, "teacher", a, b, link="?" + label) for label, a, b in rows]
    _parsed(span_bars(spans, duration=duration, title=HOSTILE))


def test_hostile_text_stays_text_and_the_same_numbers_give_the_same_picture() -> None:
    def draw() -> str:
        return line_chart(
            [Series(HOSTILE, [Point(0, 1.0)]), Series("b", [])], title=HOSTILE, x_label=HOSTILE
        )

    assert "<script" not in draw() and draw() == draw()
    assert "alert('a\N{REPLACEMENT CHARACTER}" in _words(_parsed(draw()))


def test_the_style_names_a_colour_for_each_place_and_loads_nothing() -> None:
    assert set(re.findall(r"--chart-(\d):", style())) == {str(i) for i in range(1, 9)}
    assert "url(" not in style() and "@import" not in style()
