"""A prompt of a config's own words: what is refused in which words, and what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from opd_core.config.load import Config, load_config
from opd_core.config.sections import PromptSection
from opd_core.extensions import TEMPLATES
from opd_core.prompts.question_key import evaluation_question
from opd_core.templates import own_prompt
from opd_core.templates.named import ask
from opd_core.templates.own_prompt import template_of
from opd_core.types import Span, VideoOPDError

TEXT = "When does '{query}' happen? Say: from START to END."
PATTERN = r"from (?P<start>\S+(?: s)?) to (?P<end>\S+)"
ANSWER = "from {start:.1f} to {end:.1f}"


def section(**keys: str) -> PromptSection:
    return PromptSection(**keys)


def test_own_words_with_a_named_reader() -> None:
    template = template_of(section(text=TEXT, reader="json"))
    assert ask(template.text, "a {dog} runs.") == (
        "When does 'a {dog} runs' happen? Say: from START to END."
    )
    assert template.parse_span('{"start": 3, "end": 7}') == Span(3, 7)
    assert template.format_answer(Span(3, 7)) == '{"start": 3, "end": 7}'


def test_doubled_braces_are_single_ones_in_the_question() -> None:
    text = template_of(section(text='{query} as {{"start": 1}}', reader="json")).text
    assert ask(text, "a") == 'a as {"start": 1}'


@pytest.mark.parametrize(
    ("pattern", "answer", "said"),
    [
        (PATTERN, "It is from 3.0 to 7.5", (3.0, 7.5)),
        (PATTERN, "from 00:03 to 01:07.5", (3.0, 67.5)),
        (PATTERN, "<think>from 1 to 2</think> from 3 to 7", (3.0, 7.0)),
        (PATTERN, "<think>from 1 to 2", None),
        (PATTERN, "from 7 to 3", None),
        (PATTERN, "from here to there", None),
        (PATTERN, "3 - 7", None),
        (r"(\d+)-(\d+)", "3-7 or 8-9", (3.0, 7.0)),
        (r"END (?P<end>\d+) START (?P<start>\d+)", "END 7 START 3", (3.0, 7.0)),
        (r"(?i)FROM (\d+)(?: s)? TO (\d+)", "from 3 s to 7", (3.0, 7.0)),
        (r"a(\d+)?b(\d+)", "ab7", None),
    ],
)
def test_own_words_with_a_regular_expression(
    pattern: str, answer: str, said: tuple[float, float] | None
) -> None:
    template = template_of(section(text=TEXT, reader=pattern))
    assert template.parse_span(answer) == (said and Span(*said))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"text": "When?", "reader": "json"}, r"has no \{query\}"),
        ({"text": "{query} {duration}", "reader": "json"}, r"only \{query\} is filled in; write a"),
        ({"text": "{query!r}", "reader": "json"}, r"only \{query\} is filled in"),
        ({"text": "{query:>9}", "reader": "json"}, r"only \{query\} is filled in"),
        ({"text": "{query} {", "reader": "json"}, r"twice, \{\{ and \}\}"),
        ({"text": "{query} {}", "reader": "json"}, r"only \{query\} is filled in"),
        ({"text": '{query} {"start": 1}', "reader": "json"}, r"only \{query\} is filled in"),
        ({"text": TEXT}, "set prompt.reader to 'timelens', 'video-opd', 'json', or to a regular"),
        ({"text": TEXT, "template": "json"}, "are two questions; leave one of them out"),
        ({"text": TEXT, "reader": "timelen"}, "neither a reader .* with two groups"),
        ({"text": TEXT, "reader": r"(\d+)"}, "with two groups, the start and the end"),
        ({"text": TEXT, "reader": r"(\d+)(\d+)(\d+)"}, "with two groups"),
        ({"text": TEXT, "reader": r"(?P<start>\d+)-(?P<stop>\d+)"}, "with two groups"),
        ({"text": TEXT, "reader": r"(\d+"}, r"nor a regular expression \(missing \)"),
        ({"text": TEXT, "reader": PATTERN, "answer": "from {start}"}, r"has no \{end\}"),
        ({"text": TEXT, "reader": PATTERN, "answer": "{start} {end} {query}"}, r"only \{start\}"),
        ({"text": TEXT, "reader": PATTERN, "answer": "{start:d} {end}"}, "write for example"),
        ({"text": TEXT, "reader": PATTERN, "answer": "{start} - {end}"}, "which prompt.reader"),
        ({"text": TEXT, "reader": "json", "answer": ANSWER}, "which prompt.reader does not read"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(keys: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        section(**keys)


@given(st.integers(0, 9999), st.integers(1, 9999))
def test_own_answers_are_read_back(start: float, length: float) -> None:
    template = template_of(section(text=TEXT, reader=PATTERN, answer=ANSWER))
    span = Span(start / 10, (start + length) / 10)
    assert template.parse_span(template.format_answer(span)) == span


def test_a_pattern_that_never_ends_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_prompt, "SECONDS_AN_ANSWER", 0.2)
    with pytest.raises(ValidationError, match="takes for ever on some texts; write it without"):
        section(text=TEXT, reader=r"((?:\d+)+)[xy](\d+)")


def test_an_answer_on_which_a_pattern_never_ends_stops_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_prompt, "SECONDS_AN_ANSWER", 0.2)
    read = template_of(section(text=TEXT, reader=r"((?:q+)+)[xy](\d+)")).parse_span
    assert read("qx3") is None
    with pytest.raises(VideoOPDError, match=r"took more than 0.2 s on an answer of 2,000 char"):
        read("q" * 2000)


CONFIG = """
run.path = "run"
data = { train = "train.jsonl", eval = "eval.jsonl", videos = "videos" }
student.path = "student"
teacher.path = "teacher"
"""


def config_with(tmp_path: Path, prompt: str, rest: str = "") -> Config:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG + f"{rest}\n[prompt]\n{prompt}\n")
    return load_config(path)


def test_the_annotation_as_answer_needs_to_be_readable(tmp_path: Path) -> None:
    truth = 'rollout = { source = "truth", rollouts_per_example = 1 }\nupdate.objective = "sft"'
    own = f"text = \"{TEXT}\"\nreader = '{PATTERN}'\n"
    with pytest.raises(VideoOPDError, match="set prompt.answer, for example"):
        config_with(tmp_path, own, truth)
    with pytest.raises(VideoOPDError, match="set prompt.answer, for example"):
        config_with(tmp_path, "reader = '''(\\d+)/(\\d+)'''", truth)
    read = template_of(config_with(tmp_path, own + f'answer = "{ANSWER}"', truth).prompt)
    assert read.parse_span(read.format_answer(Span(1.0, 2.5))) == Span(1.0, 2.5)
    config_with(tmp_path, f'text = "{TEXT}"\nreader = "json"', truth)


def test_a_mistake_is_one_sentence_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match=r"config.toml: prompt.text = 'When\?' has no \{query"):
        config_with(tmp_path, 'text = "When?"\nreader = "json"')


def test_words_and_reader_are_part_of_the_question_and_the_answer_is_not(tmp_path: Path) -> None:
    prompts = ("", 'template = "json"', f'text = "{TEXT}"\nreader = "json"', 'reader = "json"',
               f'text = "{TEXT}"\nreader = "timelens"',
               f"text = \"{TEXT}\"\nreader = '{PATTERN}'")  # fmt: skip
    found = [evaluation_question(config_with(tmp_path, p), "processor") for p in prompts]
    assert len(set(found)) == len(prompts)
    last = f'{prompts[-1]}\nanswer = "{ANSWER}"'
    assert evaluation_question(config_with(tmp_path, last), "processor") == found[-1]


def test_a_templates_own_prompt_is_itself() -> None:
    for name in TEMPLATES:
        template = TEMPLATES[name]
        assert template_of(section(template=name)) == template
