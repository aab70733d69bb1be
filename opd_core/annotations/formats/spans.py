"""A span, or several, in any of the forms in which data sets write them.

    [1.0, 2.5]      [[1.0, 2.5], [4, 5]]      ["0:01", "2.5 s"]      {"start": 1, "end": 2}
    "[1.0, 2.5]"    "1.0 to 2.5"    "1.0 - 2.5, 4 - 5"    ["1 to 2", "4 to 5"]
    "The event happens in 1.0 - 2.5 seconds."    "<answer>1.0 to 2.5</answer>"

Nothing is swapped: a reversed span is read as it stands, and refused later as what it is.
"""

from __future__ import annotations

import re
from typing import Any

from opd_core.annotations.fields import BadAnnotationError, parse_json
from opd_core.annotations.formats.field_names import ANSWER, END, SPAN, START, WINDOWS, Fields
from opd_core.annotations.times import first_pair, has_other_units, is_time, pairs_of_text, seconds
from opd_core.templates.named import read_any
from opd_core.types import Span

_NO_FORM = "a span is not of the form [start, end], nor several of the form [[start, end], ...]"
_LETTER = re.compile(r"[^\W\d_]")


def spans_of(value: Any) -> tuple[Span, ...]:
    """Read spans in the file's order, each once. Raises `BadAnnotationError` where it is none."""
    if isinstance(value, str):
        spans = spans_of_text(value)
        if spans is None:
            raise BadAnnotationError(f"{_shortened(value)} names no span, such as '1.0 to 2.5'")
        return spans
    if not isinstance(value, list | tuple | dict) or not value:
        raise BadAnnotationError("there is no span of the form [start, end]")
    items = [value] if isinstance(value, dict) or _is_pair(value) else value
    return tuple(dict.fromkeys(span for item in items for span in _spans_of_item(item)))


def spans_of_text(text: str) -> tuple[Span, ...] | None:
    """Read spans from a text; None where it speaks of something else."""
    text = text.strip()
    if text.startswith(("[", "{")):
        try:
            value = parse_json(text.encode(errors="replace"))
        except BadAnnotationError:
            pass  # `[0:01, 0:03]`, which the patterns read
        else:
            return spans_of(value) if not isinstance(value, str) else None
    if pairs := pairs_of_text(text):
        return tuple(dict.fromkeys(_pair(*pair) for pair in pairs))
    if not _LETTER.search(text) or has_other_units(text):
        return None  # of numbers that are not pairs: which two are meant?
    pair = first_pair(text)
    if pair and pair[0].startswith("-"):
        return (_pair(*pair),)  # which an answer's reader would take without its sign
    if span := read_any(text):
        return (span,)
    return (_pair(*pair),) if pair else None  # which an answer's reader takes for none: reversed


def spans_in(fields: Fields) -> Any:
    """The value that holds a row's spans, unread: of `span`, of start and end, of the windows.

    None where there is none of these. Raises where there is half of a span.
    """
    if span := fields.first(SPAN):
        return span[1]
    start, end = fields.first(START), fields.first(END)
    if start and end:
        return [[start[1], end[1]]]
    if windows := fields.first(WINDOWS):
        return windows[1]
    if start or end:
        raise BadAnnotationError(f"the key {'end' if start else 'start'!r} is missing")
    return None


def _spans_of_item(item: Any) -> tuple[Span, ...]:
    if isinstance(item, dict):
        fields = Fields(item)
        inner = spans_in(fields) or fields.value(ANSWER)
        if isinstance(inner, dict):
            raise BadAnnotationError(_NO_FORM)
        return spans_of(inner)
    if isinstance(item, str):
        return spans_of(item)
    if isinstance(item, list | tuple) and len(item) == 2:
        return (_pair(*item),)
    raise BadAnnotationError(_NO_FORM)


def _is_pair(value: list[Any] | tuple[Any, ...]) -> bool:
    """Two times, rather than two spans."""
    if len(value) != 2 or any(isinstance(end, list | tuple | dict) for end in value):
        return False
    return not all(isinstance(end, str) and not is_time(end) for end in value)


def _pair(start: Any, end: Any) -> Span:
    return Span(seconds(start, "a span's start"), seconds(end, "a span's end"))


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
