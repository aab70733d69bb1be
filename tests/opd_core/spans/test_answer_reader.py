"""What a person reads in an answer: a table of answers as models write them, and its properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.extensions import TEMPLATES
from opd_core.spans.answer_reader import after_thoughts, parse_moment, parse_span
from opd_core.spans.protocols.timelens import parse_timelens
from opd_core.types import Span
from tests.opd_core.spans.answers import ANSWERS

TABLE = [(kind, text, said) for kind, rows in ANSWERS.items() for text, said in rows]


@pytest.mark.parametrize(
    ("kind", "text", "said"), TABLE, ids=[f"{k}: {t[:40]}" for k, t, _ in TABLE]
)
def test_what_a_person_reads(kind: str, text: str, said: tuple[float, float] | None) -> None:
    span = parse_span(text)
    assert span == (None if said is None else pytest.approx(said))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.5", 12.5),
        (" 12.5 s", 12.5),
        ("00:12.5", 12.5),
        ("1:02:03", 3723.0),
        ("1m05s", 65.0),
        ("1 minute and 5 seconds", 65.0),
        ("12,5", None),
        ("3 - 7", None),
        ("-3", None),
        ("mm:ss", None),
        ("", None),
        ("12.5 people", None),
        ("1e3", None),
    ],
)
def test_a_single_time(text: str, seconds: float | None) -> None:
    assert parse_moment(text) == seconds


def test_a_thought_is_no_answer() -> None:
    assert after_thoughts("<think>1 - 2</think> 3 - 4") == " 3 - 4"
    assert after_thoughts("1 - 2</think> 3 - 4") == " 3 - 4"
    assert after_thoughts("<think>1 - 2") == ""


hundredths = st.integers(0, 999_999).map(lambda n: n / 100)
pairs = st.tuples(hundredths, hundredths).filter(lambda p: p[0] < p[1])
FORMS = (
    "The event happens in {0:.2f} - {1:.2f} seconds", "{0:.2f}s to {1:.2f}s", "[{0:.2f}, {1:.2f}]",
    "from {0:.2f} until {1:.2f} seconds", "start: {0:.2f}\nend: {1:.2f}", "{0:.2f}秒到{1:.2f}秒",
    "**{0:.2f}** → **{1:.2f}**", "<start>{0:.2f}</start><end>{1:.2f}</end>",
)  # fmt: skip


@given(pairs, st.sampled_from(FORMS))
def test_a_form_is_read_whatever_the_numbers(pair: tuple[float, float], form: str) -> None:
    assert parse_span(form.format(*pair)) == Span(*pair)


@given(
    st.integers(0, 35_999), st.integers(1, 3_600), st.sampled_from((" - ", " to ", "-", " --> "))
)
def test_clocks_and_units_are_the_same_seconds(start: int, length: int, join: str) -> None:
    def clock(s: int) -> str:
        return f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}"

    def told(s: int) -> str:
        return f"{s // 3600} h {s // 60 % 60} min {s % 60} s"

    end = start + length
    assert parse_span(clock(start) + join + clock(end)) == Span(start, end)
    assert parse_span(told(start) + join + told(end)) == Span(start, end)


PIECES = (
    "1", "2.5", "00:07", "3:05.5", "-", "–", " ", " to ", "and", "start", "end: ", "from ", "s",
    "min ", "秒", "到", ",", ".", "..", "%", "th", "e3", "frame ", "people", "<think>", "</think>",
    "<answer>", "</answer>", "{", "}", "[", '"start":', "'", '"', "\\text{", "&lt;", "\n", "/",
    "²", "１", "٣", "→",
)  # fmt: skip
nearly = st.lists(st.sampled_from(PIECES), max_size=16).map("".join)
READERS = {name: TEMPLATES[name].parse_span for name in TEMPLATES}
READERS["TimeLens' rule"] = parse_timelens


@pytest.mark.parametrize("name", READERS)
@given(text=st.text() | nearly)
def test_no_text_breaks_a_reader(name: str, text: str) -> None:
    span = READERS[name](text)
    assert span is None or 0 <= span.start < span.end < float("inf")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "piece",
    ["1", "1 ", "1.", "1,", "1-", "1:", "1 - ", "a", "{", '{"a":', "<answer>", "<think>", "[",
     "</think>", "\\text", "&amp", "1m ", "from ", "start 1 x ", "event happens ", "frame 1 ",
     "三", "two ", "3.0 - 7.5.0 "],
)  # fmt: skip
@pytest.mark.timeout(60)  # a second or two; what grows with the square would take minutes
def test_a_long_text_is_read(name: str, piece: str) -> None:
    span = READERS[name]((piece * 100_000)[:100_000])
    assert span is None or span.start < span.end
