"""Prompt templates by name: how the question is put, and how an answer is written and read.

A template is a whole: a model that was asked for JSON is read as JSON. Each is read as a person
reads it, and no further than its form goes, so that an answer in another form counts as none.

    timelens   The event happens in 3.0 - 7.5 seconds   TimeLens' words; the default
    video-opd  <answer>3.00 to 7.50</answer>            room to think first, as R1-like trainers ask
    json       {"start": 3.0, "end": 7.5}               for whom a program reads the answers

`video-opd` is like the prompts of that family, not a quotation: the rows that the paper's authors
released use TimeLens' words (DESIGN section 7). `own_prompt.py` makes a template of a config's own
words.
"""

from __future__ import annotations

import html
import json
import re

from opd_core.extensions import TEMPLATES, PromptTemplate
from opd_core.spans.answer_reader import after_thoughts, parse_span
from opd_core.spans.grounding import format_answer
from opd_core.spans.json_answer import parse_json_span
from opd_core.types import Span

READERS_VERSION = 3
"""Of what the readers find in an answer: raised when one of them finds another span."""


def ask(text: str, query: str) -> str:
    """A template's text with the sentence in it."""
    return text.format(query=sentence(query))


def sentence(query: str) -> str:
    """The sentence as it is asked, by TimeLens' rule for all its data: white space collapsed, full
    stops at its ends removed. The example keeps it as it was annotated."""
    return " ".join(query.split()).strip(".").strip()


_ANSWER = re.compile(
    r"<\s?answer(?:\s[^<>]{0,60})?>(.*?)(?:<\s?/\s?answer\s?>|$)", re.DOTALL | re.IGNORECASE
)


def _format_tagged(span: Span) -> str:
    return f"<answer>{span.start:.2f} to {span.end:.2f}</answer>"


def _parse_tagged(text: str) -> Span | None:
    """The span of the last `<answer>` that holds something: an answer may be corrected."""
    answers = [
        answer for answer in _ANSWER.findall(html.unescape(after_thoughts(text))) if answer.strip()
    ]
    return parse_span(answers[-1]) if answers else None


def _format_json(span: Span) -> str:
    return json.dumps({"start": round(span.start, 2), "end": round(span.end, 2)})


TIMELENS = PromptTemplate(
    "Please find the visual event described by the sentence '{query}', determining its "
    "starting and ending times. The format should be: 'The event happens in <start time> - "
    "<end time> seconds'.",
    format_answer,
    parse_span,
    f"timelens {READERS_VERSION}",
    "TimeLens' words",
)
VIDEO_OPD = PromptTemplate(
    "Find the event '{query}' in the video, and determine when it happens. You may think "
    "first. Then give its start and end time in seconds within <answer> </answer> tags, for "
    "example <answer>12.54 to 17.83</answer>.",
    _format_tagged,
    _parse_tagged,
    f"video-opd {READERS_VERSION}",
    "room to think first, as R1-like trainers ask",
)
JSON = PromptTemplate(
    "Find the event '{query}' in the video. Answer only with its start and end time in "
    'seconds as JSON, for example {{"start": 12.5, "end": 17.8}}.',
    _format_json,
    parse_json_span,
    f"json {READERS_VERSION}",
    "for whom a program reads the answers",
)


def read_any(text: str) -> Span | None:
    """The span of an answer whose template is not known."""
    for name in ("video-opd", "json", "timelens"):
        if span := TEMPLATES[name].parse_span(text):
            return span
    return None
