"""Templates: an answer in the form that was asked for is read back; in another form it is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.config.sections import PromptSection
from opd_core.extensions import TEMPLATES
from opd_core.templates.named import ask, read_any, sentence
from opd_core.types import Span

tenths = st.integers(0, 9999).map(lambda n: n / 10)
spans = st.tuples(tenths, tenths).filter(lambda s: s[0] < s[1]).map(lambda s: Span(*s))


def test_config_and_templates_know_the_same_names() -> None:
    assert PromptSection.model_fields["template"].metadata == [TEMPLATES]


@pytest.mark.parametrize("name", TEMPLATES)
@given(span=spans)
def test_an_answer_as_asked_for_is_read_back(name: str, span: Span) -> None:
    template = TEMPLATES[name]
    assert template.parse_span(template.format_answer(span)) == span
    assert read_any(template.format_answer(span)) == span


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_query_is_put_in_whatever_is_in_it(name: str) -> None:
    text = ask(TEMPLATES[name].text, "a {man} opens 'it'")
    assert "a {man} opens 'it'" in text and "{query}" not in text and "{{" not in text


@pytest.mark.parametrize(
    ("annotated", "asked"),
    [
        ("a man opens a door", "a man opens a door"),
        (" A man opens\n a  door. ", "A man opens a door"),
        ("He waits...", "He waits"),
        ("He waits. Then he goes.", "He waits. Then he goes"),
        ("...and he goes", "and he goes"),
        ("3.5 liters of it .", "3.5 liters of it"),
        ("Does he go?", "Does he go?"),
        ("on.\u3000the table\u00a0", "on. the table"),
    ],
)
def test_a_sentence_is_asked_as_timelens_asks_it(annotated: str, asked: str) -> None:
    assert sentence(annotated) == asked
    assert f"sentence '{asked}'," in ask(TEMPLATES["timelens"].text, annotated)


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
        ("video-opd", "<answer>3 to 4</answer><answer> \n</answer>", (3, 4)),
        ("video-opd", "<answer>3 to 4</answer><answer>I am not sure</answer>", None),
        ("video-opd", "<think><answer>1 to 2</answer></think><answer>00:03-00:04</answer>", (3, 4)),
        ("video-opd", "<think>is it <answer>1 to 2</answer>", None),
        ("video-opd", "<answer>The event happens in 3.5s - 7.25s</answer>", (3.5, 7.25)),
        ("video-opd", "<answer>{'start': 3, 'end': 4}</answer>", (3, 4)),
        ("video-opd", "<answer>12.54 to 17.83</answer><answer></answer>", (12.54, 17.83)),
        ("json", '{"start": "3", "end": 4}', (3, 4)),
        ("json", '{"start": "00:12.5", "end": "00:17.8"}', (12.5, 17.8)),
        ("json", '{"start": "12.5s", "end": "17.8 seconds"}', (12.5, 17.8)),
        ("json", '{"start_time": 12.5, "end_time": 17.8}', (12.5, 17.8)),
        ("json", '{"startTime": "1:02", "endTime": "1:05"}', (62, 65)),
        ("json", '{"start_sec": 3, "end_sec": 4.5}', (3, 4.5)),
        ("json", '{"Start": 3, "End": 4}', (3, 4)),
        ("json", '{"begin": 3, "end": 4}', (3, 4)),
        ("json", "{'start': 12.5, 'end': 17.8}", (12.5, 17.8)),
        ("json", "{'start_time': '00:12', 'end_time': '00:17', 'label': None}", (12, 17)),
        ("json", "[{'start': 12.5, 'end': 17.8,},]", (12.5, 17.8)),
        ("json", "{start: 12.5, end: 17.8}", (12.5, 17.8)),
        ("json", r"{\"start\": 12.5, \"end\": 17.8}", (12.5, 17.8)),
        ("json", '{"of": [{"start": 12.5, "end": 17.8}, {"start": 20, "end": 21}]}', (12.5, 17.8)),
        ("json", '[{"start": "mm:ss.ff", "end": "x"}, {"start": 12.5, "end": 17.8}]', (12.5, 17.8)),
        ("json", '<think>{"start": 1, "end": 2}</think>{"start": 3, "end": 4}', (3, 4)),
        ("json", '<think>{"start": 1, "end": 2}', None),
        ("json", '{"start": 12.5, "end": 17.8', None),
        ("json", "{'start': 12.5, 'end': 17.8", None),
        ("json", '{"start": 12.5, "end": null}', None),
        ("json", '{"start": "-3", "end": 4}', None),
        ("json", '{"start": -3, "end": 4}', None),
        ("json", '{"started": 1, "bend": 2}', None),
        ("json", '{"start": [3], "end": 4}', None),
        ("json", '{"start": "1e3", "end": "2e3"}', None),
        ("json", '{"start": 7, "end": 3}', None),
        ("json", '{"start": true, "end": 3}', None),
        ("json", '{"start": NaN, "end": 3}', None),
        ("json", "{" * 5000, None),
        ("json", "3 - 4 seconds", None),
        ("json", "{“start”: 12.5, “end”: 17.8}", (12.5, 17.8)),
        ("json", '{"start"：12.5，"end"：17.8}', (12.5, 17.8)),
        ("json", '{"start": "12,5", "end": "17,8"}', (12.5, 17.8)),
        ("json", '{"start": 12,5, "end": 17,8}', (12.5, 17.8)),
        ("json", '{"start": "12,500", "end": "17,800"}', None),
        ("json", '{"start": "~12.5", "end": "about 17.8"}', (12.5, 17.8)),
        ("json", '{"start": 12.5 /* s */, "end": 17.8}', (12.5, 17.8)),
        ("json", '{"event_start": 12.5, "event_end": 17.8}', (12.5, 17.8)),
        ("json", '{"video_start": 0, "video_end": 60, "start": 3, "end": 4}', (3, 4)),
        ("json", '{"start_frame": 12, "end_frame": 36, "start": 3, "end": 4}', (3, 4)),
        ("json", '{"start_ms": 12, "end_ms": 36}', None),
        ("video-opd", "< answer >12.54 to 17.83</ answer >", (12.54, 17.83)),
        ("video-opd", '<answer type="span">12.54 to 17.83</answer>', (12.54, 17.83)),
        ("video-opd", "&lt;answer&gt;12.54 to 17.83&lt;/answer&gt;", (12.54, 17.83)),
    ],
)
def test_forms(name: str, text: str, expected: tuple[float, float] | None) -> None:
    assert TEMPLATES[name].parse_span(text) == (expected and Span(*expected))
