"""Templates: an answer in the form that was asked for is read back; in another form it is none."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.config_sections import PromptSection
from opd_core.templates import TEMPLATES, read_any
from opd_core.types import Span

tenths = st.integers(0, 9999).map(lambda n: n / 10)
spans = st.tuples(tenths, tenths).filter(lambda s: s[0] < s[1]).map(lambda s: Span(*s))


def test_config_and_templates_know_the_same_names():
    assert set(get_args(PromptSection.model_fields["template"].annotation)) == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
@given(span=spans)
def test_an_answer_as_asked_for_is_read_back(name, span):
    template = TEMPLATES[name]
    assert template.parse_span(template.format_answer(span)) == span
    assert read_any(template.format_answer(span)) == span


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_query_is_put_in_whatever_is_in_it(name):
    text = TEMPLATES[name].text.format(query="a {man} opens 'it'")
    assert "a {man} opens 'it'" in text and "{query}" not in text and "{{" not in text


PIECES = ("{", "}", '"start":', "1", ",", '"end":', "NaN", "<answer>", "2 to 3", "1e999", "-4")
nearly = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)


@pytest.mark.parametrize("name", TEMPLATES)
@given(text=st.text() | nearly)
def test_no_text_breaks_a_parser(name, text):
    span = TEMPLATES[name].parse_span(text)
    assert span is None or 0 <= span.start < span.end < float("inf")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("video-opd", "<think>at 1 to 2?</think><answer>3.5 to 7</answer>", (3.5, 7)),
        ("video-opd", "<answer>1 to 2</answer> no: <answer>3 - 4 s</answer>", (3, 4)),
        ("video-opd", "thus <ANSWER>3 to 4", (3, 4)),
        ("video-opd", "<answer></answer> 3 to 4", None),
        ("video-opd", "3 to 4", None),
        ("json", 'It is ```json\n{"start": 3, "end": 7.5}\n```.', (3, 7.5)),
        ("json", '{"why": {"start": 1, "end": 2}, "end": 4, "start": 3}', (3, 4)),
        ("json", '{"start": "3", "end": 4}', None),
        ("json", '{"start": 7, "end": 3}', None),
        ("json", '{"start": true, "end": 3}', None),
        ("json", '{"start": NaN, "end": 3}', None),
        ("json", "{" * 5000, None),
        ("json", "3 - 4 seconds", None),
    ],
)
def test_forms(name, text, expected):
    assert TEMPLATES[name].parse_span(text) == (expected and Span(*expected))
