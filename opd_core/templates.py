"""Prompt templates by name: how the question is put, and how an answer is written and read.

A template is a whole: a model that was asked for JSON is read as JSON. All three are read as far as
their answer's form goes and no further, so that a wrong form counts as no answer.

    timelens   The event happens in 3.0 - 7.5 seconds   TimeLens' words; the default
    video-opd  <answer>3.00 to 7.50</answer>            room to think first, as R1-like trainers ask
    json       {"start": 3.0, "end": 7.5}               for whom a program reads the answers

`video-opd` is like the prompts of that family, not a quotation: the rows that the paper's authors
released use TimeLens' words (DESIGN section 7).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from opd_core.grounding import format_answer, parse_span
from opd_core.types import Span


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    text: str
    """With `{query}`, for `str.format`."""
    format_answer: Callable[[Span], str]
    parse_span: Callable[[str], Span | None]
    """The first span of an answer, or None where it holds none of this form."""


_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)


def _format_tagged(span: Span) -> str:
    return f"<answer>{span.start:.2f} to {span.end:.2f}</answer>"


def _parse_tagged(text: str) -> Span | None:
    """Of what stands in the last `<answer>`: thoughts before it may name spans, too."""
    answers = _ANSWER.findall(text)
    return parse_span(answers[-1]) if answers else None


def _format_json(span: Span) -> str:
    return json.dumps({"start": round(span.start, 2), "end": round(span.end, 2)})


def _parse_json(text: str) -> Span | None:
    """Of the first JSON object with a start and an end, whatever stands around it."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        start, end = _seconds(value.get("start")), _seconds(value.get("end"))
        if start is not None and end is not None:
            return Span(start, end) if 0 <= start < end else None
    return None


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


TEMPLATES = {
    "timelens": PromptTemplate(
        "Please find the visual event described by the sentence '{query}', determining its "
        "starting and ending times. The format should be: 'The event happens in <start time> - "
        "<end time> seconds'.",
        format_answer,
        parse_span,
    ),
    "video-opd": PromptTemplate(
        "Find the event '{query}' in the video, and determine when it happens. You may think "
        "first. Then give its start and end time in seconds within <answer> </answer> tags, for "
        "example <answer>12.54 to 17.83</answer>.",
        _format_tagged,
        _parse_tagged,
    ),
    "json": PromptTemplate(
        "Find the event '{query}' in the video. Answer only with its start and end time in "
        'seconds as JSON, for example {{"start": 12.5, "end": 17.8}}.',
        _format_json,
        _parse_json,
    ),
}


def read_any(text: str) -> Span | None:
    """The span of an answer whose template is not known."""
    for name in ("video-opd", "json", "timelens"):
        if span := TEMPLATES[name].parse_span(text):
            return span
    return None
